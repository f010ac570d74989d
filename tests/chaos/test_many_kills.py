"""Random kills of everything that runs, in work of every kind: nothing is lost, runs twice or is left.

Which kinds of process are killed, which of them, how and after how long is decided by a seed; what they do at that
moment is not. ``PILOT_HITL_KILLS=200`` is the number of kills of the long test, ``PILOT_HITL_SEED=7`` another sequence.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any, NamedTuple

import psutil
import pytest

from tests.behaviour.studies import Study, append, wait_for
from tests.chaos.mixed import SCRIPT
from tests.seeds import first

SHORT, LONG = 10, int(os.environ.get("PILOT_HITL_KILLS") or 60)
WEIGHTS = {"hub": 8, "agent": 8, "root": 4, "spawner": 10, "nursery": 10, "worker": 30, "task": 24, "replica": 6}
WINDOW = 66.0
BOUNDS = {"hub": 5, "agent": 4, "root": 2}
"""More of these in a window are given up, as what cannot be helped."""
PATIENCE = 120.0


class Kill(NamedTuple):
    """One kill: after ``pause`` seconds, of the process at ``which`` (0 to 1) of its kind, ``stopped`` for so long."""

    kind: str
    which: float
    pause: float
    stopped: float


def sequence(seed: int, count: int) -> list[Kill]:
    chance = random.Random(seed)
    kinds = chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
    return [
        Kill(kind, chance.random(), chance.choice((0.05, 0.3, 1.0)), chance.choice((0.0, 0.0, 0.01, 0.6)))
        for kind in kinds
    ]


def _kind(process: psutil.Process) -> str:
    """Return what a process of the home is; nothing of what is not to be killed by itself."""
    words = process.cmdline()
    parent = process.parent()
    above = parent.cmdline() if parent is not None else []
    if "pilot_hitl.hub" in words:
        return "hub"
    if "pilot_hitl_agent" in words:
        return "agent"
    if any(word.endswith("spawner_main.py") for word in words):
        return "spawner" if "--serve" in words else "root"
    if any("nursery import main" in word for word in words):
        return "worker" if any("nursery import main" in word for word in above) else "nursery"
    if "pilot_hitl_services" in words:
        return "replica"
    return "task" if any(word.endswith("spawner_main.py") for word in above) else ""


def _victims(study: Study, kind: str) -> list[psutil.Process]:
    found = []
    for stray in study.strays():
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(int(stray.split()[0]))
            if _kind(process) == kind:
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


class Person(threading.Thread):
    """Answers what is asked."""

    def __init__(self, study: Study, seed: int) -> None:
        super().__init__()
        self.study, self.chance = study, random.Random(seed)
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.3):
            found = self._inbox("list", "--json")
            for each in json.loads(found.stdout) if found.returncode == 0 else []:
                answer = self.chance.choice(each["choices"])
                # An answer may be refused, or cut off: the question is seen again then.
                self._inbox("answer", each["id"], answer)

    def _inbox(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pilot_hitl", "inbox", *words],
            env={**os.environ, **self.study.environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


class Killer:
    """Kills in order, and no more of a kind at a time than is borne."""

    def __init__(self, study: Study, script: subprocess.Popen[str]) -> None:
        self.study, self.script = study, script
        self.done: Counter[str] = Counter()
        self.when: dict[str, list[float]] = {}

    def kill(self, kill: Kill) -> None:
        time.sleep(kill.pause)
        bound = BOUNDS.get(kill.kind)
        times = self.when.setdefault(kill.kind, [])
        while bound and len([at for at in times if at > time.monotonic() - WINDOW]) >= bound and self.runs:
            time.sleep(0.1)
        end = time.monotonic() + PATIENCE
        while self.runs and not self._hit(kill):
            assert time.monotonic() < end, f"there is no {kill.kind}"
            time.sleep(0.01)
        times.append(time.monotonic())

    @property
    def runs(self) -> bool:
        return self.script.poll() is None

    def _hit(self, kill: Kill) -> bool:
        there = _victims(self.study, kill.kind)
        if not there:
            return False
        victim = there[int(kill.which * len(there))]
        try:
            if kill.stopped:
                victim.suspend()
                time.sleep(kill.stopped)
            victim.kill()
        except psutil.Error:
            return False
        self.done[kill.kind + (" stopped" if kill.stopped else "")] += 1
        append(str(self.study.folder / "killed"), f"{kill.kind} {victim.pid} {kill.stopped} {time.time()}")
        return True


def _account(study: Study, killer: Killer, told: dict[str, Any]) -> Counter[str]:
    """Check what ran against what returned; return how often each task ran."""
    began: dict[str, list[float]] = {}
    for line in study.lines("ran"):
        key, at = line.split()
        began.setdefault(key, []).append(float(at))
    returned = {key: float(at) for key, at in (line.split() for line in study.lines("returned"))}
    runs = Counter({key: len(times) for key, times in began.items()})
    again = {key: times for key, times in began.items() if max(times) > returned.get(key, 1e12)}
    assert not again, f"ran after it had returned: {again}"
    assert not study.lines("overlaps"), f"two attempts at a time: {study.lines('overlaps')}"
    outside = {key: count for key, count in runs.items() if "outside" in key and count > 1}
    assert not outside, f"acts outside, and ran twice: {outside}"
    missing = [key for key in returned if not runs[key]]
    assert not missing, f"returned, and never ran: {missing}"
    print(f"kills {dict(killer.done)}; {told}; attempts {dict(sorted(Counter(runs.values()).items()))}")
    return runs


def _kills(study: Study, seed: int, count: int) -> None:
    script = study.start(SCRIPT)
    killer, person = Killer(study, script), Person(study, seed)
    person.start()
    try:
        wait_for(lambda: study.lines("ran") or script.poll() is not None, "it works", PATIENCE)
        for kill in sequence(seed, count):
            if script.poll() is not None:
                break
            killer.kill(kill)
        (study.folder / "enough").touch()
        out, err = script.communicate(timeout=2 * PATIENCE)
    finally:
        person.over.set()
        person.join()
    assert script.returncode == 0, f"{killer.done}\n{out}\n{err}"
    told = json.loads(out.splitlines()[-1])
    assert not told["wrong"], f"{killer.done}\n{told}\n{err}"
    assert killer.done.total() == count
    _account(study, killer, told)
    for kind in ("calls", "maps", "programs", "nested", "branches", "answers", "requests"):
        assert told["results"][kind], f"no {kind}"


def test_ten_random_kills(study: Study) -> None:
    _kills(study, first(1), SHORT)


@pytest.mark.long
@pytest.mark.timeout(60 + 6 * LONG)
def test_many_random_kills(study: Study) -> None:
    _kills(study, first(2), LONG)
