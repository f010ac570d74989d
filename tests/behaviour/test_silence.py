"""Nobody waits in silence: what is missing is said once, whatever waits, and what moves is left in peace."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from pilot_hitl import _requestfuture, _silence
from tests.behaviour.studies import Study, wait_for

LONG = 0.3
"""Seconds of waiting that are long here."""


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


def in_vain(wait: Callable[[], object]) -> None:
    with contextlib.suppress(TimeoutError):
        wait()


def awaits(session: ph.Session, count: int) -> Callable[[], object]:
    """Wait as asyncio does; whoever is canceled there cancels the tasks, so they are its own."""

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(session.call(same) for _ in range(count))), 6 * LONG)

    return lambda: asyncio.run(main())


def test_every_way_to_wait_says_that_there_is_no_pilot(study: Study) -> None:
    patience = 6 * LONG
    with study.session(cores=0) as session:
        one, two, many = session.call(same), session.call(same), session.map(same, range(20))
        chained = session.call(same, one)
        service = session.start_service(ph.ServiceDescription(name="echo", handler=Handler))
        ways: list[tuple[str, Callable[[], object]]] = [
            (one.task, lambda: one.result(patience)),
            (one.task, lambda: one.exception(patience)),
            ("20 tasks wait", lambda: many.results(patience)),
            ("20 tasks wait", lambda: many.wait(patience)),
            ("2 tasks wait", lambda: ph.wait([one, two], patience)),
            ("2 tasks wait", lambda: next(ph.as_completed([one, two], patience))),
            ("2 tasks wait", awaits(session, 2)),
            ("(same) waits", awaits(session, 1)),
            (f"{chained.task} waits for {one.task}", lambda: chained.result(patience)),
            ("tasks wait", lambda: session.wait(patience)),
            ("echo", lambda: service.request(1).result(patience)),
            ("echo", lambda: service.wait_ready(patience)),
        ]
        for words, wait in ways:
            lines = listen(session)
            session._client.silence._log = _silence.Log()
            in_vain(wait)
            assert len(lines) == 1, f"{words}: {lines}"
            assert words in lines[0]
            assert "no pilot was submitted; session.submit_pilot(" in lines[0]


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
        in_vain(lambda: runs.result(6 * LONG))
        in_vain(lambda: ph.wait([runs, behind], 6 * LONG))
        in_vain(lambda: after.result(6 * LONG))
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


def test_work_without_a_pilot_that_could_come_is_refused(study: Study) -> None:
    with study.session(cores=0) as session:
        pilot = study.pilot(session, cores=1)
        session.call(same).result(30)
        pilot.cancel("enough for today")
        wait_for(lambda: pilot.state.final, "its end")
        late = session.call(same)
        for wait in (late.result, lambda: session.map(same, [1]).results(), lambda: ph.wait([late]), session.wait):
            with pytest.raises(ph.PilotFailed, match="enough for today"):
                wait()
        assert "no pilot is left: pilot 1 is CANCELED (enough for today" in late.explain()


@pytest.mark.parametrize("asked", ["999", "nobody"])
def test_a_pilot_that_nobody_submitted_is_refused(study: Study, asked: str) -> None:
    def refused(session: ph.Session) -> None:
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
