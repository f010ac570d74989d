"""Which MPI group serves which call: the decisions, without any process."""

from __future__ import annotations

import signal

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pilot_hitl_agent.node import groupcore as gc
from pilot_hitl_agent.node.groupcore import GroupCore, Told, Verdict
from tests.seeds import examples

HERE = {"small": 2, "other": 2, "large": 3}


class Party:
    """A group as it really is: what its launcher and its ranks do."""

    def __init__(self, key: str, launcher: bool) -> None:
        self.key = key
        self.launcher = launcher
        self.doomed = False
        """Its ranks were killed before they showed up."""
        self.coming = set(range(HERE[key]))
        self.alive: set[int] = set()
        self.killed: set[int] = set()
        self.ready: set[int] = set()
        self.task = 0
        self.lane = 0
        self.running: set[int] = set()
        """Ranks that were given the call and have not said how it ended; ``begun`` are those that have begun it."""
        self.begun: set[int] = set()


class World(RuleBasedStateMachine):
    """Calls come and are ended while ranks come up, speak, die and hang."""

    def __init__(self) -> None:
        super().__init__()
        self.core = GroupCore(5)
        self.now = 0.0
        self.numbers = 0
        self.leads = self.alone = True
        self.parties: dict[str, Party] = {}
        self.lanes: dict[int, int] = {}
        """The call of each lane; 0 between two."""
        self.told: dict[int, Told] = {}
        self.begun: set[int] = set()
        self.paused: set[int] = set()
        self.keys: dict[int, str] = {}
        self.conditions: dict[int, int] = {}
        self.true: set[int] = set()
        self.tags: dict[str, int] = {}

    @initialize(leads=st.booleans(), alone=st.booleans())
    def begin(self, leads: bool, alone: bool) -> None:
        self.alone = alone
        self.leads = leads or alone

    def step(self, event: gc.Event) -> None:
        for order in self.core.step(event, self.now):
            self.obey(order)
        self.core.check()

    def obey(self, order: gc.Instruction) -> None:
        if isinstance(order, gc.Bring):
            assert self.leads
            assert order.token not in self.parties
            self.parties[order.token] = Party(self.keys[self.lanes[order.lane]], launcher=True)
        elif isinstance(order, gc.Give):
            party = self.parties[order.token]
            assert party.ready == party.alive == set(range(HERE[party.key])), "all ranks wait"
            assert not party.running & party.alive, "one call at a time"
            assert order.task not in self.begun, "a call begins in one group only"
            assert order.task not in self.paused, "what is suspended does not begin"
            self.nothing_runs(order.task)
            assert self.lanes[order.lane] == order.task
            assert party.key == self.keys[order.task]
            condition = self.conditions[order.task]
            tag = 0 if condition in self.true else condition
            assert self.tags.get(order.token, 0) in (0, tag), "another speculation's group"
            self.tags[order.token] = tag
            party.task, party.lane, party.running, party.begun = order.task, order.lane, set(party.alive), set()
        elif isinstance(order, gc.Hit):
            party = self.parties[order.token]
            if order.number == signal.SIGKILL:
                party.killed |= party.alive
        elif isinstance(order, gc.EndLauncher):
            party = self.parties[order.token]
            assert party.launcher
            party.doomed = True
            party.killed |= party.alive
            party.coming.clear()
        elif isinstance(order, Told):
            assert order.task not in self.told, "one end each"
            assert self.lanes[order.lane] == order.task
            assert order.verdict is not Verdict.UNSTARTED or order.task not in self.begun, "what began was started"
            self.told[order.task] = order
            self.lanes[order.lane] = 0
            self.nothing_runs(order.task)
            for party in self.parties.values():
                if party.task == order.task:
                    party.task = 0
        else:
            party = self.parties.pop(order.token)
            self.tags.pop(order.token, None)
            assert not party.alive
            assert not party.launcher

    def nothing_runs(self, task: int) -> None:
        """No rank runs, or has before it, a call that is told or given to others."""
        for party in self.parties.values():
            assert party.task != task or not party.running & party.alive, "nothing of it runs any more"

    # --- calls ------------------------------------------------------------------------------------------------------

    @rule(key=st.sampled_from(sorted(HERE)), condition=st.integers(0, 2), same=st.booleans())
    def want(self, key: str, condition: int, same: bool) -> None:
        free = [lane for lane, task in self.lanes.items() if not task]
        lane = free[0] if same and free else len(self.keys) + 1000
        self.numbers += 1
        task = self.numbers
        self.lanes[lane], self.keys[task], self.conditions[task] = task, key, condition
        self.step(gc.Want(lane, task, key, HERE[key], self.leads, self.alone, condition, f"{task:06}.0"))

    @precondition(lambda self: any(self.lanes.values()))
    @rule(data=st.data(), number=st.sampled_from([signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT]))
    def ask(self, data: st.DataObject, number: int) -> None:
        lane = data.draw(st.sampled_from([lane for lane, task in self.lanes.items() if task]))
        self.paused.discard(self.lanes[lane])
        if number == signal.SIGSTOP:
            self.paused.add(self.lanes[lane])
        self.step(gc.Asked(lane, number))

    @precondition(lambda self: not all(self.lanes.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from([lane for lane, task in self.lanes.items() if not task]))
        del self.lanes[lane]
        self.step(gc.Released(lane))

    @rule(condition=st.integers(1, 2), truth=st.booleans())
    def settle(self, condition: int, truth: bool) -> None:
        if truth:
            self.true.add(condition)
            self.tags = {token: 0 if tag == condition else tag for token, tag in self.tags.items()}
        elif condition not in self.true:
            self.step(gc.Settled(condition, False))
            return
        self.step(gc.Settled(condition, True))

    @rule()
    def end_idle(self) -> None:
        self.step(gc.EndIdle())

    @rule(seconds=st.sampled_from([0.1, 0.3, 2.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = self.core.next_deadline()
        if due is not None and due <= self.now:
            self.step(gc.Passed())
            due = self.core.next_deadline()
        assert due is None or due > self.now

    # --- ranks ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.alone and not self.leads)
    @rule(key=st.sampled_from(sorted(HERE)))
    def foreign(self, key: str) -> None:
        """Another node starts a group that has a part here."""
        self.numbers += 1
        self.parties[f"{self.numbers:06}.1"] = Party(key, launcher=False)

    @precondition(lambda self: any(party.coming for party in self.parties.values()))
    @rule(data=st.data(), able=st.integers(0, 5))
    def come(self, data: st.DataObject, able: int) -> None:
        """A rank comes up, or says that it cannot."""
        token = data.draw(st.sampled_from([token for token, party in self.parties.items() if party.coming]))
        rank = self.join(token)
        if not able:
            self.step(gc.Unready(token, rank))

    @precondition(lambda self: any(party.coming for party in self.parties.values()))
    @rule()
    def come_up(self) -> None:
        """All ranks that are on their way are there, and find each other."""
        for token, party in list(self.parties.items()):
            while party.coming:
                self.join(token)
        self.ready()

    def join(self, token: str) -> int:
        party = self.parties[token]
        rank = party.coming.pop()
        party.alive.add(rank)
        self.step(gc.Joined(token, rank, party.key, HERE[party.key], self.alone))
        return rank

    @precondition(lambda self: any(party.alive - party.ready for party in self.parties.values()))
    @rule()
    def ready(self) -> None:
        """Where all ranks are there, they find each other."""
        for token, party in list(self.parties.items()):
            if party.coming or party.alive != set(range(HERE[party.key])):
                continue
            for rank in sorted(party.alive - party.ready):
                party.ready.add(rank)
                self.step(gc.Ready(token, rank))

    @precondition(lambda self: any(party.running & party.alive for party in self.parties.values()))
    @rule(data=st.data())
    def begin_call(self, data: st.DataObject) -> None:
        """A rank begins what it was given, maybe while a signal that ends it is on its way."""
        token = data.draw(
            st.sampled_from([token for token, party in self.parties.items() if party.running & party.alive])
        )
        party = self.parties[token]
        party.begun.add(data.draw(st.sampled_from(sorted(party.running & party.alive))))
        self.begun.add(party.task)

    @precondition(lambda self: any(party.running & party.alive for party in self.parties.values()))
    @rule(data=st.data(), failed=st.booleans())
    def say(self, data: st.DataObject, failed: bool) -> None:
        token = data.draw(
            st.sampled_from([token for token, party in self.parties.items() if party.running & party.alive])
        )
        party = self.parties[token]
        rank = data.draw(st.sampled_from(sorted(party.running & party.alive)))
        party.running.discard(rank)
        party.begun.add(rank)
        self.begun.add(party.task)
        self.step(gc.Said(token, rank, party.task, failed))

    @precondition(lambda self: any(party.alive for party in self.parties.values()))
    @rule(data=st.data(), killed=st.booleans())
    def die(self, data: st.DataObject, killed: bool) -> None:
        token = data.draw(st.sampled_from([token for token, party in self.parties.items() if party.alive]))
        party = self.parties[token]
        rank = data.draw(st.sampled_from(sorted((party.killed & party.alive if killed else set()) or party.alive)))
        self.bury(token, party, rank)

    @precondition(lambda self: any(party.running & party.alive for party in self.parties.values()))
    @rule(data=st.data())
    def die_in_a_call(self, data: st.DataObject) -> None:
        """A rank that was given a call dies, before it begins or after."""
        found = [token for token, party in self.parties.items() if party.running & party.alive]
        token = data.draw(st.sampled_from(found))
        party = self.parties[token]
        self.bury(token, party, data.draw(st.sampled_from(sorted(party.running & party.alive))))

    def bury(self, token: str, party: Party, rank: int) -> None:
        # Its page is looked at, and those of the living.
        began = bool(party.task and party.begun & party.alive)
        party.alive.discard(rank)
        party.ready.discard(rank)
        party.running.discard(rank)
        self.step(gc.Gone(token, rank, began))

    @precondition(lambda self: any(party.launcher and not party.alive for party in self.parties.values()))
    @rule()
    def launchers_end(self) -> None:
        for token, party in list(self.parties.items()):
            if party.launcher and not party.alive and (party.doomed or not party.coming):
                party.launcher = False
                party.coming.clear()
                self.step(gc.LauncherGone(token))

    @invariant()
    def calls_are_known(self) -> None:
        assert {lane: work.task for lane, work in self.core.lanes.items()} == self.lanes

    def teardown(self) -> None:
        """Whatever happened, every call ends once its ranks are killed, and nothing is left."""
        for lane, task in list(self.lanes.items()):
            if task:
                self.step(gc.Asked(lane, signal.SIGKILL))
        for _ in range(4):
            for lane in [lane for lane, task in self.lanes.items() if not task]:
                del self.lanes[lane]
                self.step(gc.Released(lane))
            self.step(gc.EndIdle())
            for token, party in list(self.parties.items()):
                for rank in sorted(party.killed & party.alive):
                    self.bury(token, party, rank)
            self.launchers_end()
            self.wait(70.0)
        assert not any(self.lanes.values())
        assert set(self.told) == set(self.keys)
        assert not self.core.groups
        super().teardown()


World.TestCase.settings = settings(
    max_examples=examples(200),
    stateful_step_count=50,
    # Shrinking such stories takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
)
TestWorld = World.TestCase


# --- stories ------------------------------------------------------------------------------------------------------


class Story:
    """A core on one node, told what happens line by line."""

    def __init__(self, *, leads: bool = True, alone: bool = True, most_idle: int = 8) -> None:
        self.core = GroupCore(most_idle)
        self.leads, self.alone = leads, alone
        self.now = 0.0

    def step(self, event: gc.Event) -> list[gc.Instruction]:
        out = self.core.step(event, self.now)
        self.core.check()
        return out

    def want(self, lane: int, task: int, name: str = "a", key: str = "k", condition: int = 0) -> list[gc.Instruction]:
        return self.step(gc.Want(lane, task, key, 2, self.leads, self.alone, condition, name))

    def up(self, name: str = "a", key: str = "k") -> list[gc.Instruction]:
        out = [order for rank in (0, 1) for order in self.step(gc.Joined(name, rank, key, 2, self.alone))]
        return out + [order for rank in (0, 1) for order in self.step(gc.Ready(name, rank))]

    def said(self, task: int, name: str = "a", failed: tuple[int, ...] = ()) -> list[gc.Instruction]:
        return [order for rank in (0, 1) for order in self.step(gc.Said(name, rank, task, rank in failed))]

    def later(self, seconds: float) -> list[gc.Instruction]:
        self.now += seconds
        return self.step(gc.Passed())


@pytest.fixture
def ready() -> Story:
    story = Story()
    assert story.want(1, 10) == [gc.Bring("a", 1)]
    assert story.up() == [gc.Give("a", 1, 10, anew=False)]
    return story


def test_one_group_serves_call_after_call(ready: Story) -> None:
    assert ready.said(10) == [Told(1, 10, "a", Verdict.SAID)]
    # The next one on the same lane, then another lane after a while.
    assert ready.want(1, 11, "b") == [gc.Give("a", 1, 11, anew=False)]
    ready.said(11)
    assert ready.step(gc.Released(1)) == []
    assert ready.want(2, 12, "c") == [gc.Give("a", 2, 12, anew=False)]


def test_another_kind_of_call_gets_a_group_of_its_own(ready: Story) -> None:
    ready.said(10)
    ready.step(gc.Released(1))
    assert ready.want(2, 11, "b", key="other") == [gc.Bring("b", 2)]


def test_after_failures_on_all_ranks_they_go_on_with_a_new_communicator(ready: Story) -> None:
    assert ready.said(10, failed=(0, 1)) == [Told(1, 10, "a", Verdict.SAID)]
    assert ready.want(1, 11, "b") == [gc.Give("a", 1, 11, anew=True)]
    ready.said(11)
    assert ready.want(1, 12, "c") == [gc.Give("a", 1, 12, anew=False)]


def test_who_hangs_after_another_one_failed_is_ended(ready: Story) -> None:
    assert ready.step(gc.Said("a", 1, 10, failed=True)) == []
    assert ready.later(0.1) == []
    assert ready.later(0.3) == [gc.Hit("a", signal.SIGKILL)]
    assert ready.step(gc.Gone("a", 0, began=True)) == []
    assert ready.step(gc.Gone("a", 1, began=True)) == [Told(1, 10, "a", Verdict.SAID, -1, (0,))]
    assert ready.want(1, 11, "b") == [gc.Bring("b", 1)]
    assert ready.step(gc.LauncherGone("a")) == [gc.Drop("a")]


def test_a_rank_that_dies_is_named_once_the_launcher_has_spoken(ready: Story) -> None:
    assert ready.step(gc.Gone("a", 1, began=True)) == [gc.Hit("a", signal.SIGKILL)]
    assert ready.step(gc.Gone("a", 0, began=True)) == []
    assert ready.step(gc.LauncherGone("a")) == [Told(1, 10, "a", Verdict.DIED, 1), gc.Drop("a")]


def test_the_part_that_does_not_lead_speaks_when_nobody_else_does() -> None:
    story = Story(leads=False, alone=False)
    story.up("lead.1")
    story.want(1, 10)
    story.step(gc.Gone("lead.1", 0, began=True))
    assert story.step(gc.Gone("lead.1", 1, began=True)) == []
    assert story.later(gc.DEFER + 0.1) == [Told(1, 10, "lead.1", Verdict.DIED, 0), gc.Drop("lead.1")]


def test_a_launcher_that_stays_is_ended(ready: Story) -> None:
    ready.step(gc.Gone("a", 1, began=True))
    ready.step(gc.Gone("a", 0, began=True))
    assert ready.later(gc.SPEAK + 0.1) == [Told(1, 10, "a", Verdict.DIED, 1)]
    assert ready.later(gc.LINGER + 0.1) == [gc.EndLauncher("a")]
    assert ready.step(gc.LauncherGone("a")) == [gc.Drop("a")]


def test_a_group_that_was_lost_unnoticed_costs_the_call_nothing(ready: Story) -> None:
    ready.said(10)
    assert ready.want(1, 11, "b") == [gc.Give("a", 1, 11, anew=False)]
    assert ready.step(gc.Gone("a", 0, began=False)) == [gc.Hit("a", signal.SIGKILL)]
    # Only now it is known for good that nobody has begun it. The launcher's end is not waited for.
    assert ready.step(gc.Gone("a", 1, began=False)) == [gc.Bring("b+", 1)]
    assert ready.up("b+") == [gc.Give("b+", 1, 11, anew=False)]
    assert ready.step(gc.LauncherGone("a")) == [gc.Drop("a")]


def test_a_call_that_began_while_its_group_was_being_killed_is_over(ready: Story) -> None:
    assert ready.step(gc.Gone("a", 0, began=False)) == [gc.Hit("a", signal.SIGKILL)]
    assert ready.step(gc.Gone("a", 1, began=True)) == []
    assert ready.step(gc.LauncherGone("a")) == [Told(1, 10, "a", Verdict.DIED, 0), gc.Drop("a")]


def test_a_call_that_a_rank_ended_while_its_group_was_being_killed_is_over(ready: Story) -> None:
    ready.step(gc.Gone("a", 0, began=False))
    assert ready.step(gc.Said("a", 1, 10, failed=False)) == []
    assert ready.step(gc.Gone("a", 1, began=False)) == []
    assert ready.step(gc.LauncherGone("a")) == [Told(1, 10, "a", Verdict.DIED, 0), gc.Drop("a")]


def test_a_call_that_was_not_given_goes_to_another_group_at_once() -> None:
    story = Story()
    story.want(1, 10)
    story.step(gc.Asked(1, signal.SIGSTOP))
    assert story.up() == []
    assert story.step(gc.Gone("a", 0, began=False)) == [gc.Hit("a", signal.SIGKILL), gc.Bring("a+", 1)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_call_that_is_ended_while_its_group_is_being_killed_is_not_served_again(ready: Story, number: int) -> None:
    ready.step(gc.Gone("a", 0, began=False))
    assert ready.step(gc.Asked(1, number)) == []
    assert ready.step(gc.Gone("a", 1, began=False)) == [Told(1, 10, "a", Verdict.DIED, 0)]
    assert ready.step(gc.LauncherGone("a")) == [gc.Drop("a")]


@pytest.mark.parametrize("given", [True, False])
def test_a_call_that_is_suspended_stays_so_in_another_group(ready: Story, given: bool) -> None:
    stop = gc.Asked(1, signal.SIGSTOP)
    if given:
        assert ready.step(stop) == [gc.Hit("a", signal.SIGSTOP)]
    ready.step(gc.Gone("a", 0, began=False))
    if not given:
        assert ready.step(stop) == []
    assert ready.step(gc.Gone("a", 1, began=False)) == [gc.Bring("a+", 1)]
    assert ready.up("a+") == []
    assert ready.step(gc.Asked(1, signal.SIGCONT)) == [gc.Give("a+", 1, 10, anew=False)]


def test_a_group_that_is_lost_between_two_calls_of_a_lane_is_forgotten_there(ready: Story) -> None:
    ready.said(10)
    assert ready.step(gc.Gone("a", 0, began=False)) == [gc.Hit("a", signal.SIGKILL)]
    assert ready.step(gc.Gone("a", 1, began=False)) == []
    assert ready.step(gc.LauncherGone("a")) == [gc.Drop("a")]
    assert ready.want(1, 11, "b") == [gc.Bring("b", 1)]


def test_a_call_does_not_lose_groups_for_ever() -> None:
    story = Story()
    story.want(1, 10)
    out: list[gc.Instruction] = []
    for name in ("a", "a+", "a++"):
        assert story.core.lanes[1].token == name
        story.up(name)
        story.step(gc.Gone(name, 0, began=False))
        out = story.step(gc.Gone(name, 1, began=False)) + story.step(gc.LauncherGone(name))
    assert Told(1, 10, "a++", Verdict.UNSTARTED) in out


def test_ranks_that_cannot_are_believed() -> None:
    story = Story()
    story.want(1, 10)
    story.step(gc.Joined("a", 0, "k", 2, alone=True))
    assert story.step(gc.Unready("a", 0)) == [gc.Hit("a", signal.SIGKILL), gc.EndLauncher("a")]
    assert story.step(gc.Gone("a", 0, began=False)) == [Told(1, 10, "a", Verdict.UNSTARTED)]


def test_a_group_that_does_not_come_up_is_given_up() -> None:
    story = Story()
    story.want(1, 10)
    assert story.later(gc.START + 1) == [gc.EndLauncher("a"), Told(1, 10, "a", Verdict.UNSTARTED)]


def test_what_is_ended_before_its_group_is_there_leaves_it_to_the_next() -> None:
    story = Story()
    story.want(1, 10)
    assert story.step(gc.Asked(1, signal.SIGKILL)) == [Told(1, 10, "a", Verdict.DIED)]
    story.step(gc.Released(1))
    assert story.want(2, 11, "b") == []
    assert story.up() == [gc.Give("a", 2, 11, anew=False)]


def test_the_part_that_does_not_lead_waits_for_ranks_and_for_the_word_on_a_death() -> None:
    story = Story(leads=False, alone=False)
    assert story.want(1, 10) == []
    assert story.up("lead.1") == [gc.Give("lead.1", 1, 10, anew=False)]
    # The launcher is to end the others, else it could not tell who died by itself.
    assert story.step(gc.Gone("lead.1", 0, began=True)) == []
    assert story.later(gc.ABORT + 0.1) == [gc.Hit("lead.1", signal.SIGKILL)]
    assert story.step(gc.Gone("lead.1", 1, began=True)) == []
    # The agent says why, because the leading part said so.
    assert story.step(gc.Asked(1, signal.SIGTERM)) == [Told(1, 10, "lead.1", Verdict.DIED, 0), gc.Drop("lead.1")]


def test_ranks_of_a_new_group_get_the_call_that_an_old_one_never_began() -> None:
    story = Story(leads=False, alone=False)
    story.up("lead.1")
    assert story.want(1, 10) == [gc.Give("lead.1", 1, 10, anew=False)]
    assert story.step(gc.Gone("lead.1", 0, began=False)) == [gc.Hit("lead.1", signal.SIGKILL)]
    # The other rank is not gone yet, so the new ones wait; another time they come later.
    assert story.up("lead.2") == []
    out = story.step(gc.Gone("lead.1", 1, began=False))
    assert out == [gc.Give("lead.2", 1, 10, anew=False), gc.Drop("lead.1")]
    story.step(gc.Gone("lead.2", 0, began=False))
    assert story.step(gc.Gone("lead.2", 1, began=False)) == [gc.Drop("lead.2")]
    assert story.up("lead.3") == [gc.Give("lead.3", 1, 10, anew=False)]


def test_of_two_idle_groups_of_a_kind_the_later_stays() -> None:
    story = Story(leads=False, alone=False)
    story.up("lead.2")
    assert story.up("lead.1") == [gc.Hit("lead.1", signal.SIGKILL)]
    assert story.want(1, 10) == [gc.Give("lead.2", 1, 10, anew=False)]


def test_the_longest_idle_go_when_there_are_too_many() -> None:
    story = Story(most_idle=4)
    for number, key in enumerate("xyz", 1):
        story.want(number, number, key, key=key)
        story.up(key, key)
        story.said(number, key)
    assert [story.step(gc.Released(number)) for number in (2, 1)] == [[], []]
    assert story.step(gc.Released(3)) == [gc.Hit("y", signal.SIGKILL)]


def test_speculation_keeps_its_group_to_itself(ready: Story) -> None:
    ready.said(10)
    assert ready.want(1, 11, "b", condition=5) == [gc.Give("a", 1, 11, anew=False)]
    ready.said(11)
    assert ready.want(1, 12, "c", condition=6) == [gc.Bring("c", 1)]
    assert ready.step(gc.Settled(5, truth=False)) == [gc.Hit("a", signal.SIGKILL)]
