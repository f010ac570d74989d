from __future__ import annotations

import asyncio
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import pilot_hitl as ph
from pilot_hitl.model.ids import make_id
from pilot_hitl.model.outputs import Output, Range
from pilot_hitl.model.states import PilotState
from pilot_hitl.model.templates import ExecutableResult
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.completed import Completed
from tests.unit.client.fakehub import FakeHub


def add(a: Any, b: Any = 1) -> Any:
    return a + b


def fail(text: str) -> None:
    raise ValueError(text)


def test_a_call_and_its_result(session: ph.Session, hub: FakeHub) -> None:
    future = session.call(add, 1, b=2)
    assert future.result(5) == 3
    assert future.task == "task.1.000001"
    assert future.exception() is None
    assert future.done()
    assert not future.cancelled()
    (hello,) = hub.hellos
    assert (hello.session, hello.role, hello.on_exit) == ("study", "owner", "stop")


def test_a_policy_is_told_to_each_hub(hub: FakeHub) -> None:
    with ph.Session("study", home=hub.home, policy="block") as session:
        hub.tell(m.Reconnect())
        assert session.call(add, 1).result(5) == 2
        _wait_for(lambda: len(hub.hellos) == 2)
    assert {hello.policy for hello in hub.hellos} == {"block"}


def test_equal_functions_share_a_template_and_calls_are_keyed(session: ph.Session, hub: FakeHub) -> None:
    futures = [session.call(add, index % 2) for index in range(10)]
    assert [future.result(5) for future in futures] == [1, 2] * 5
    assert len(hub.of(m.PutTemplate)) == 1
    keys = b"".join(submit.keys for submit in hub.of(m.Submit))
    assert len({keys[at : at + 16] for at in range(0, 160, 16)}) == 10


def test_options_reach_the_wire(session: ph.Session, hub: FakeHub) -> None:
    handle = session.options(cores=2, gpus=0.5, memory=10, retries=3, priority=7, backfill=True, effects="outside")
    assert handle.call(add, 1).result(5) == 2
    (submit,) = hub.of(m.Submit)
    assert (submit.shape.cores, submit.shape.gpu_shares, submit.shape.memory) == (2, 5000, 10)
    assert (submit.retries, submit.priority, submit.backfill, submit.effects_outside) == (3, 7, True, True)
    with pytest.raises(ph.DescriptionError, match="did you mean"):
        session.options(coers=1)
    with pytest.raises(ph.DescriptionError, match="TaskDescription"):
        handle.submit(ph.TaskDescription(executable="x"))


def test_futures_as_arguments_are_dependencies(session: ph.Session, hub: FakeHub) -> None:
    one, two = session.call(add, 1), session.call(add, 2)
    both = session.call(sum, [one, two, 10])
    nested = session.call(add, both, b=both)
    assert both.result(5) == 15
    assert nested.result(5) == 30
    deps = [submit.deps for submit in hub.of(m.Submit)]
    assert deps[-2:] == [[make_id(1, 1), make_id(1, 2)], [make_id(1, 3)]]


def test_a_map_as_an_argument_is_its_values(session: ph.Session) -> None:
    assert session.call(sum, session.map(add, range(5))).result(5) == 15


def test_functions_errors_come_back_as_they_are(session: ph.Session) -> None:
    future = session.call(fail, "no")
    with pytest.raises(ValueError, match="no") as caught:
        future.result(5)
    assert "far away" in str(caught.value.__cause__)
    assert any("task.1.000001" in note for note in caught.value.__notes__)
    assert future.exception() is caught.value


def test_a_failed_dependency_is_the_cause(session: ph.Session, hub: FakeHub) -> None:
    bad = session.call(fail, "no")
    with pytest.raises(ValueError, match="no"):
        bad.result(5)
    hub.hold = True
    late = session.call(add, bad)
    _wait_for(lambda: hub.of(m.Submit)[-1].deps)
    outcome = m.Outcome(make_id(1, 2), ph.State.FAILED, failure=_failure("DEPENDENCY", "it needs another"))
    hub.tell(m.Outcomes([outcome]))
    with pytest.raises(ph.DependencyFailed) as caught:
        late.result(5)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        ("TIMEOUT", ph.TaskTimeout), ("WORKER_DIED", ph.WorkerDied), ("PILOT_ENDED", ph.TaskLost),
        ("NODE_LOST", ph.TaskLost), ("UNFIT", ph.CannotFit), ("PAYLOAD", ph.PayloadError), ("SETUP", ph.TaskFailed),
        ("CANCELED", ph.TaskCanceled), ("DISCARDED", ph.Discarded), ("SUPERSEDED", ph.TaskCanceled),
    ],
)  # fmt: skip
def test_causes_become_typed_errors(session: ph.Session, hub: FakeHub, cause: str, error: type[Exception]) -> None:
    hub.hold = True
    future = session.call(add, 1)
    hub.tell(m.Outcomes([m.Outcome(make_id(1, 1), ph.State.FAILED, 2, 3, failure=_failure(cause, "why"))]))
    with pytest.raises(error, match="why") as caught:
        future.result(5)
    if isinstance(caught.value, ph.TaskError):
        assert (caught.value.attempt, caught.value.host) == ((2, 3), "far")


def test_executables(session: ph.Session, hub: FakeHub) -> None:
    done = session.submit(ph.TaskDescription(executable="/bin/x", arguments=["a"])).result(5)
    assert (done.exit_code, done.stdout, done.stdout_bytes, done.stderr) == (0, "out\udcff", b"out\xff", "err")
    many = session.submit([ph.TaskDescription(executable="/bin/x", arguments=[code]) for code in ("0", "3")])
    assert many[0].result(5).sandbox == "/nowhere"
    with pytest.raises(ph.TaskFailed) as caught:
        many[1].result(5)
    assert (caught.value.exit_code, caught.value.stderr) == (3, "err")
    with pytest.raises(ph.DescriptionError):
        session.submit([ph.TaskDescription(executable="/bin/x"), ph.TaskDescription()])
    assert sum(submit.count for submit in hub.of(m.Submit)) == 3


def test_executables_of_one_list_share_what_is_equal_and_nothing_else(session: ph.Session, hub: FakeHub) -> None:
    first, before = session.call(add, 1), session.call(add, 2)
    kinds: list[dict[str, Any]] = [
        {}, {"name": "other"}, {"executable": "/bin/y"}, {"cores_per_rank": 2}, {"priority": 3}, {"retries": 2},
        {"input_staging": ["/in"]}, {"tags": {"colocate": "a"}}, {},
    ]  # fmt: skip
    described = [ph.TaskDescription(**{"executable": "/bin/x", **kind}) for kind in kinds for _ in range(3)]
    together = session.submit(described, after=[first, before])
    alone = [session.submit(each, after=[first, before]) for each in described]
    for one, other in zip(together, alone, strict=True):
        assert one._origin is not other._origin
        assert one._origin.equals(other._origin)
    for at in range(0, len(together), 3):
        assert len({id(each._origin) for each in together[at : at + 3]}) == 1
    assert not together[0]._origin.equals(session.submit(described[0], after=[first])._origin)
    session.flush()
    sent = [submit for submit in hub.of(m.Submit) if submit.deps == [first._id, before._id]]
    told = [(s.template, s.shape, s.priority, s.retries) for s in sent for _ in range(s.count)]
    assert told[: len(described)] == told[len(described) :]
    assert len(set(map(repr, told))) == len(kinds) - 1  # the last kind is the first


def test_a_result_stays_packed() -> None:
    result = ExecutableResult(0, "/s", b"out", outputs=["/o"], others=[Output(b" more")])
    done = Completed(msgspec.msgpack.encode(result))
    for each in (done, pickle.loads(pickle.dumps(done))):
        assert (each.exit_code, each.sandbox, each.stdout, each.outputs) == (0, "/s", "out more", ["/o"])
        assert sum(sys.getsizeof(getattr(each, name)) for name in Completed.__slots__) < 150
    with pytest.raises(msgspec.MsgspecError):
        Completed(b"\x91")


def test_large_output_is_read_where_it_lies(tmp_path: Path) -> None:
    log = tmp_path / "slot.log"
    log.write_bytes(b"before" + b"x" * 100_000 + b"after")
    done = Completed(msgspec.msgpack.encode(ExecutableResult(0, "/s", stdout_at=Range(str(log), 6, 100_000))))
    assert done.stdout == "x" * 100_000
    log.unlink()
    with pytest.raises(OSError, match=r"slot\.log"):
        _ = done.stdout


def test_arrays_large_and_small(session: ph.Session) -> None:
    small, large = np.arange(10), np.arange(100_000)
    assert (session.call(add, small).result(5) == small + 1).all()
    assert (session.call(add, large).result(5) == large + 1).all()


def test_what_cannot_be_sent_is_refused_at_the_call(session: ph.Session, hub: FakeHub) -> None:
    with pytest.raises(ph.PayloadError, match="arguments of add"):
        session.options(key="k").call(add, threading.Lock())
    future = session.call(add, 1)
    with pytest.raises(ph.PayloadError, match="pass it as an argument"):
        session.call(lambda: future)
    assert future.result(5) == 2
    assert len(hub.of(m.Submit)) == 1


def test_cancel(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    future = session.call(add, 1)
    assert future.cancel()
    with pytest.raises(ph.TaskCanceled):
        future.result(5)
    assert future.cancelled()
    assert not future.cancel()


def test_waiting_ends_in_time(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    future = session.call(add, 1)
    with pytest.raises(TimeoutError, match="explain"):
        future.result(0.01)
    assert future.explain() == session.explain(future) == session.explain("task.1.1") == "it waits for cores"
    hub.release()
    assert future.result(5) == 2


def test_wait_and_as_completed_take_futures_and_sequences(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    future, sequence = session.call(add, 1), session.map(add, range(3))
    done, not_done = ph.wait([future, sequence], timeout=0.01)
    assert (len(done), len(not_done)) == (0, 4)
    hub.release()
    assert sorted(each.result() for each in ph.as_completed([future, sequence], timeout=5)) == [1, 2, 2, 3]
    assert ph.wait(sequence)[1] == set()
    bad = session.call(fail, "x")
    done, _ = ph.wait([bad], timeout=5, return_when=ph.FIRST_EXCEPTION)
    assert done == {bad}


def test_callbacks_may_block_and_submit(session: ph.Session) -> None:
    found: list[object] = []
    told = threading.Event()

    def follow(future: Any) -> None:
        found.append(session.call(add, future.result(), 10).result(5))
        told.set()

    session.call(add, 1).add_done_callback(follow)
    assert told.wait(5)
    assert found == [12]


def test_futures_can_be_awaited(session: ph.Session) -> None:
    async def work() -> list[Any]:
        return [await session.call(add, 1), *await asyncio.gather(*(session.call(add, i) for i in range(3)))]

    assert asyncio.run(work()) == [2, 1, 2, 3]


def test_closing_resolves_everything(hub: FakeHub) -> None:
    with ph.Session("study", home=hub.home) as session:
        hub.hold = True
        future, sequence = session.call(add, 1), session.map(add, range(3))
        gate = session.checkpoint("a")
        told: list[object] = []
        future.add_done_callback(told.append)
    with pytest.raises(ph.SessionClosed, match="run the script again"):
        future.result(5)
    with pytest.raises(ph.SessionClosed):
        sequence.results(5)
    with pytest.raises(ph.SessionClosed):
        gate.result(5)
    with pytest.raises(ph.SessionClosed):
        session.call(add, 1)
    _wait_for(lambda: told)
    assert [type(each) for each in hub.seen[-2:]] == [m.Flush, m.Bye]
    session.close()


def test_leaving_by_an_exception_says_so(hub: FakeHub) -> None:
    def script() -> None:
        with ph.Session("study", home=hub.home, on_exit="drain") as session:
            hub.hold = True
            session.call(add, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        script()
    (bye,) = hub.of(m.Bye)
    assert bye.on_exit == "keep", "pilots on a batch system stay"
    assert "KeyboardInterrupt" in bye.reason


def test_drain_waits(hub: FakeHub) -> None:
    hub.hold = True
    with ph.Session("study", home=hub.home, on_exit="drain") as session:
        future, sequence = session.call(add, 1), session.map(add, range(3))
        threading.Timer(0.1, hub.release).start()
    assert future.result(0) == 2
    assert sequence.results(0) == [1, 2, 3]


def test_a_refused_hello_is_raised(hub: FakeHub) -> None:
    hub.refuse = m.Refused("SessionBusy", "somebody has it")
    with pytest.raises(ph.SessionBusy, match="somebody has it"):
        ph.Session("study", home=hub.home)


@pytest.mark.parametrize(
    "arguments", [{"name": "a/b"}, {"name": ""}, {"name": "a", "on_exit": "never"}, {"name": "a", "policy": "b"}]
)
def test_sessions_that_cannot_be_meant(home: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ph.DescriptionError):
        ph.Session(home=home, **arguments)


def test_a_hub_that_forgot_is_told_again(session: ph.Session, hub: FakeHub) -> None:
    hub.acknowledge = False
    hub.hold = True
    future, sequence = session.call(add, 1), session.map(add, range(3))
    _wait_for(lambda: sum(submit.count for submit in hub.of(m.Submit)) == 4)
    before = len(hub.of(m.Submit))
    hub.tell(m.Reconnect())
    _wait_for(lambda: len(hub.of(m.Submit)) == 2 * before)
    again = hub.hellos[-1]
    assert (len(hub.hellos), again.incarnation) == (2, 1)
    assert sum(count for _, count in again.waiting) == 4
    hub.release()
    assert future.result(5) == 2
    assert sequence.results(5) == [1, 2, 3]


def test_a_session_closed_by_the_hub_lets_go(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    future = session.call(add, 1)
    hub.tell(m.Closed("opened anew elsewhere"))
    with pytest.raises(ph.SessionClosed):
        future.result(5)
    assert session.closed


def test_who_was_let_go_does_not_greet_again(hub: FakeHub) -> None:
    session = ph.Session("study", home=hub.home)
    link = session._client._link
    receive, hello, sent, greetings = link._receive, link._hello, threading.Event(), 0

    def greet(welcome: m.Welcome | None) -> m.Hello:
        # Whether it still arrives is up to the socket, which is closed right after it.
        nonlocal greetings
        greetings += 1
        return hello(welcome)

    def late(messages: list[Any]) -> None:
        receive(messages)
        if any(isinstance(message, m.Closed) for message in messages):
            # What the hub says to who spoke on after its goodbye is there before the thread looks again.
            hub.tell(m.Reconnect())
            hub.do(sent.set)
            assert sent.wait(10)
            time.sleep(0.2)

    link._receive, link._hello = late, greet
    session.close()
    link._thread.join(10)
    assert (sent.is_set(), greetings) == (True, 0)


def test_pilots(session: ph.Session, hub: FakeHub) -> None:
    pilot = session.submit_pilot(ph.PilotDescription(cores=2, name="small", site="here"))
    pilot.wait_ready(5)
    assert (pilot.state, pilot.number, pilot.name) == (PilotState.ACTIVE, 1, "small")
    session.options(pilot="small").call(add, 1).result(5)
    session.options(site="here").call(add, 1).result(5)
    assert [(submit.pilot, submit.site) for submit in hub.of(m.Submit)] == [(1, ""), (0, "here")]
    with pytest.raises(ph.DescriptionError, match="'small'"):
        session.options(pilot="large").call(add, 1)
    with pytest.raises(ph.DescriptionError, match="'there'"):
        session.options(site="there").call(add, 1)
    with pytest.raises(ph.CannotFit):
        session.options(site="here", cores=3).call(add, 1)
    hub.tell(m.PilotUpdate(0, 2, PilotState.ACTIVE))
    _wait_for(lambda: session._client.others)
    session.options(site="there").call(add, 1)  # somebody else's pilot may be there
    with pytest.raises(ph.DescriptionError, match="runtime"):
        session.submit_pilot(ph.PilotDescription(runtime=0))
    hub.tell(m.PilotUpdate(pilot.token, 1, PilotState.FAILED, "no quota"))
    _wait_for(lambda: pilot.state is PilotState.FAILED)
    with pytest.raises(ph.PilotFailed, match="no quota"):
        pilot.wait_ready(5)
    pilot.cancel()


def test_questions(session: ph.Session) -> None:
    session.flush(5)
    assert session.query("anything", depth=2) == {"session": "study", "depth": 2}
    with pytest.raises(ph.UnknownSession):
        session.query("nothing")
    with pytest.raises(ph.DescriptionError):
        session.explain("nonsense")


def test_outside_of_a_task_there_is_no_current_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOT_HITL_SESSION", raising=False)
    with pytest.raises(ph.SessionError, match="inside a task"):
        ph.current_session()


def _failure(cause: str, message: str) -> Any:
    from pilot_hitl.model.failures import Cause, Failure

    return Failure(Cause[cause], message, "far")


def _wait_for(condition: Any) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
