"""What an agent left behind counts as if it had come over the wire, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from pilot_hitl.hub import journal
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.states import State
from pilot_hitl.study import events as ev
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.codec import encode
from tests.unit.hub.test_live import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def leave(world: World, reports: Sequence[m.Report], *, epoch: int = 1, pilot: int = 1) -> Path:
    """Do as an agent that nobody acknowledges."""
    path = world.places.pilot(pilot) / "journal"
    path.parent.mkdir(parents=True, exist_ok=True)
    spans = m.Spans(2, world.binding, 1.0, 2.0, 3.0, True, 4, [], [])
    frame = encode([m.Reports(1, list(reports)), spans])
    path.write_bytes(msgspec.msgpack.encode((epoch, world.binding, frame)))
    return path


def done(world: World, task: int, run: int = 0, payload: bytes = b"v") -> m.Report:
    return m.Report(task, world.binding, run, State.DONE, payload, began=1.0, ended=2.0)


def unfinished(world: World, task: int, run: int = 0) -> m.Report:
    return m.Report(task, world.binding, run, State.QUEUED, failure=Failure(Cause.PILOT_ENDED, "its walltime is over"))


def end(world: World, pilot: int = 1) -> None:
    journal.take(world.live, pilot)
    world.live.feed(ev.PilotEnded(pilot, final=True))


def test_a_hub_that_lost_the_connection_takes_it_in(world: World) -> None:
    world.add_agent()
    first = world.submit(3)
    path = leave(world, [done(world, first), unfinished(world, first + 1)])
    end(world)
    assert path.exists(), "until it is written"
    assert {task: outcome.state for task, outcome in world.outcomes().items()} == {first: State.DONE}
    assert not path.exists()
    world.add_agent()
    assert sorted((d.first, d.count, d.run) for d in world.sent(m.Dispatch)) == [(first + 1, 1, 1), (first + 2, 1, 1)]
    assert next(iter(world.live.store.rows("SELECT pilot, binding, final FROM life"))) == (1, 1, 1)


def test_a_new_hub_takes_it_in_and_the_rest_runs_again(world: World) -> None:
    world.add_agent()
    first = world.submit(3)
    world.live.commit()
    world.reopen()
    path = leave(world, [done(world, first), done(world, first + 2), unfinished(world, first + 1)])
    world.live.feed(ev.PilotAsked(1))
    assert journal.take(world.live, 1) == 3
    world.live.commit()
    assert not path.exists()
    states = dict(world.live.store.states(first, 3))
    assert states == {first: State.DONE, first + 2: State.DONE}
    assert journal.take(world.live, 1) == 0
    world.live.feed(ev.PilotEnded(1, final=True))
    world.live.feed(ev.Revive(1))
    world.add_agent()
    assert [(d.first, d.count) for d in world.sent(m.Dispatch)] == [(first + 1, 1)]


def test_what_was_decided_meanwhile_stays(world: World) -> None:
    world.add_agent()
    first = world.submit(1)
    report = done(world, first, payload=b"late")
    path = leave(world, [report])
    world.live.feed(ev.PilotEnded(1, final=False))  # so it is bound anew
    world.add_agent()
    world.report(m.Report(first, world.binding, 1, State.DONE, b"present"))
    end(world)
    assert [outcome.payload for outcome in world.outcomes().values()] == [b"present"]
    assert not path.exists()


def test_what_runs_elsewhere_by_now_is_not_disturbed(world: World) -> None:
    world.add_agent()
    first = world.submit(1)
    leave(world, [done(world, first, payload=b"late")])
    world.live.feed(ev.PilotEnded(1, final=False))
    world.add_agent()
    world.sent(m.Dispatch)
    end(world)
    assert not world.outcomes()
    world.report(m.Report(first, world.binding, 1, State.DONE, b"present"))
    assert [outcome.payload for outcome in world.outcomes().values()] == [b"present"]


def test_held_results_stay_held(world: World) -> None:
    world.add_agent()
    ask = world.ask()
    first = world.submit(1, condition=world.branch(ask, "yes"))
    leave(world, [done(world, first)])
    end(world)
    world.live.commit()
    assert dict(world.live.store.states(first, 1)) == {first: State.HELD}


def test_one_of_a_later_life_of_the_file_is_not_believed(world: World) -> None:
    world.add_agent()
    first = world.submit(1)
    leave(world, [done(world, first)], epoch=99)
    end(world)
    assert not world.outcomes()


def test_one_that_cannot_be_read_is_kept_aside(world: World) -> None:
    world.add_agent()
    world.submit(1)
    path = leave(world, [])
    path.write_bytes(b"nonsense")
    end(world)
    assert not path.exists()
    assert path.with_name("journal.unreadable").read_bytes() == b"nonsense"
