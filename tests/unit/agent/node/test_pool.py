from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pilot_hitl_agent.node.pool import Place, Pool
from tests.seeds import examples

HERE, THERE = Place(1, (), 0, 0), Place(2, (), 0, 0)


@settings(max_examples=examples(100), stateful_step_count=40, deadline=None)
class PoolMachine(RuleBasedStateMachine):
    """Lanes take and give back workers while conditions are decided and workers die."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(3)
        self.numbers = 0
        self.lanes = 0
        self.tags: dict[int, int] = {}
        self.places: dict[int, Place] = {}
        self.decided: set[int] = set()

    def gone(self, workers: list[int]) -> None:
        for worker in workers:
            del self.tags[worker]
            del self.places[worker]

    @rule(place=st.sampled_from([HERE, THERE]), condition=st.integers(0, 3))
    def take(self, place: Place, condition: int) -> None:
        self.lanes += 1
        tag = 0 if condition in self.decided else condition
        idle = {worker for worker, seat in self.pool.seats.items() if not seat.lane}
        worker = self.pool.take(self.lanes, place, condition)
        if worker:
            assert worker in idle
            assert self.places[worker] == place
            assert self.tags[worker] in (0, tag), "another speculation's worker"
        else:
            assert not [each for each in idle if self.places[each] == place and self.tags[each] in (0, tag)]
            self.numbers += 1
            worker = self.numbers
            self.pool.add(worker, self.lanes, place, condition)
            self.places[worker] = place
        self.tags[worker] = tag
        assert self.pool.by_lane[self.lanes] == worker

    @rule(place=st.sampled_from([HERE, THERE]))
    def spare(self, place: Place) -> None:
        if not self.pool.lacks_spare(place):
            return
        self.numbers += 1
        self.places[self.numbers] = place
        self.tags[self.numbers] = 0
        gone = self.pool.add_spare(self.numbers, place)
        self.gone(gone)
        assert self.numbers in gone or not self.pool.lacks_spare(place)
        assert set(self.pool.idle(0)) == {worker for worker, seat in self.pool.seats.items() if not seat.lane}

    @precondition(lambda self: self.pool.by_lane)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.pool.by_lane)))
        gone = self.pool.release(lane)
        assert not set(gone) & set(self.pool.seats)
        self.gone(gone)

    @rule(condition=st.integers(1, 3), truth=st.booleans())
    def settle(self, condition: int, truth: bool) -> None:
        busy = set(self.pool.by_lane.values())
        gone = self.pool.settle(condition, truth=truth)
        tagged = {worker for worker, tag in self.tags.items() if tag == condition}
        assert set(gone) == (set() if truth else tagged - busy)
        self.gone(gone)
        if truth:
            self.decided.add(condition)
            self.tags.update(dict.fromkeys(tagged, 0))

    @precondition(lambda self: self.pool.seats)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.pool.seats)))
        self.pool.drop(worker)
        self.gone([worker])
        self.pool.drop(worker)

    @invariant()
    def the_pool_is_sound(self) -> None:
        self.pool.check()
        assert {worker: seat.tag for worker, seat in self.pool.seats.items()} == self.tags


TestPoolMachine = PoolMachine.TestCase


def test_the_one_idle_for_longest_goes() -> None:
    pool = Pool(2)
    for number in (1, 2, 3):
        pool.add(number, number, HERE, 0)
    assert pool.release(2) == []
    assert pool.release(1) == []
    assert pool.release(3) == [2]
    assert pool.release(77) == []


def test_an_equal_tag_is_better_than_none() -> None:
    pool = Pool(5)
    pool.add(1, 1, HERE, 4)
    pool.add(2, 2, HERE, 0)
    pool.release(1)
    pool.release(2)
    assert pool.take(3, HERE, 4) == 1
    assert pool.take(4, HERE, 4) == 2
    assert pool.seats[2].tag == 4
