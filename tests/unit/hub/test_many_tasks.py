"""A session with more tasks than anybody should keep in memory: what ended is on disk alone, and nothing is missed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pilot_hitl.hub import live
from pilot_hitl.hub.desk import Desk
from pilot_hitl.hub.store import read_summary
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import Shape
from pilot_hitl.model.states import State
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.codec import pack_bodies, unpack_bodies
from tests.unit.hub.test_live import World

COUNT = 40


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(live, "RETIRE", 4)
    return World(tmp_path)


def work(world: World, bulks: int, start: int = 0) -> dict[int, State]:
    """Submit bulks of 1 to 3 tasks with keys, and let most end; return the states that they should have."""
    expected: dict[int, State] = {}
    chance = random.Random(bulks)
    at = start
    for _ in range(bulks):
        count = chance.randint(1, 3)
        first = world.submit(count, at=at, keys=b"".join((at + i).to_bytes(16, "big") for i in range(count)))
        for task in range(first, first + count):
            state = chance.choice([State.DONE] * 6 + [State.FAILED, State.SCHEDULED])
            expected[task] = state
            if state is State.DONE:
                world.done(task, b"value %d" % (task - first + at))
            elif state is State.FAILED:
                failure = Failure(Cause.EXCEPTION, "no")
                world.report(m.Report(task, world.binding, 0, state, b"", failure))
        world.live.commit()
        at += count
    return expected


def test_what_ended_is_forgotten_and_answers_as_before(world: World) -> None:
    world.add_agent()
    expected = work(world, COUNT)
    table = world.live.core.tasks
    unfinished = [task for task, state in expected.items() if state is State.SCHEDULED]
    assert len(table) <= len(unfinished) + live.RETIRE
    for task, state in expected.items():
        assert world.live.core.state_of(task) is state
    view = Desk._session_view(Desk.__new__(Desk), world.live)
    assert view["tasks"] == len(expected)
    assert view["states"] == {s.name: n for s in State if (n := list(expected.values()).count(s))}
    world.live.fetch(world.client, [(next(iter(expected)), len(expected))])
    assert set(world.outcomes()) == {task for task, state in expected.items() if state.final}


@pytest.mark.parametrize("state", ["", "DONE", "FAILED", "SCHEDULED", "CANCELED", "nonsense"])
def test_a_list_has_its_pages(world: World, state: str) -> None:
    world.add_agent()
    expected = work(world, COUNT)
    wanted = [task for task, each in sorted(expected.items()) if state in ("", each.name)]
    for offset, limit in ((0, 1000), (0, 7), (5, 7), (len(wanted) - 1, 5), (len(wanted), 5)):
        rows = Desk._tasks(world.live, {"state": state, "offset": offset, "limit": limit})
        assert [row["state"] for row in rows] == [expected[task].name for task in wanted[max(0, offset) :][:limit]]


def test_a_resend_is_no_second_task(world: World) -> None:
    world.add_agent()
    expected = work(world, COUNT)
    world.sent(m.Dispatch)
    for task in expected:
        world.live.submit(m.Submit(task, 1, 5, Shape(), pack_bodies([b"again"])))
    assert world.sent(m.Dispatch) == []


def test_what_follows_a_forgotten_task_gets_its_value(world: World) -> None:
    world.add_agent()
    expected = work(world, COUNT)
    done = next(task for task, state in expected.items() if state is State.DONE)
    failed = next(task for task, state in expected.items() if state is State.FAILED)
    world.live.commit()
    assert done in world.live.core.tasks.ended
    world.sent(m.Dispatch)
    world.told(m.Outcomes)
    after = world.submit(at=1000, deps=[done])
    (dispatch,) = world.sent(m.Dispatch)
    assert (dispatch.first, dispatch.inputs) == (after, [(done, b"value %d" % (done & 0xFFFFFFFF))])
    never = world.submit(at=1001, deps=[failed])
    assert world.outcomes()[never].state is State.FAILED


def test_a_later_run_finds_all_of_it(world: World) -> None:
    world.add_agent()
    expected = work(world, COUNT)
    world.reopen()
    assert world.live.resumed == sum(state.final for state in expected.values())
    unfinished = {task for task, state in expected.items() if not state.final}
    assert {bulk.first for bulk in world.live.core.tasks} <= {task - at for task in unfinished for at in range(3)}
    world.add_agent()
    count = len(expected)
    first = world.submit(count, keys=b"".join(i.to_bytes(16, "big") for i in range(count)))
    done = {first + at for at, state in enumerate(expected.values()) if state is State.DONE}
    outcomes = world.outcomes()
    assert {task for task, outcome in outcomes.items() if outcome.state is State.DONE} == done
    assert all(outcomes[task].payload == b"value %d" % (task - first) for task in done)
    sent = {d.first + at for d in world.sent(m.Dispatch) for at in range(len(unpack_bodies(d.bodies)))}
    assert sent == set(range(first, first + count)) - done
    world.live.close()
    found = read_summary(world.places.database)
    assert found["tasks"] == count, "a task is one, however often its script was run"
    assert found["recorded"]["DONE"] == len(done)
