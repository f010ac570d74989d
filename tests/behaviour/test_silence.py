"""Nobody waits in silence: what is missing is said once, whatever waits, and what moves is left in peace."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from pilot_hitl import _requestfuture, _silence
from pilot_hitl.executor import PilotExecutor
from tests.behaviour.studies import Study, wait_for

LONG = 0.3
"""Seconds of waiting that are long here."""
SIDE_BY_SIDE = 7
"""Sessions in which ways to wait are tried."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_silence, _requestfuture):
        monkeypatch.setattr(module, "AFTER", LONG)


def same(x: Any = 0) -> Any:
    return x


def until(path: str) -> str:
    """Run until a file is there; another file says that it runs."""
    Path(f"{path}.waits").touch()
    while not Path(path).exists():
        time.sleep(0.02)
    return path


class Handler:
    def __call__(self, x: Any) -> Any:
        return x


def listen(session: ph.Session) -> list[str]:
    """Take what a session tells those who wait."""
    lines: list[str] = []
    session._client.silence._tell = lines.append
    return lines


def told(lines: list[str], *words: str) -> str:
    """Return the line that holds all these words, once it was told."""
    return str(
        wait_for(lambda: next((line for line in lines if all(word in line for word in words)), ""), " ".join(words))
    )


async def awaited(future: Any) -> Any:
    return await future


def in_vain(wait: Callable[[], object]) -> None:
    with contextlib.suppress(TimeoutError):
        wait()


def awaits(session: ph.Session, count: int) -> Callable[[], object]:
    """Wait as asyncio does; whoever is canceled there cancels the tasks, so they are its own."""

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(session.call(same) for _ in range(count))), 6 * LONG)

    return lambda: asyncio.run(main())


def wrapped(make: Callable[[], cf.Future[Any]]) -> Callable[[], object]:
    """Wait as asyncio does for others' futures, a new one that may be canceled."""

    async def main() -> None:
        await asyncio.wait_for(asyncio.wrap_future(make()), 6 * LONG)

    return lambda: asyncio.run(main())


def polled(future: cf.Future[Any]) -> Callable[[], object]:
    """Wait again and again, each time for a moment."""

    def wait() -> None:
        end = time.monotonic() + 6 * LONG
        while time.monotonic() < end:
            cf.wait([future], LONG / 5)

    return wait


def called_back(future: cf.Future[Any]) -> Callable[[], object]:
    """Wait for a callback."""

    def wait() -> None:
        there = threading.Event()
        future.add_done_callback(lambda _future: there.set())
        there.wait(6 * LONG)

    return wait


def ways_to_wait(session: ph.Session) -> list[tuple[str, Callable[[], object]]]:
    """Every way to wait for something of a session without a pilot, each with words of the line that it is to bring."""
    patience = 6 * LONG
    one, two, many = session.call(same), session.call(same), session.map(same, range(20))
    chained = session.call(same, one)
    both: list[cf.Future[Any]] = [one, two]
    service = session.start_service(ph.ServiceDescription(name="echo", handler=Handler))
    return [
        (one.task, lambda: one.result(patience)),
        (one.task, lambda: one.exception(patience)),
        ("20 tasks wait", lambda: many.results(patience)),
        ("20 tasks wait", lambda: many.wait(patience)),
        ("2 tasks wait", lambda: ph.wait([one, two], patience)),
        ("2 tasks wait", lambda: next(ph.as_completed([one, two], patience))),
        ("(same) waits", awaits(session, 1)),
        (f"{chained.task} waits for {one.task}", lambda: chained.result(patience)),
        ("tasks wait", lambda: session.wait(patience)),
        ("echo", lambda: service.request(1).result(patience)),
        ("echo", lambda: service.wait_ready(patience)),
        ("echo", lambda: ph.wait([service.request(1)], patience)),
        ("wait", lambda: cf.wait(both, patience)),
        ("wait", lambda: next(cf.as_completed(both, patience))),
        (one.task, polled(one)),
        ("(same) waits", wrapped(lambda: session.call(same))),
        ("echo", wrapped(lambda: service.request(1))),
        (one.task, called_back(one)),
        ("wait", lambda: PilotExecutor(session, max_workers=1).submit(same).result(patience)),
        ("wait", lambda: list(PilotExecutor(session, max_workers=1).map(same, "ab", timeout=patience))),
    ]


def test_every_way_to_wait_says_that_there_is_no_pilot(study: Study) -> None:
    """Side by side, as each takes its time; several in one session, one after the other, as all share its lines."""

    def in_turn(session: ph.Session, ways: list[tuple[str, Callable[[], object]]]) -> None:
        earlier: set[str] = set()
        for words, wait in ways:
            lines = listen(session)
            session._client.silence._log = _silence.Log()
            in_vain(wait)
            line = told(lines, words)  # the hub may say what is missing only when that wait is over
            assert "no pilot was submitted; session.submit_pilot(" in line
            # And once more what it says of the wait before, which is new to this log.
            others = [other for other in lines if other not in earlier or other == line]
            assert len(others) - (line in earlier) <= 1, f"{words}: {lines}"
            assert all(lines.count(late) == 1 for late in lines if late != line), f"{words}: {lines}"
            earlier.update(lines)

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        sessions = [stack.enter_context(study.session(f"study{n}", cores=0)) for n in range(SIDE_BY_SIDE)]
        # Alone, and not first: two begin to wait one after the other, and are one line if nobody looks in between.
        one = sessions[0].call(same)
        in_turn(sessions[0], [(one.task, lambda: one.result(6 * LONG)), ("2 tasks wait", awaits(sessions[0], 2))])
        ways = [ways_to_wait(session)[number::SIDE_BY_SIDE] for number, session in enumerate(sessions)]
        list(pool.map(in_turn, sessions, ways))


def test_a_hundred_threads_are_one_line(study: Study) -> None:
    with study.session(cores=0) as session:
        lines = listen(session)
        with ThreadPoolExecutor(100) as pool:
            for future in [session.call(same) for _ in range(100)]:
                pool.submit(future.exception, 6 * LONG)
        assert len(lines) == 1


def test_a_quiet_session_says_nothing(study: Study) -> None:
    with study.session(cores=0, quiet=True) as session:
        lines = listen(session)
        in_vain(lambda: session.call(same).result(6 * LONG))
        assert not lines
    wrong: Any = "yes"
    with pytest.raises(ph.DescriptionError, match="quiet"):
        ph.Session("study", quiet=wrong)


def test_what_moves_is_left_in_peace_and_what_does_not_is_named(study: Study) -> None:
    """One core: a task that runs, one behind it, one that depends on it, then a service, then nothing at all."""
    go = study.folder / "go"
    with study.session(cores=1) as session:
        lines = listen(session)
        runs = session.call(until, str(go))
        wait_for(Path(f"{go}.waits").exists, "it runs")
        behind, after = session.call(same, 1), session.call(same, runs)
        for_these = (
            lambda: runs.result(6 * LONG),
            lambda: ph.wait([runs, behind], 6 * LONG),
            lambda: after.result(6 * LONG),
        )
        with ThreadPoolExecutor() as pool:
            list(pool.map(in_vain, for_these))
        assert not lines, "somebody works at all of it"
        in_vain(lambda: behind.result(6 * LONG))
        assert len(lines) == 1
        assert behind.task in lines[0]
        go.touch()
        runs.result(30)
        service = session.start_service(ph.ServiceDescription(name="echo", handler=Handler))
        assert service.request(1).result(30) == 1
        in_vain(lambda: session.call(same).result(6 * LONG))
        told(lines, "services hold 1 core of", "stop one")
        service.stop()
        session.wait(30)


def test_a_person_is_awaited_by_name(study: Study) -> None:
    with study.session(cores=1) as session:
        lines = listen(session)
        gate = session.checkpoint("mesh", choices=["fine", "coarse"])
        in_vain(lambda: gate.result(6 * LONG))
        assert told(lines, "'mesh'").endswith(f"pilot-hitl inbox answer {gate.id} VALUE (one of: fine, coarse)")
        guess = gate.branch("fine").call(same, 1)
        wait_for(lambda: "counts once" in guess.explain(), "it is held")
        in_vain(lambda: guess.result(6 * LONG))
        told(lines, guess.task, "counts once checkpoint 'mesh'")
        picked = gate.select({gate.branch("fine"): guess, gate.branch("coarse"): session.call(same, 2)})
        before = len(lines)
        in_vain(lambda: picked.result(6 * LONG))
        assert len(lines) <= before + 1
        gate.respond("fine")
        assert picked.result(20) == 1


def test_a_hub_that_stands_still_is_told_of(study: Study) -> None:
    with study.session(cores=0) as session:
        lines = listen(session)
        hub = session.query("status")["pid"]
        os.kill(hub, signal.SIGSTOP)
        waits = threading.Thread(target=session.flush)
        waits.start()
        try:
            told(lines, "the hub has not confirmed yet", "on disk")
        finally:
            os.kill(hub, signal.SIGCONT)
        waits.join(30)
        assert not waits.is_alive()


def test_a_branch_waits_for_the_first_word_of_its_question(study: Study) -> None:
    def ask(session: ph.Session, question: str) -> ph.Checkpoint:
        return session.checkpoint("gate", question=question, choices=["a", "b"], on_change="error")

    with study.session(cores=0) as session:
        ask(session, "old?").respond("a")
    with study.session(cores=0) as session, ThreadPoolExecutor() as pool:
        lines = listen(session)
        hub = session.query("status")["pid"]
        os.kill(hub, signal.SIGSTOP)
        try:
            branch = pool.submit(lambda: ask(session, "new?").branch("a"))
            told(lines, "checkpoint 'gate' has not reached the hub yet")
        finally:
            os.kill(hub, signal.SIGCONT)
        with pytest.raises(ph.CheckpointError, match="another question"):
            branch.result(30)


def test_work_without_a_pilot_that_could_come_is_refused(study: Study) -> None:
    with study.session(cores=0) as session:
        pilot = study.pilot(session, cores=1)
        session.call(same).result(30)
        pilot.cancel("enough for today")
        wait_for(lambda: pilot.state.final, "its end")
        late = session.call(same)
        service = session.start_service(ph.ServiceDescription(name="echo", handler=Handler))
        ways: list[Callable[[], object]] = [
            late.result,
            lambda: session.map(same, [1]).results(),
            lambda: ph.wait([late]),
            session.wait,
            lambda: PilotExecutor(session, max_workers=1).submit(same).result(),
            lambda: PilotExecutor(session).submit(same).result(),
            lambda: service.request(1).result(),
            lambda: service.map([1, 2]),
            service.wait_ready,
            lambda: ph.wait([service.request(1)]),
            lambda: asyncio.run(awaited(service.request(1))),
        ]
        for wait in ways:
            with pytest.raises(ph.PilotFailed, match="enough for today"):
                wait()
        asked = service.request(7)
        assert "no pilot is left: pilot 1 is CANCELED (enough for today" in late.explain()
        study.pilot(session, cores=2)
        assert asked.result(30) == 7, "another pilot may do it yet"
        assert late.result(30) == 0
        threading.Timer(LONG, session._client.pilots[-1].cancel, ["it is late"]).start()
        with pytest.raises(ph.PilotFailed, match="it is late"):
            [service.request(number).result(30) for number in itertools.count()]


def asks(question: str) -> Any:
    from pilot_hitl import _silence

    _silence.AFTER = LONG
    return ph.checkpoint("inside", question=question, choices=[1, 2]).result()


def requests(name: str) -> Any:
    from pilot_hitl import _requestfuture, _silence

    for module in (_silence, _requestfuture):
        vars(module)["AFTER"] = LONG
    return ph.service(name).request(1).result()


def depends(x: Any) -> Any:
    from pilot_hitl import _silence

    _silence.AFTER = LONG
    session = ph.current_session()
    return session.call(same, session.call(asks, x)).result()


class Slow:
    def __init__(self, path: str) -> None:
        until(path)

    def wait(self, path: str) -> str:
        return until(path)

    def __call__(self, x: Any) -> Any:
        return x


def test_a_task_that_waits_says_for_what_to_who_waits_for_it(study: Study) -> None:
    """It says it to the hub: it writes nothing itself."""
    go = study.folder / "go"
    with study.session(cores=3) as session:
        lines = listen(session)
        service = session.start_service(ph.ServiceDescription(name="slow", handler=Slow, kwargs={"path": str(go)}))
        in_vain(lambda: service.request(1).result(6 * LONG))
        waits = session.call(requests, "slow")
        threads = [threading.Thread(target=in_vain, args=(lambda: waits.result(40),))]
        threads[0].start()
        told(lines, waits.task, "'slow' is STARTING: replica 1 runs on", "is not set up yet")
        assert "; service 'slow' is STARTING" in waits.explain()
        go.touch()
        assert waits.result(40) == 1
        outer = session.call(depends, "which?")
        threads.append(threading.Thread(target=in_vain, args=(lambda: outer.result(40),)))
        threads[1].start()
        told(lines, f"{outer.task} waits for", "(asks)", "inbox answer")
        assert "; it waits for task." in outer.explain()
        [row] = session.query("inbox")
        study.tool("inbox", "answer", row["id"], "2")
        assert outer.result(40) == 2
        for thread in threads:
            thread.join(40)
        assert waits.stderr == outer.stderr == ""
        go.unlink()
        last = service.request(str(go), method="wait")
        stops = threading.Thread(target=service.stop)
        stops.start()
        told(lines, "'slow' is READY: it stops when 1 request is answered")
        go.touch()
        stops.join(40)
        assert last.result(1) == str(go)


def test_a_pilot_that_nobody_submitted_is_refused(study: Study) -> None:
    def refused(session: ph.Session) -> None:
        for asked in ("999", "nobody"):
            with pytest.raises(ph.DescriptionError, match=f"pilot='{asked}'.*no such pilot was submitted"):
                session.options(pilot=asked).call(same)
            with pytest.raises(ph.DescriptionError, match="no such pilot"):
                session.submit(ph.TaskDescription(executable="true", pilot=asked))

    with study.session(cores=0) as session:
        refused(session)
        pilot = study.pilot(session, cores=1, name="mine")
        refused(session)
        assert session.options(pilot="mine").call(same, 1).result(30) == 1
        assert session.options(pilot=str(pilot.number)).call(same, 2).result(30) == 2
