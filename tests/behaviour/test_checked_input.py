"""What somebody writes is refused where it is written, or ends its own tasks: never a process that serves others."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import zmq

import pilot_hitl as ph
from pilot_hitl._outbox import Kind
from pilot_hitl.futures import Origin, TaskFuture
from pilot_hitl.model.conditions import Term, Test
from pilot_hitl.model.resources import Shape
from pilot_hitl.model.states import State
from pilot_hitl.model.templates import ExecutableBody, ExecutableTemplate, FunctionTemplate
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.codec import TO_CLIENT, VERSION, encode, pack_bodies
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.places import runtime_folder
from pilot_hitl.wire.sockets import dealer
from tests.behaviour.studies import Study

pack = msgspec.msgpack.encode
# What is tried here, a type checker would refuse.
Task: Any = ph.TaskDescription
Pilot: Any = ph.PilotDescription
Service: Any = ph.ServiceDescription


def plain(x: Any) -> Any:
    return x


def hub_of(study: Study) -> int:
    (pid,) = (process["pid"] for process in study.processes() if process["kind"] == "hub")
    return int(pid)


def neighbours_run(session: ph.Session) -> None:
    """Calls and programs of the same session end rightly, on the pilot that was there all the time."""
    assert session.map(plain, range(5)).results() == list(range(5))
    assert session.submit(Task(executable="echo", arguments=["here"])).result(30).stdout == "here\n"
    (pilot,) = session.query("pilots")
    assert pilot["state"] == "ACTIVE"


# --- where it is given ------------------------------------------------------------------------------------------------

CALLS: list[tuple[str, Callable[[Any], object]]] = [
    ("pre_exec", lambda s: s.submit(Task(executable="x", pre_exec="module load gcc"))),
    ("arguments", lambda s: s.submit([Task(executable="x"), Task(executable="x", arguments=["\ud800"])])),
    ("arguments.*call", lambda s: s.submit(Task(executable="x", arguments=[s.call(plain, 1)]))),
    (r"\*\*mapping", lambda s: s.submit({"executable": "x"})),
    ("cores_per_rank", lambda s: s.options(cores="2").call(plain, 1)),
    ("did you mean 'timeout'", lambda s: s.options(timeuot=3)),
    ("environment", lambda s: s.options(environment={"A": 1}).map(plain, [1])),
    ("runtime", lambda s: s.submit_pilot(Pilot(runtime="1h"))),
    ("cores", lambda s: s.submit_pilots([Pilot(), Pilot(cores="2")])),
    ("PilotDescription", lambda s: s.submit_pilot({"cores": 1})),
    ("idempotent", lambda s: s.start_service(Service(name="h", handler=plain, idempotent="no"))),
    ("kwargs", lambda s: s.start_service(Service(name="h", handler=plain, kwargs={1: 2}))),
    ("name", lambda s: s.service(5)),
    ("choices", lambda s: s.checkpoint("a", choices="yes")),
    ("reserve", lambda s: s.checkpoint("b", reserve=8)),
    ("iteration", lambda s: s.checkpoint("c", iteration="1")),
    ("show_prediction", lambda s: s.checkpoint("d", show_prediction="no")),
    ("assignees", lambda s: s.checkpoint("e", assignees=[1])),
    ("question", lambda s: s.checkpoint("f", question=7)),
    ("form.*leads back", lambda s: s.checkpoint("g", form={"$ref": "#"})),
    ("form", lambda s: s.checkpoint("h", form={"description": math.nan})),
    ("default", lambda s: s.checkpoint("i", default="\ud800", deadline=9)),
    ("deadline", lambda s: s.checkpoint("j", deadline=True)),
    ("predict", lambda s: s.checkpoint("k", predict=[("a", "0.5")])),
    ("probability", lambda s: s.checkpoint("l", choices=["a"]).branch("a", probability="0.5")),
    ("branch", lambda s: s.checkpoint("m").branch("\ud800")),
    ("after", lambda s: s.submit(Task(executable="x"), after="x")),
    ("select", lambda s: s.checkpoint("o").select([1])),
    ("comment", lambda s: s.checkpoint("p").respond("a", comment=5)),
    ("/dev/zero", lambda s: s.checkpoint("n", show=[Path("/dev/zero")])),
]


def test_a_wrong_value_is_refused_by_the_call_that_gives_it(study: Study) -> None:
    with study.session(cores=0) as session:
        for said, act in CALLS:
            with pytest.raises(ph.DescriptionError, match=said):
                act(session)
        session.flush(20)  # nothing of it is in the way


@pytest.mark.parametrize(
    ("name", "more"),
    [
        (5, {}),
        ("\ud800", {}),
        ("a", {"on_exit": ["stop"]}),
        ("a", {"fresh": "no"}),
        ("a", {"namespace": 5}),
        ("a", {"policy": 3}),
        ("a", {"role": "boss"}),
        ("a", {"home": b"/x"}),
        ("a", {"on_interrupt": None}),
    ],
)
def test_a_session_is_opened_with_what_can_be_meant(study: Study, name: Any, more: dict[str, Any]) -> None:
    with pytest.raises(ph.DescriptionError, match=next(iter(more), "name")):
        ph.Session(name, **more)
    assert not study.home.exists()


def test_scalars_of_numpy_are_numbers(study: Study) -> None:
    with study.session(cores=0) as session:
        session.submit_pilot(Pilot(resource=study.backend, cores=np.int64(2), runtime=np.float64(5)))
        limited: Any = session.options(
            cores=np.int64(1), timeout=np.float32(20), priority=np.int32(3), retries=np.uint8(1)
        )
        assert limited.call(plain, 7).result(30) == 7
        done = session.submit(Task(executable="true", cores_per_rank=np.int64(1), timeout=np.float64(20)))
        assert done.result(30).exit_code == 0
        ask: Any = session.checkpoint
        asked = ask("a", choices=list(np.arange(3)), iteration=np.int64(4), default=np.int64(1), deadline=9)
        likely = asked.branch(np.int64(2), probability=np.float32(0.5)).call(plain, 1)
        asked.respond(np.int64(2))
        assert (asked.result(20), likely.result(20)) == (2, 1)
        more = ask("b", form={"type": "integer"}, predict=[(np.int64(3), np.float64(0.5))])
        assert more.predictions == [(3, 0.5)]


VALUES: list[Any] = [
    None, True, 0, -1, 1.5, math.nan, math.inf, 10**30,
    "", " ", "x", "a b", "a\nb", "a\0b", "\ud800", "é", "x" * 5000, b"x",
    [], ["x"], [""], [None], [["x"]], ("x",), {"x"}, {}, {"a": 1}, {"x": "y"}, {1: "x"},
    [{"source": "x"}], [{"source": 1}], np.int64(1), np.float64(0.5), np.array([1]),
    Path("x"), object(), ph.Resources(), [ph.Resources(cores=2)],
]  # fmt: skip
LEFT_OUT = {"alternatives", "pilot", "site", "ranks", "cores_per_rank", "gpus_per_rank"}
"""What may rightly wait for cores, or a pilot, that this session has not."""


def test_whatever_a_field_holds_its_task_ends_and_the_others_run(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study.folder)
    with study.session() as session:
        neighbours_run(session)
        hub, accepted, refused = hub_of(study), [], []
        for field in sorted(set(ph.TaskDescription.__struct_fields__) - LEFT_OUT):
            for value in VALUES:
                try:
                    accepted.append(session.submit(Task(**{"executable": "/bin/true", field: value})))
                except ph.DescriptionError as error:
                    refused.append((field, str(error)))
        assert [said for said in refused if not said[1].startswith((said[0], "staging"))] == []
        assert len(refused) > len(accepted) > 50
        for future in accepted:
            ended = future.exception(60)
            assert ended is None or isinstance(ended, ph.TaskError)
        neighbours_run(session)
        assert hub_of(study) == hub


def test_names_of_files_that_are_no_utf8_reach_the_program(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study.folder)
    name = os.fsdecode(b"caf\xe9.txt")
    Path(name).write_text("content")
    monkeypatch.setenv("ODD", os.fsdecode(b"\xe9"))
    with ph.Session("study") as session:
        with pytest.warns(UserWarning, match="'ODD'"):
            session.submit_pilot(Pilot(resource=study.backend, cores=2, runtime=10))
        for more in ({}, {"pre_exec": ["true"]}):
            task = Task(executable="cat", arguments=["-u", name], sandbox=str(study.folder), **more)
            assert session.submit(task).result(30).stdout == "content"
        with pytest.raises(ph.DescriptionError, match="executable"):
            session.submit(Task(executable=name))


# --- from somebody who checks nothing ---------------------------------------------------------------------------------


def raw(session: ph.Session, template: bytes, body: bytes = pack(ExecutableBody()), **kind: Any) -> TaskFuture[Any]:
    """Submit what no session would."""
    client = session._client
    fields: dict[str, Any] = {"template": client.template(template), "shape": Shape()}
    made = Kind(**(fields | kind))
    return client.submit(made, Origin("raw", executable=True), body, b"")


def executable(**fields: Any) -> bytes:
    """Return a template with fields that may be of any type."""
    known = {
        name: getattr(ExecutableTemplate("/bin/true", "true"), name) for name in ExecutableTemplate.__struct_fields__
    }
    return pack(["x", *(known | fields).values()])


TEMPLATES: dict[str, bytes] = {
    "nothing": b"",
    "no MessagePack": b"\xc1",
    "another thing": pack({"a": 1}),
    "a text for a list": executable(pre_exec="module load gcc"),
    "a number for a text": executable(name=7),
    "no number": executable(timeout=math.nan),
    "an endless time": executable(grace=math.inf),
    "a NUL in a variable": executable(environment={"A": "a\0b"}),
    "a variable without name": executable(environment={"": "x"}),
    "a variable that is too long": executable(environment={"A": "x" * 200_000}),
    "an empty program": executable(executable=""),
    "a NUL in a program": executable(executable="/bin/true\0"),
    "a NUL in a folder": executable(stdout="a\0b"),
    "a launcher that is none": executable(launcher="rsh"),
    "a list that is too deep": b"\x91" * 5000,
    "a function without code": pack(FunctionTemplate(b"d" * 20, b"", "f")),
    "a function with a NUL in a variable": pack(FunctionTemplate(b"e" * 20, b"", "f", environment={"A": "\0"})),
}
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no MessagePack": b"\xc1",
    "a number": pack([5, ""]),
    "a NUL in an argument": pack(ExecutableBody(["a\0b"])),
    "a NUL in a folder": pack(ExecutableBody([], "/srv/a\0b")),
    "an argument that is too long": pack(ExecutableBody(["x" * 200_000])),
    "arguments that are too long": pack(ExecutableBody(["x" * 100_000] * 40)),
}
KINDS: dict[str, dict[str, Any]] = {
    "no rank": {"shape": Shape(ranks=0)},
    "fewer than no cores": {"shape": Shape(cores=-1)},
    "more GPUs than fit into a number": {"shape": Shape(gpu_shares=1 << 62)},
    "a priority out of range": {"priority": 1 << 40},
    "a pilot that is no number": {"pilot": -1},
    "a switch that is none": {"backfill": "yes"},
    "a dependency that is none": {"deps": (-1,)},
    "a dependency on nothing": {"deps": (12345,)},
    "a condition that nobody defined": {"condition": 777},
}


@pytest.mark.long
def test_what_no_session_would_send_ends_its_own_task(study: Study) -> None:
    good = executable()
    with study.session() as session:
        neighbours_run(session)
        hub = hub_of(study)
        cases = {f"template: {what}": raw(session, template) for what, template in TEMPLATES.items()}
        cases |= {f"body: {what}": raw(session, good, body) for what, body in BODIES.items()}
        cases |= {f"kind: {what}": raw(session, good, **kind) for what, kind in KINDS.items()}
        nowhere = Kind(1 << 40, Shape())
        cases["a template that nobody defined"] = session._client.submit(nowhere, Origin("raw"), b"", b"")
        for what, future in cases.items():
            error = future.exception(60)
            assert isinstance(error, ph.TaskError), what
            assert str(error), what
        neighbours_run(session)
        assert raw(session, good).result(30).exit_code == 0
        assert hub_of(study) == hub


@pytest.fixture
def friend(study: Study) -> Iterator[Callable[[], zmq.Socket[bytes]]]:
    """Return what makes sockets to the study's hub, with its keys."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made: list[zmq.Socket[bytes]] = []

    def connected() -> zmq.Socket[bytes]:
        found = dealer(context, keyring(study.home), secrets.token_bytes(8))
        made.append(found)
        found.setsockopt(zmq.LINGER, 0)
        found.connect(f"ipc://{runtime_folder(study.home) / 'hub.sock'}")
        return found

    yield connected
    for each in made:
        each.close()
    context.term()


def said_to(link: zmq.Socket[bytes], kind: type[Any]) -> Any:
    """Return the next message of a kind."""
    while True:
        assert link.poll(20_000), f"no {kind.__name__}"
        for message in TO_CLIENT.decode(link.recv()):
            if isinstance(message, kind):
                return message


def test_a_refused_message_is_told_to_its_sender_and_the_rest_of_its_frame_is_taken(
    study: Study, friend: Callable[[], zmq.Socket[bytes]]
) -> None:
    with study.session() as session:
        link = friend()
        link.send(encode([m.Hello(session="study", namespace="raw", role="owner")]))
        wrong_query: Any = m.Query(7, cast("str", 5))
        me = said_to(link, m.Welcome).incarnation << 32
        link.send(encode([wrong_query, m.Flush(8)]))
        refused = said_to(link, m.Refused)
        assert (refused.code, refused.token) == ("SessionError", 7)
        assert "what" in refused.message
        wrong, right = m.Submit(me + 1, 1, 1, Shape(ranks=0), pack_bodies([b""])), m.PutTemplate(me + 2, executable())
        link.send(encode([wrong, right, m.Submit(me + 3, 1, me + 2, Shape(), pack_bodies([pack(ExecutableBody())]))]))
        first = said_to(link, m.Outcomes).outcomes[0]
        assert (first.task, first.state) == (me + 1, State.FAILED)
        assert "shape" in first.failure.message
        assert said_to(link, m.Outcomes).outcomes[0].state is State.DONE
        # Fewer arguments than tasks, tasks of somebody else, a term that nobody can look at.
        link.send(encode([m.Submit(me + 10, 3, me + 2, Shape(), pack_bodies([b""]))]))
        assert {said_to(link, m.Outcomes).outcomes[0].state for _ in range(1)} == {State.FAILED}
        link.send(encode([m.Submit(1 << 62, 1, me + 2, Shape(), pack_bodies([b""]))]))
        assert said_to(link, m.Outcomes).outcomes[0].state is State.FAILED
        term = Term(me + 20, Test.SCHEMA, "{no JSON")
        under = m.Submit(me + 21, 1, me + 2, Shape(), pack_bodies([b""]), condition=me + 20)
        link.send(encode([m.PutCondition(me + 20, [term]), under]))
        assert "never defined" in said_to(link, m.Outcomes).outcomes[0].failure.message
        neighbours_run(session)
        # What is not even a list of messages ends the connection that said it, and no other.
        link.send(bytes([VERSION]) + b"\xc1")
        assert said_to(link, m.Refused).token == 0
        neighbours_run(session)
        link.send(encode([m.Bye("stop")]))
        said_to(link, m.Closed)


def test_a_session_is_only_opened_under_a_name(study: Study, friend: Callable[[], zmq.Socket[bytes]]) -> None:
    with study.session() as session:
        neighbours_run(session)
        link = friend()
        link.send(encode([m.AgentHello("../../escaped", 1, 0, 1, 1, "here", [])]))
        neighbours_run(session)
        assert not list(study.base.rglob("escaped"))
