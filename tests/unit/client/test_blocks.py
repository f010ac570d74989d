"""``with cp.branch(…)``: a block that only declares."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest

import pilot_hitl as ph
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.wire import messages as m
from tests.unit.client.fakehub import FakeHub

CHOICES = ["accept", "refine"]


def double(x: Any) -> Any:
    return 2 * x


class Oops(Exception):
    pass


def test_a_block_sends_everything_at_its_end_and_nothing_before(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    with gate.branch("refine", probability=0.3) as branch:
        one = session.call(double, 1)
        two = session.options(cores=2).call(double, one)
        many = session.map(double, [3, 4])
        third = session.submit(ph.TaskDescription(executable="true"))
        fourth = branch.call(double, 5)
        inner = session.checkpoint("inner", choices=["x"])
        deep = inner.branch("x").call(double, 6)
        session.flush()
        assert hub.of(m.Submit) == []
        assert len(hub.of(m.Ask)) == 1
        assert not one.done()
    session.flush()
    assert [each.result(5) for each in (one, two, *many, fourth, deep)] == [2, 4, 6, 8, 10, 12]
    assert third.result(5).exit_code == 0
    assert one.condition == two.condition == third.condition == fourth.condition == branch.condition
    assert deep.condition > branch.condition
    conditions = {put.condition: put for put in hub.of(m.PutCondition)}
    submits = hub.of(m.Submit)
    assert [len(conditions[submit.condition].terms) for submit in submits] == [1] * (len(submits) - 1) + [2]
    # What a condition speaks of is asked before it is made known, and that before it is used.
    deepest = next(put for put in conditions.values() if len(put.terms) == 2)
    order = [hub.seen.index(each) for each in (hub.of(m.Ask)[1], deepest, submits[-1])]
    assert order == sorted(order)
    assert conditions[hub.of(m.Ask)[1].condition].terms == conditions[submits[0].condition].terms


def test_a_block_that_raises_sends_nothing(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    called = threading.Event()
    with suppress(Oops), gate.branch("refine"):
        one = session.call(double, 1)
        many = session.map(double, range(1000))
        last = many[-1]
        inner = session.checkpoint("inner", choices=["x"])
        deep = inner.branch("x").call(double, 2)

        @gate.on("refine")
        def body(_branch: ph.Branch) -> None:
            called.set()

        raise Oops
    for future in (one, many[0], last, deep):
        with pytest.raises(ph.TaskCanceled, match=r"never submitted.*Oops"):
            future.result(5)
        assert future.cancelled()
    assert many.done()
    with pytest.raises(ph.CheckpointWithdrawn, match="never submitted"):
        inner.result(5)
    with pytest.raises(ph.TaskCanceled, match="never submitted"):
        body.result(5)
    session.checkpoint("inner", choices=["x"])  # the name is free again
    session.flush()
    assert hub.of(m.Submit) == []
    assert len(hub.of(m.Ask)) == 2
    assert not called.is_set()
    assert session.call(double, 3).result(5) == 6
    gate.respond("refine")
    assert not called.is_set()


def test_nothing_undecided_is_waited_for_in_a_block(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    other = session.checkpoint("other", choices=CHOICES)
    needed = session.call(double, 1)
    before = gate.branch("refine").call(double, 2)
    assert before.result(5) == 4  # outside it waits
    hub.hold = True
    pending = gate.branch("refine").call(double, 3)
    several = gate.branch("refine").map(double, [3])
    chosen = gate.select({"refine": pending})
    with gate.branch("refine"):
        declared = session.call(double, 4)
        assert needed.result(5) == 2
        assert before.result() == 4  # it has ended, whatever is decided
        for attempt in (
            declared.result, declared.exception, pending.result, pending.exception, several.results, several.wait,
            gate.result, gate.answer, other.result, chosen.result, chosen.exception,
            lambda: ph.wait([needed, pending]), lambda: ph.as_completed([pending]),
            lambda: asyncio.run(_awaited(pending)), lambda: asyncio.run(_awaited(declared)),
        ):  # fmt: skip
            with pytest.raises(ph.Undecided, match=r"only declares: pass the future on .* @cp\.on"):
                attempt()
        outside: list[str] = []
        thread = threading.Thread(target=lambda: outside.append(_waited(pending)))
        thread.start()
        thread.join(5)
        assert outside == ["TimeoutError"], "another thread waits as always"
    with pytest.raises(TimeoutError):
        declared.result(0.01)
    hub.release()
    assert (declared.result(5), pending.result(5)) == (8, 6)
    gate.respond("refine")
    with gate.branch("refine"):
        assert gate.result() == "refine"
        assert pending.result() == 6
        with pytest.raises(ph.Undecided, match="sent at its end"):
            session.call(double, 5).result()


async def _awaited(future: ph.TaskFuture[Any]) -> Any:
    return await future


def _waited(future: ph.TaskFuture[Any]) -> str:
    try:
        future.result(0.05)
    except Exception as error:  # the test asks which
        return type(error).__name__
    return "a value"


def test_a_decided_branch_can_be_waited_for_in_a_block(session: ph.Session, hub: FakeHub) -> None:
    gate, other = session.checkpoint("mesh", choices=CHOICES), session.checkpoint("other", choices=CHOICES)
    gate.respond("refine")
    gate.result(5)
    hub.hold = True
    wanted = gate.branch("refine").call(double, 3)
    with other.branch("accept"):
        timer = threading.Timer(0.05, hub.release)
        timer.start()
        assert wanted.result(5) == 6
        timer.join()


def test_blocks_nest(session: ph.Session, hub: FakeHub) -> None:
    gate, other = session.checkpoint("mesh", choices=CHOICES), session.checkpoint("other", choices=CHOICES)
    refine, accept = gate.branch("refine"), other.branch("accept")
    with refine:
        one = session.call(double, 1)
        with accept:
            both = session.call(double, one)
            session.flush()
            assert hub.of(m.Submit) == []
        with suppress(Oops), accept:
            lost = session.call(double, 3)
            raise Oops
        with pytest.raises(ph.ContradictoryCondition, match="mesh"), gate.branch("accept"):
            pass
        with pytest.raises(ph.ContradictoryCondition, match="mesh"):
            gate.branch("accept").call(double, 4)
        session.flush()
        assert hub.of(m.Submit) == []
    after = session.call(double, 5)
    assert (one.result(5), both.result(5), after.result(5)) == (2, 4, 10)
    assert one.condition == refine.condition
    assert both.condition == refine.condition | accept.condition
    assert after.condition == frozenset()
    assert lost.cancelled()
    with refine, refine:  # the same handle twice
        again = session.call(double, 6)
    assert again.result(5) == 12


def test_what_a_block_declares_is_its_own_until_it_ends(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    told: list[str] = []

    def elsewhere(*things: Any) -> None:
        for each in things:
            try:
                if isinstance(each, ph.TaskFuture):
                    session.call(double, each)
                else:
                    each.branch("x").call(double, 1)
            except ph.Undecided as error:
                told.append(str(error))

    with gate.branch("refine"):
        one, inner = session.call(double, 1), session.checkpoint("inner", choices=["x"])
        thread = threading.Thread(target=elsewhere, args=(one, inner))
        thread.start()
        thread.join(5)
        assert [("block that has not ended" in each) for each in told] == [True, True]
        one.cancel()
    session.flush()
    kinds = [type(each) for each in hub.seen]
    assert kinds.index(m.Cancel) > kinds.index(m.Submit)


def test_work_of_a_branch_that_was_not_chosen_is_not_sent(hub: FakeHub) -> None:
    with ph.Session("study", home=hub.home) as first:
        first.checkpoint("mesh", choices=CHOICES)
    hub.answers["mesh"] = '"accept"'
    before = len(hub.seen)
    with ph.Session("study", home=hub.home) as session:
        gate = session.checkpoint("mesh", choices=CHOICES)
        refine = gate.branch("refine", probability=0.5)
        with refine:
            lost = [
                session.call(double, 1),
                *session.map(double, [1, 2]),
                session.call(double, session.call(double, 7)),
            ]
            inner = session.checkpoint("inner", choices=["x"])
            lost.append(inner.branch("x").call(double, 3))
        lost.append(session.call(double, refine.call(double, 4)))
        mixed = session.map(double, [refine.call(double, 4), 5])
        for future in [*lost, mixed[0]]:
            with pytest.raises(ph.Discarded, match=r"'mesh', which was answered \"accept\""):
                future.result(5)
        assert "not submitted" in lost[0].explain()
        assert mixed[1].result(5) == 10
        with pytest.raises(ph.CheckpointWithdrawn, match="not asked"):
            inner.result(5)
        real = gate.branch("accept").call(double, 6)
        assert real.result(5) == 12
        session.flush()
    sent = [each for each in hub.seen[before:] if isinstance(each, m.Submit)]
    assert sum(each.count for each in sent) == 2
    assert len([each for each in hub.seen[before:] if isinstance(each, m.Ask)]) == 1


def test_keys_do_not_depend_on_the_answer(hub: FakeHub) -> None:
    keys: list[bytes] = []
    for answer in ("", '"accept"'):
        if answer:
            hub.answers["mesh"] = answer
        before = len(hub.seen)
        with ph.Session("study", home=hub.home) as session:
            gate = session.checkpoint("mesh", choices=CHOICES)
            gate.branch("refine").call(double, 1)
            with gate.branch("accept"):
                session.call(double, 1)
            session.flush()
        keys.append([each for each in hub.seen[before:] if isinstance(each, m.Submit)][-1].keys[-16:])
    assert keys[0] == keys[1]


def test_executables_come_after_futures(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    one, many = gate.branch("accept").call(double, 1), session.map(double, [1, 2])
    task = ph.TaskDescription(executable="true")
    last = session.submit(task, after=[one, many])
    assert last.result(5).exit_code == 0
    assert last.condition == one.condition
    assert hub.of(m.Submit)[-1].deps == [one._id, *(each._id for each in many)]
    keys = [session.submit([task, task], after=one)[0]._key, session.submit(task)._key, last._key]
    assert len(set(keys)) == 3
    wrong: Any
    for wrong in ([1], 1, gate.select({"accept": one})):
        with pytest.raises((ph.DescriptionError, ph.PayloadError)):
            session.submit(task, after=wrong)
    with pytest.raises(ph.ContradictoryCondition):
        gate.branch("refine").submit(task, after=one)


def test_too_many_open_questions_are_not_assumed(session: ph.Session) -> None:
    branch: Any = session
    gates = []
    for level in range(8):
        gates.append(branch.checkpoint(f"level {level}", choices=["go"]))
        branch = gates[-1].branch("go")
    ninth = branch.checkpoint("one more", choices=["go"])
    with pytest.raises(ph.DescriptionError, match="8 is the limit: wait for"):
        ninth.branch("go")
    gates[0].respond("go")
    gates[0].result(5)
    assert len(ninth.branch("go").condition) == 9


def test_a_checkpoint_that_was_taken_back_decides(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    number = gate.wait_number(5)
    hub.tell(m.CheckpointUpdate(gate.handle, number, CheckpointState.WITHDRAWN))
    with pytest.raises(ph.CheckpointWithdrawn):
        gate.result(5)
    with pytest.raises(ph.Discarded, match="taken back"):
        gate.branch("accept").call(double, 1).result(5)


def test_conditions_are_inherited_everywhere(session: ph.Session, hub: FakeHub) -> None:
    gate = session.checkpoint("mesh", choices=CHOICES)
    accept, refine = gate.branch("accept"), gate.branch("refine")
    yes, no = accept.call(double, 1), refine.call(double, 2)
    many = session.map(double, [yes, 5, {"deep": [yes]}])
    assert [each.condition for each in many] == [accept.condition, frozenset(), accept.condition]
    shown = session.checkpoint("shown", choices=["x"], show=[yes])
    assert shown.branch("x").condition > accept.condition
    nested = session.call(double, session.call(double, [shown.branch("x").call(double, 1)]))
    assert len(nested.condition) == 2
    for attempt in (
        lambda: session.call(max, yes, no),
        lambda: session.map(double, [[yes, no]]),
        lambda: session.checkpoint("both", show=[yes, no]),
        lambda: refine.checkpoint("one", show=[yes]),
        lambda: refine.call(double, nested),
        lambda: refine.map(double, [1, many[2]]),
    ):
        with pytest.raises(ph.ContradictoryCondition, match=r"'mesh'.*select\(\)"):
            attempt()
    session.flush()
    conditions = {put.condition: len(put.terms) for put in hub.of(m.PutCondition)}
    assert conditions[hub.of(m.Ask)[1].condition] == 1
    assert len(hub.of(m.Ask)) == 2


def test_code_that_outlives_a_block_is_not_lost(session: ph.Session) -> None:
    """A task of asyncio that was begun in a block goes on after it, with the block's context."""
    gate, other = session.checkpoint("mesh", choices=CHOICES), session.checkpoint("other", choices=CHOICES)
    futures: list[ph.TaskFuture[Any]] = []

    async def later(ended: asyncio.Event) -> None:
        await ended.wait()
        futures.append(session.call(double, 1))
        futures.extend(session.map(double, [1]))
        inner = session.checkpoint("inner", choices=["x"])
        futures.append(inner.branch("x").call(double, 2))
        assert await futures[0] == 2

    async def script() -> None:
        ended = asyncio.Event()
        with gate.branch("refine"):
            declared = session.call(double, 0)
            assert "sent at the block's end" in declared.explain()
            with other.branch("accept"):
                task = asyncio.create_task(later(ended))
        with pytest.raises(Oops), gate.branch("accept"):
            raise Oops
        ended.set()
        await task

    asyncio.run(script())
    assert [each.result(5) for each in futures] == [2, 2, 4]
    assert [len(each.condition) for each in futures] == [2, 2, 3]
