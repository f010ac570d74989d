"""``@cp.on(…)``: code that runs on an assumed answer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import pilot_hitl as ph
from pilot_hitl.wire import messages as m
from tests.unit.client.fakehub import FakeHub

CHOICES = ["accept", "refine"]


def double(x: Any) -> Any:
    return 2 * x


def fail(x: Any) -> Any:
    raise ValueError(x)


def eventually(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 5
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def test_a_body_works_with_held_values(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    gate = session.checkpoint("mesh", choices=CHOICES)
    seen: list[Any] = []

    @gate.on("refine", probability=0.2)
    def go_on(branch: ph.Branch) -> Any:
        one = branch.call(double, 1)
        seen.append(one.result(5))
        same = one.result()
        assert one.exception(5) is None
        two = session.call(double, [seen[0]])  # through the session: it is in the branch all the same
        assert two.result(5) == [2, 2] == two.result()
        assert two.result() is two.result(), "one object"
        assert not two.done()
        many = branch.options(cores=2).map(double, [1, 2, 3])
        assert many.wait(5)
        assert many.results(5) == [2, 4, 6]
        assert [each.result() for each in many] == [2, 4, 6]
        assert {each.result() for each in ph.as_completed([one, many], 5)} == {2, 4, 6}
        assert ph.wait([one, two], 5) == ({one, two}, set())
        assert asyncio.run(_await(one)) == 2
        with gate.branch("refine"):
            declared = session.call(double, one)
            assert one.result() == 2
            with pytest.raises(ph.Undecided):
                declared.result()
        assert declared.result(5) == 4
        return same + declared.result()

    eventually(lambda: go_on._provisional)
    assert not go_on.done()
    assert seen == [2]
    with pytest.raises(TimeoutError, match=r"mesh.*not answered"):
        go_on.result(0.01)
    submits = hub.of(m.Submit)
    (condition,) = {submit.condition for submit in submits}
    (put,) = [put for put in hub.of(m.PutCondition) if put.condition == condition]
    assert put.probability == 0.2
    gate.respond("refine")
    hub.release()
    assert go_on.result(5) == 6
    assert gate.select({"refine": go_on, "accept": session.call(double, 1)}).result(5) == 6


async def _await(future: ph.TaskFuture[Any]) -> Any:
    return await future


def test_outside_of_the_body_nobody_sees_held_values(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    gate, other = session.checkpoint("mesh", choices=CHOICES), session.checkpoint("other", choices=CHOICES)
    elsewhere = other.branch("accept").call(double, 7)
    futures: list[ph.TaskFuture[Any]] = []
    told: list[str] = []

    @gate.on("refine")
    def body(branch: ph.Branch) -> None:
        future = branch.call(double, 1)
        future.result(5)
        futures.append(future)
        for wait in (elsewhere.result, threading_result(future)):
            try:
                wait(0.05)
            except TimeoutError:
                told.append("waits")

        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(lambda: told.append(str(future.result(5)))))
        thread.start()
        thread.join(5)

    eventually(lambda: len(told) == 3)
    assert told == ["waits", "waits", "2"]
    with pytest.raises(TimeoutError):
        futures[0].result(0.05)
    gate.respond("refine")
    hub.release()
    assert futures[0].result(5) == 2
    assert body.result(5) is None


def threading_result(future: ph.TaskFuture[Any]) -> Callable[[float], Any]:
    """Return what waits for a future in a thread that has nothing to do with the body."""

    def wait(timeout: float) -> Any:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                future.result(timeout)
            except TimeoutError as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(5)
        if errors:
            raise errors[0]

    return wait


def test_a_wrong_guess_ends_the_body(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    gate, other = session.checkpoint("mesh", choices=CHOICES), session.checkpoint("other", choices=CHOICES)
    ended: dict[str, str] = {}
    inside: list[str] = []
    go = threading.Event()
    unrelated = session.call(fail, 1)

    def ending(name: str, work: Callable[[ph.Branch], Any]) -> Callable[[ph.Branch], None]:
        def body(branch: ph.Branch) -> None:
            inside.append(name)
            try:
                work(branch)
            except ph.BranchDiscarded as error:
                ended[name] = str(error)
                raise

        return body

    def later(work: Callable[[ph.Branch], Any]) -> Callable[[ph.Branch], Any]:
        def run(branch: ph.Branch) -> Any:
            assert go.wait(5)
            return work(branch)

        return run

    waits: dict[str, Callable[[ph.Branch], Any]] = {
        "result": lambda _: unrelated.result(),
        "results": lambda _: session.map(fail, [1]).results(),
        "gate": lambda _: gate.result(),
        "wait": lambda _: ph.wait([unrelated]),
        "completed": lambda _: list(ph.as_completed([unrelated])),
        "select": lambda _: other.select({"accept": unrelated}).result(),
        "submit": later(lambda _: session.submit(ph.TaskDescription(executable="true"))),
        "call": later(lambda branch: branch.call(double, 1)),
        "checkpoint": later(lambda branch: branch.checkpoint("inner")),
    }
    bodies = {name: gate.on("refine")(ending(name, work)) for name, work in waits.items()}
    eventually(lambda: len(inside) == len(waits))
    gate.respond("accept")
    eventually(bodies["submit"].done)
    go.set()
    eventually(lambda: len(ended) == len(waits))
    assert all('answered "accept"' in text for text in ended.values())
    for body in bodies.values():
        with pytest.raises(ph.Discarded, match="does not count"):
            body.result(5)
        body.thread.join(5)
        assert not body.thread.is_alive()
    late: list[int] = []
    with pytest.raises(ph.Discarded):
        gate.on("refine")(lambda _branch: late.append(1)).result(5)
    assert late == []


def test_the_answer_starts_a_body_at_once(session: ph.Session, hub: FakeHub) -> None:
    hub.idle = False
    gate = session.checkpoint("mesh", choices=CHOICES)
    body = gate.on("refine")(lambda branch: branch.call(double, 4))
    eventually(lambda: [query for query in hub.of(m.Query) if query.what == "idle"])
    session.flush()
    assert not body._started
    gate.respond("refine")
    assert body.result(5) == 8, "a future that is returned is followed"
    failing = gate.on("refine")(lambda branch: branch.call(fail, "no"))
    with pytest.raises(ValueError, match="no"):
        failing.result(5)
    assert len([query for query in hub.of(m.Query) if query.what == "idle"]) < 5, "it does not ask again and again"


def test_the_likeliest_body_starts_first(session: ph.Session, hub: FakeHub) -> None:
    hub.idle = False
    started: list[str] = []
    gate, other = session.checkpoint("mesh", choices=CHOICES), session.checkpoint("other", choices=CHOICES)
    for each, value, probability in ((gate, "accept", 0.1), (other, "accept", None), (gate, "refine", 0.9)):
        each.on(value, probability=probability)(lambda branch: started.append(repr(branch.term.operand)))
    hub.idle = True
    eventually(lambda: len(started) == 3)
    assert started == ["'\"refine\"'", "'\"accept\"'", "'\"accept\"'"]


def test_bodies_chain_and_their_errors_are_their_results(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    gate = session.checkpoint("mesh", choices=CHOICES)

    @gate.on("refine")
    def first(branch: ph.Branch) -> Any:
        inner = branch.checkpoint("inner", choices=["x"])

        @inner.on("x")
        def deeper(branch: ph.Branch) -> Any:
            assert len(branch.condition) == 2
            return branch.call(double, 10).result(5)

        inner_bodies.append(deeper)
        return branch.call(double, 1).result(5)

    inner_bodies: list[ph.Body[Any]] = []

    @gate.on("refine")
    def second(branch: ph.Branch) -> Any:
        return branch.call(double, first.result(5)).result(5)

    @gate.on("refine")
    def third(_branch: ph.Branch) -> None:
        raise KeyError(first.result(5))

    eventually(lambda: second._provisional and third._provisional and inner_bodies and inner_bodies[0]._provisional)
    assert not second.done()
    gate.respond("refine")
    assert (first.result(5), second.result(5)) == (2, 4)
    with pytest.raises(KeyError, match="2"):
        third.result(5)
    assert third.exception(5) is not None
    assert not inner_bodies[0].done()
    inner = next(each for each in session._client.checkpoints.values() if each.name == "inner")
    inner.respond("x")
    assert inner_bodies[0].result(5) == 20


def test_leaving_waits_for_what_is_real_and_ends_the_rest(hub: FakeHub) -> None:
    ended: list[str] = []
    release = threading.Event()
    with ph.Session("study", home=hub.home) as session:
        gate, other = session.checkpoint("mesh", choices=CHOICES), session.checkpoint("other", choices=CHOICES)

        @gate.on("refine")
        def real(branch: ph.Branch) -> Any:
            release.wait(5)
            ended.append("real")
            return branch.call(double, 1).result(5)

        @other.on("refine")
        def undecided(branch: ph.Branch) -> None:
            try:
                branch.checkpoint("never").result()
            except ph.BranchDiscarded:
                ended.append("undecided")
                raise

        eventually(lambda: undecided._started)
        gate.respond("refine")
        threading.Timer(0.1, release.set).start()
    assert real.result(5) == 2
    undecided.thread.join(5)
    assert sorted(ended) == ["real", "undecided"]
    with pytest.raises(ph.SessionClosed):
        undecided.result(5)


def test_keys_of_a_body_are_its_own(hub: FakeHub) -> None:
    """So that a body that is not called on the next run shifts no keys of others."""
    runs: list[list[bytes]] = []
    for skip in (False, True):
        before = len(hub.seen)
        with ph.Session("study", home=hub.home) as session:
            gate = session.checkpoint("mesh", choices=CHOICES)
            if not skip:
                _returned(gate.on("accept")(lambda branch: branch.call(double, 1)))
            _returned(gate.on("refine")(_two_calls))
            session.call(double, 1).result(5)
            session.flush()
        keys = [each.keys[at : at + 16] for each in hub.seen[before:] if isinstance(each, m.Submit)
                for at in range(0, len(each.keys), 16)]  # fmt: skip
        runs.append(keys)
    assert runs[0][-3:] == runs[1]
    assert len(set(runs[0])) == 4


def _returned(body: ph.Body[Any]) -> None:
    eventually(lambda: body._provisional)


def _two_calls(branch: ph.Branch) -> None:
    branch.call(double, 1)
    branch.call(double, 1)


def test_policy_block_starts_nothing_ahead(hub: FakeHub) -> None:
    with ph.Session("study", home=hub.home, policy="block") as session:
        gate = session.checkpoint("mesh", choices=CHOICES)
        body = gate.on("refine")(lambda branch: branch.call(double, 4))
        session.flush()
        assert [query.what for query in hub.of(m.Query)] == []
        assert not body._started
        gate.respond("refine")
        assert body.result(5) == 8


def test_a_body_that_returns_a_future_of_others(session: ph.Session) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    theirs: concurrent.futures.Future[int] = concurrent.futures.Future()
    follows: list[int] = []
    theirs.add_done_callback(lambda _: follows.append(1))

    @gate.on("refine")
    def go_on(_: ph.Branch) -> concurrent.futures.Future[int]:
        return theirs

    selected = gate.select({"refine": go_on})
    gate.respond("refine")
    with pytest.raises(TimeoutError, match="the future that it returned has not ended"):
        go_on.result(0.2)
    for each in range(3):  # with every word of the hub its bodies are looked at
        session.checkpoint("more", iteration=each).respond("text")
    assert len(theirs._done_callbacks) <= 2, "it is followed once"  # type: ignore[attr-defined]
    theirs.cancel()
    for future in (go_on, selected):
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(5)


def test_a_selection_of_canceled_futures_ends(session: ph.Session) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    theirs: concurrent.futures.Future[int] = concurrent.futures.Future()
    theirs.cancel()
    selected = gate.select({"refine": theirs})
    gate.respond("refine")
    with pytest.raises(concurrent.futures.CancelledError):
        selected.result(5)


def test_a_body_may_be_a_coroutine(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    gate = session.checkpoint("mesh", choices=CHOICES)

    @gate.on("refine")
    async def go_on(branch: ph.Branch) -> ph.TaskFuture[int]:
        assert await branch.call(double, 1) == 2, "a held value"
        return branch.call(double, 2)

    eventually(lambda: go_on._provisional)
    gate.respond("refine")
    hub.release()
    assert go_on.result(5) == 4
