"""When a pilot is given up: its agent is silent, and the beat on the shared file system has stopped for long."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot_hitl.hub.vigil import Vigil

LEASE, NOW = 5.0, 1_000_000.0


class Pilot:
    """A pilot's folder, and who watches it; the wall clock is ``NOW`` later than the monotonic one."""

    def __init__(self, folder: Path, lease: float) -> None:
        self.folder = folder / "agents"
        self.vigil = Vigil(folder, lease, NOW)
        self.heard = 0.0

    def beat(self, term: int, number: int) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / str(term)).touch()
        (self.folder / f"{term}.beat").write_text(str(number))

    def until(self, seconds: float) -> bool:
        """Look whenever it is due, until so many seconds after the beginning."""
        while self.vigil.at <= NOW + seconds:
            now = self.vigil.at
            self.vigil.look(NOW + self.heard if self.heard else 0.0, now, now - NOW)
        return self.vigil.over


@pytest.fixture
def pilot(tmp_path: Path) -> Pilot:
    return Pilot(tmp_path, LEASE)


def test_an_agent_that_is_heard_is_not_looked_after(pilot: Pilot) -> None:
    for second in range(0, 300, 10):
        pilot.heard = float(second or 1)
        assert not pilot.until(second + 9)
        assert not pilot.vigil.silent


def test_a_silent_agent_whose_beat_goes_on_lives(pilot: Pilot) -> None:
    for second in range(300):
        pilot.beat(1, second)
        assert not pilot.until(second)
    assert pilot.vigil.silent, "whether its job still runs is worth a look"


def test_without_word_and_beat_nobody_lives(pilot: Pilot) -> None:
    pilot.beat(1, 7)
    assert not pilot.until(3 * LEASE + 10 + 59)
    assert pilot.until(3 * LEASE + 10 + 60 + LEASE)


def test_a_long_lease_takes_longer(tmp_path: Path) -> None:
    pilot = Pilot(tmp_path, 20.0)
    assert not pilot.until(3 * 20 + 10 + 6 * 20 - 1)
    assert pilot.until(3 * 20 + 10 + 6 * 20 + 20)


def test_whoever_is_elected_lives(pilot: Pilot) -> None:
    pilot.beat(9, 7)
    assert not pilot.until(80)
    pilot.beat(10, 7)
    assert not pilot.until(140)
    assert pilot.until(160)


def test_no_agent_that_ever_beat_is_none(pilot: Pilot) -> None:
    assert pilot.until(100)


def test_a_wall_clock_that_jumps_ends_nothing(pilot: Pilot) -> None:
    pilot.beat(1, 1)
    pilot.vigil.look(0.0, NOW + 30, 30.0)
    pilot.vigil.look(0.0, NOW + 7200, 31.0)
    assert pilot.vigil.silent
    assert not pilot.vigil.over


def test_one_that_is_heard_again_is_watched_from_then_on(pilot: Pilot) -> None:
    pilot.beat(1, 1)
    assert pilot.until(120)
    pilot.heard = 121.0
    assert not pilot.until(200)
    assert pilot.until(250)
