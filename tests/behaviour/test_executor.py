"""An executor means what it takes."""

from __future__ import annotations

import concurrent.futures as cf
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, wait_for


def _square(x: int) -> int:
    return x * x


def _note(folder: str, word: str) -> None:
    os.environ["NOTED"] = word
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with Path(folder, "noted").open("a") as file:
        file.write(f"{os.getpid()}\n")


def _noted(_x: int) -> tuple[str | None, bool]:
    return os.environ.get("NOTED"), signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def _fails() -> None:
    raise ValueError("no licence")


def _overlap(folder: str, number: int) -> int:
    mine = Path(folder, f"running.{number}")
    mine.touch()
    time.sleep(0.05)
    seen = len(list(Path(folder).glob("running.*")))
    mine.unlink()
    return seen


def test_an_initializer_runs_once_a_worker_and_for_its_executor_alone(study: Study) -> None:
    folder = str(study.folder)
    with study.session() as session, ph.PilotExecutor(session, initializer=_note, initargs=(folder, "a")) as pool:
        assert set(pool.map(_noted, range(20))) == {("a", True)}
        workers = study.lines("noted")
        assert len(set(workers)) == len(workers) <= 2
        with ph.PilotExecutor(session, 1, _note, (folder, "b")) as other:
            assert other.submit(_noted, 1).result(30) == ("b", True)
        assert pool.submit(_noted, 1).result(30) == ("a", True)
        assert session.call(_noted, 1).result(30) == (None, False)


def test_globals_that_an_initializer_sets_are_seen(study: Study) -> None:
    out = study.run(
        """
        table = None
        def init(word):
            global table
            table = [word]
        def one(x): return table
        def two(x): table.append(x); return table
        with ph.Session("globals", fresh=True) as s:
            s.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=1, runtime=10))
            with ph.PilotExecutor(s, max_workers=3, initializer=init, initargs=("w",)) as pool:
                print(list(pool.map(one, range(2))), list(pool.map(two, range(1))), list(pool.map(one, range(1))))
        """
    )
    assert out.strip() == "[['w'], ['w']] [['w', 0]] [['w', 0]]"


def test_a_failed_initializer_breaks_the_executor(study: Study) -> None:
    with study.session() as session:
        pool = ph.PilotExecutor(session, max_workers=1, initializer=_fails)
        futures = [pool.submit(_square, x) for x in range(5)]
        for future in futures:
            with pytest.raises(cf.BrokenExecutor, match="no licence"):
                future.result(30)
        with pytest.raises(cf.BrokenExecutor, match="no licence"):
            pool.submit(_square, 1)
        pool.shutdown()
        assert session.call(_square, 3).result(30) == 9


def test_max_workers_bounds_what_runs_at_once(study: Study) -> None:
    folder = str(study.folder)
    with study.session(cores=4) as session:
        with ph.PilotExecutor(session, max_workers=2) as pool:
            assert max(pool.map(_overlap, [folder] * 20, range(20))) <= 2
            values: list[int] = []
            later = pool.submit(sum, values)
            values.append(1)
            assert later.result(30) in (0, 1)
        with ph.PilotExecutor(session, max_workers=1) as pool:
            running, values = pool.submit(time.sleep, 0.5), [1]
            waits = pool.submit(sum, values)
            values.append(1)  # packed before this
            never = pool.submit(_square, 1)
            assert never.cancel()
            assert waits.result(30) == 1
            assert running.done()
        pool = ph.PilotExecutor(session, max_workers=1)
        first, second = pool.submit(time.sleep, 0.3), pool.submit(_square, 2)
        pool.shutdown(cancel_futures=True)
        assert first.result(0) is None
        assert second.cancelled()


def test_what_an_executor_does_not_mean_it_refuses(study: Study) -> None:
    with study.session(cores=1) as session:
        for more, what in (
            ({"mp_context": None}, r"mp_context.*options\(environment"),
            ({"max_tasks_per_child": 3}, "max_tasks_per_child.*replaced"),
            ({"other": 3}, "no other: it takes max_workers"),
            ({"max_workers": "2"}, "whole number"),
            ({"initializer": 3}, "callable"),
        ):
            with pytest.raises(TypeError, match=what):
                ph.PilotExecutor(session, **cast("Any", more))
        with pytest.raises(ValueError, match="greater than 0"):
            ph.PilotExecutor(session, max_workers=0)
        with ph.PilotExecutor(session) as pool:
            with pytest.raises(ValueError, match="chunksize"):
                pool.map(_square, [1], chunksize=0)
            with pytest.raises(ValueError, match="buffersize"):
                pool.map(_square, [1], buffersize=0)
            with pytest.raises(TypeError, match="buffersize"):
                pool.map(_square, [1], buffersize=cast("Any", "1"))
            taken: list[int] = []

            def source() -> Iterator[int]:
                for x in range(10):
                    taken.append(x)
                    yield x

            values = pool.map(_square, source(), buffersize=2)
            assert taken == [0, 1]
            assert next(values) == 0
            assert taken == [0, 1, 2]
            assert list(values) == [x * x for x in range(1, 10)]


def test_whoever_is_to_be_called_back_hears_that_the_session_was_closed(study: Study) -> None:
    ended: list[cf.Future[int]] = []
    with study.session(cores=0) as session:
        pool = ph.PilotExecutor(session, max_workers=1)
        for number in range(3):
            pool.submit(_square, number).add_done_callback(ended.append)
    wait_for(lambda: len(ended) == 3, "all are called back")
    assert all(isinstance(future.exception(), ph.SessionClosed) for future in ended)
