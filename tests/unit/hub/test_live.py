"""An open session without sockets: what it forwards, writes, tells, and finds again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from pilot_hitl.hub.live import LiveSession
from pilot_hitl.hub.peers import Agent, Client
from pilot_hitl.inbox import requests, spool
from pilot_hitl.inbox.audit import verify
from pilot_hitl.model.conditions import Term, Test, equals
from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.resources import NodeInventory, Resources, Shape
from pilot_hitl.model.states import CheckpointState, State, Truth
from pilot_hitl.model.templates import ExecutableResult
from pilot_hitl.study import events as ev
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.codec import pack_bodies, unpack_bodies
from pilot_hitl.wire.places import SessionPlaces
from tests.behaviour.studies import further

T = TypeVar("T", bound=m.Message)
ONE = 1 << 32
NODE = NodeInventory(name="n", cores=[0, 1])


class World:
    """A session with one client and, when wanted, one agent."""

    def __init__(self, home: Path) -> None:
        self.places = SessionPlaces(home, "s")
        self.incarnation = 0
        self.binding = 0
        self.open()

    def open(self) -> None:
        self.incarnation += 1
        self.live = LiveSession(self.places, "here")
        self.live.gates.take_spool()
        self.client = Client(b"c", "owner", self.live, self.incarnation)
        self.live.clients.append(self.client)
        self.agent: Agent | None = None

    def reopen(self) -> None:
        """The hub dies and another takes over; the script is run again."""
        self.live.store._database.close()
        self.open()

    def add_agent(self) -> Agent:
        self.binding += 1
        pilot = self.live.new_pilot(PilotDescription(), self.client)
        self.agent = Agent(b"a", self.live, pilot.number)
        self.live.agents[pilot.number] = self.agent
        self.live.feed(ev.AgentReady(pilot.number, self.binding, (NODE,)))
        return self.agent

    def submit(self, count: int = 1, *, at: int = 0, **fields: Any) -> int:
        first = (self.incarnation << 32) + at
        self.live.template(m.PutTemplate(first | 1 << 20, b"template"))
        bodies = pack_bodies([f"body{i}".encode() for i in range(count)])
        self.live.submit(m.Submit(first, count, first | 1 << 20, Shape(), bodies, **fields))
        return first

    def report(self, *reports: m.Report) -> None:
        assert self.agent is not None
        self.live.reports(self.agent, m.Reports(self.agent.reported + 1, list(reports)))

    def done(self, task: int, payload: bytes = b"v", **fields: Any) -> None:
        self.report(m.Report(task, self.binding, 0, State.DONE, payload, **fields))

    def ask(self, **fields: Any) -> m.Ask:
        handle = self.incarnation << 32 | fields.pop("nth", 1) << 28
        facts: dict[str, Any] = {"question": "ok?", "form": '{"enum":["yes","no"]}', "choices": ['"yes"', '"no"']}
        ask = m.Ask(handle, b"k" * 16, "gate", 0, **(facts | fields))
        self.live.gates.ask(self.client, ask)
        return ask

    def branch(self, ask: m.Ask, value: str) -> int:
        condition = (self.incarnation << 32) + 1000 + len(value)
        self.live.define(m.PutCondition(condition, [equals(ask.handle, value)]))
        return condition

    def told(self, kind: type[T]) -> list[T]:
        """What the client was told since, of one kind; nothing before the commit."""
        self.live.commit()
        messages = self.client.gather()
        self.heard = messages
        return [message for message in messages if isinstance(message, kind)]

    def outcomes(self) -> dict[int, m.Outcome]:
        return {outcome.task: outcome for message in self.told(m.Outcomes) for outcome in message.outcomes}

    def sent(self, kind: type[T]) -> list[T]:
        """What the agent was told since, of one kind."""
        assert self.agent is not None
        messages, self.agent.outbox = self.agent.outbox, []
        return [message for message in messages if isinstance(message, kind)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_work_is_forwarded_with_its_template_once_and_whole(world: World) -> None:
    world.add_agent()
    first = world.submit(3)
    world.live.submit(m.Submit(first + 10, 1, first | 1 << 20, Shape(), pack_bodies([b"z"])))
    assert world.agent is not None
    kinds = [type(message) for message in world.agent.outbox]
    assert kinds == [m.AgentTemplate, m.Dispatch, m.Dispatch]
    dispatches = world.sent(m.Dispatch)
    assert unpack_bodies(dispatches[0].bodies) == [b"body0", b"body1", b"body2"]
    assert [(d.first, d.count, d.epoch, d.run) for d in dispatches] == [(first, 3, 1, 0), (first + 10, 1, 1, 0)]


def test_a_bulk_with_a_hole_is_sent_in_parts_with_the_right_bodies(world: World) -> None:
    first = world.submit(5)
    world.live.feed(ev.CancelTasks(((first + 2, 1),)))
    world.add_agent()
    parts = {d.first - first: unpack_bodies(d.bodies) for d in world.sent(m.Dispatch)}
    assert parts == {0: [b"body0", b"body1"], 3: [b"body3", b"body4"]}


def test_a_result_is_on_disk_when_it_is_told(world: World) -> None:
    world.add_agent()
    first = world.submit()
    world.done(first, b"value", began=1.0, ended=2.0, core_set=[1])
    outcome = world.outcomes()[first]
    assert (outcome.state, outcome.payload, outcome.began, outcome.ended) == (State.DONE, b"value", 1.0, 2.0)
    world.live.store._database.close()
    again = LiveSession(world.places, "here")
    kept = again.store.outcome(first)
    assert kept is not None
    assert (kept.payload, kept.cores) == (b"value", "1")
    assert again.core.state_of(first) is State.DONE


def test_the_same_submit_again_changes_nothing(world: World) -> None:
    world.add_agent()
    world.submit(2)
    world.submit(2)
    assert len(world.sent(m.Dispatch)) == 1


def test_values_of_dependencies_travel_with_the_dispatch(world: World) -> None:
    world.add_agent()
    parent = world.submit()
    world.sent(m.Dispatch)
    child = world.submit(at=5, deps=[parent])
    assert world.sent(m.Dispatch) == []
    world.done(parent, b"from the parent")
    [dispatch] = world.sent(m.Dispatch)
    assert (dispatch.first, dispatch.inputs) == (child, [(parent, b"from the parent")])


def test_a_key_finds_the_result_of_an_earlier_run(world: World) -> None:
    world.add_agent()
    first = world.submit(2, keys=b"a" * 16 + b"b" * 16)
    world.done(first, b"kept")
    world.live.commit()
    world.reopen()
    world.add_agent()
    again = world.submit(2, keys=b"a" * 16 + b"b" * 16)
    outcomes = world.outcomes()
    assert {(o.task - again, o.payload, o.reused) for o in outcomes.values()} == {(0, b"kept", True)}
    [dispatch] = world.sent(m.Dispatch)
    assert (dispatch.first, unpack_bodies(dispatch.bodies)) == (again + 1, [b"body1"])


def test_a_client_that_comes_back_finds_its_tasks_awake(world: World) -> None:
    first = world.submit(2)
    world.live.commit()
    world.live.store._database.close()
    world.live = LiveSession(world.places, "here")
    world.client.session = world.live
    world.add_agent()
    assert world.sent(m.Dispatch) == []
    world.live.feed(ev.Revive(1))
    [dispatch] = world.sent(m.Dispatch)
    assert (dispatch.first, dispatch.count, unpack_bodies(dispatch.bodies)) == (first, 2, [b"body0", b"body1"])


def test_held_results_are_told_after_the_answer_only(world: World) -> None:
    world.add_agent()
    ask = world.ask()
    yes, no = world.branch(ask, "yes"), world.branch(ask, "no")
    first, second = world.submit(condition=yes), world.submit(at=5, condition=no)
    for task in (first, second):
        world.done(task, b"early")
    assert world.outcomes() == {}
    world.live.gates.answer(world.client, m.Answer(9, 1, 1, "yes", "fine"))
    outcomes = world.outcomes()
    assert outcomes[first].state is State.DONE
    assert outcomes[first].payload == b"early"
    assert outcomes[second].state is State.DISCARDED
    assert [json.loads(r.body)["accepted"] for r in world.heard if isinstance(r, m.Reply)] == [True]


def test_an_answer_that_is_sent_again_for_want_of_a_word_is_the_same_one(world: World) -> None:
    """The hub that took it ended before it could say so: its author does not hear that another one was faster."""
    world.ask()
    for life in range(3):
        world.live.gates.answer(world.client, m.Answer(9, 1, 1, "yes", "fine"))
        (reply,) = world.told(m.Reply)
        assert (reply.token, json.loads(reply.body)["answer"]) == (9, "yes")
        if life == 1:
            mine = world.client.incarnation
            world.reopen()
            world.client.incarnation = mine
    entries = [json.loads(content) for (content,) in world.live.store.rows("SELECT content FROM audit")]
    assert [entry["kind"] for entry in entries] == ["request", "answer"]
    world.live.gates.answer(world.client, m.Answer(10, 1, 1, "yes"))
    assert [refused.token for refused in world.told(m.Refused)] == [10], "another one comes too late"


def test_the_decision_is_remembered(world: World) -> None:
    world.add_agent()
    ask = world.ask()
    first = world.submit(condition=world.branch(ask, "yes"), keys=b"y" * 16)
    world.done(first, b"early")
    world.live.gates.answer(world.client, m.Answer(9, 1, 1, "yes"))
    world.live.commit()
    world.reopen()
    assert world.live.core.state_of(first) is State.DONE
    again = world.ask()
    [update] = world.told(m.CheckpointUpdate)
    assert (update.handle, update.state, update.answer) == (again.handle, CheckpointState.ANSWERED, '"yes"')
    task = world.submit(condition=world.branch(again, "yes"), keys=b"y" * 16)
    assert world.outcomes()[task].payload == b"early"


@pytest.mark.parametrize(
    ("text", "code"), [("maybe", "invalid"), ("", "invalid"), ("[1]", "invalid"), ('"no', "invalid")]
)
def test_an_invalid_answer_is_refused_and_kept(world: World, text: str, code: str) -> None:
    world.ask()
    world.live.gates.answer(world.client, m.Answer(9, 1, 1, text))
    [refused] = world.told(m.Refused)
    assert refused.token == 9
    assert refused.message.startswith(code)
    kinds = [json.loads(content)["kind"] for (content,) in world.live.store.rows("SELECT content FROM audit")]
    assert kinds == ["request", "refused"]


def test_only_the_first_answer_counts(world: World) -> None:
    world.ask()
    for token, value in enumerate(["yes", "no", "yes"], start=1):
        world.live.gates.answer(world.client, m.Answer(token, 1, 1, value))
    world.told(m.Refused)
    assert [r.token for r in world.heard if isinstance(r, m.Reply)] == [1]
    assert [r.token for r in world.heard if isinstance(r, m.Refused)] == [2, 3]
    assert world.live.gates.view(1)["answer"] == "yes"


def test_only_assignees_answer(world: World) -> None:
    world.ask(assignees=["ana"])
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "yes", by="bob"))
    [refused] = world.told(m.Refused)
    assert "not-allowed" in refused.message
    world.live.gates.answer(world.client, m.Answer(2, 1, 1, "yes", by="ana"))
    assert len(world.told(m.Reply)) == 1


def test_a_spooled_answer_takes_effect_once_on_the_next_opening(world: World) -> None:
    world.ask(deadline=1000.0, default='"no"')
    world.live.commit()
    assert [r.name for r in requests.published(world.places)] == ["gate"]
    spool.write_answer(
        world.places, spool.SpooledAnswer(checkpoint=1, generation=1, value="yes", comment="from afar", by="eve")
    )
    world.reopen()
    world.live.commit()
    view = world.live.gates.view(1)
    assert (view["state"], view["answer"], view["record"]["comment"]) == ("ANSWERED", "yes", "from afar")
    assert view["record"]["on_behalf_of"] == "eve"
    assert requests.published(world.places) == []
    assert spool.take(world.places) == []
    world.reopen()
    assert world.live.gates.view(1)["answer"] == "yes"


def test_a_spooled_answer_before_the_deadline_beats_it_however_late_it_is_read(world: World) -> None:
    world.ask(deadline=0.2, default='"no"')
    world.live.commit()
    spool.write_answer(world.places, spool.SpooledAnswer(checkpoint=1, generation=1, value="yes"))
    time.sleep(0.3)
    world.reopen()
    world.live.feed(ev.Tick())
    assert world.live.gates.view(1)["answer"] == "yes"


def test_a_deadline_applies_the_default(world: World) -> None:
    world.ask(deadline=0.01, default='"no"')
    time.sleep(0.02)
    world.live.feed(ev.Tick())
    update = world.told(m.CheckpointUpdate)[-1]
    assert (update.state, update.answer) == (CheckpointState.EXPIRED, '"no"')
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "yes"))
    assert "expired" in world.told(m.Refused)[0].message


def test_the_audit_chain_holds_over_restarts(world: World) -> None:
    world.ask()
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "bad"))
    world.live.commit()
    world.reopen()
    world.ask()
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "yes"))
    world.live.commit()
    rows = list(world.live.store.rows("SELECT content, hash FROM audit ORDER BY sequence"))
    assert [json.loads(content)["kind"] for content, _ in rows] == ["request", "refused", "answer"]
    assert verify(rows, "s") is None
    assert verify([rows[0], rows[2]], "s") is not None


def test_a_changed_question_is_asked_again_and_may_be_forbidden(world: World) -> None:
    world.ask(fingerprint=b"1")
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "yes"))
    world.live.commit()
    world.reopen()
    world.ask(fingerprint=b"2")
    assert world.told(m.CheckpointUpdate)[-1].state is CheckpointState.OPEN
    world.live.gates.answer(world.client, m.Answer(1, 1, 2, "no"))
    world.live.commit()
    world.reopen()
    world.ask(fingerprint=b"3", on_change="error")
    assert "another question" in world.told(m.Refused)[0].message
    world.ask(fingerprint=b"3", on_change="keep")
    assert world.told(m.CheckpointUpdate)[-1].answer == '"no"'


def test_outside_effects_are_real_before_the_result_is_told(world: World) -> None:
    world.add_agent()
    ask = world.ask()
    first = world.submit(condition=world.branch(ask, "yes"))
    payload = msgspec.msgpack.encode(ExecutableResult(0, "/somewhere/own"))
    world.done(first, payload, unpublished="/somewhere/own")
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "yes"))
    assert world.outcomes() == {}
    [order] = world.sent(m.Publish)
    assert (order.task, order.sandbox, order.body) == (first, "/somewhere/own", b"body0")
    world.live.published(m.Published(first, ok=True, outputs=["/made/o.txt"], sandbox="/asked"))
    outcome = world.outcomes()[first]
    assert outcome.state is State.DONE
    result = msgspec.msgpack.decode(outcome.payload, type=ExecutableResult)
    assert (result.sandbox, result.outputs) == ("/asked", ["/made/o.txt"]), "as if it had been needed from the start"
    world.live.published(m.Published(first, ok=False, message="again"))
    assert world.outcomes() == {}


def test_outside_effects_that_fail_fail_the_task(world: World) -> None:
    world.add_agent()
    ask = world.ask()
    first = world.submit(condition=world.branch(ask, "yes"))
    world.done(first, msgspec.msgpack.encode(ExecutableResult(0, "/own")), unpublished="/own")
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "yes"))
    world.live.published(m.Published(first, ok=False, message="no space"))
    outcome = world.outcomes()[first]
    assert outcome.state is State.FAILED
    assert outcome.failure is not None
    assert "no space" in outcome.failure.message


def test_what_an_agent_may_be_putting_in_place_is_asked_of_no_other_one(world: World) -> None:
    first = world.add_agent()
    ask = world.ask()
    task = world.submit(condition=world.branch(ask, "yes"))
    world.done(task, unpublished="/own")
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "yes"))
    world.live.commit()
    world.reopen()
    for pilot in (first.pilot, first.pilot + 1):
        world.live.feed(ev.PilotAsked(pilot))
    world.live.feed(ev.AgentExpected(first.pilot))
    while world.live.core.backlog:
        world.live.feed(ev.Tick())
    world.agent = world.live.agents[first.pilot + 1] = Agent(b"b", world.live, first.pilot + 1)
    world.live.feed(ev.AgentReady(first.pilot + 1, 2, (NODE,)))
    world.live.publish_waiting()
    assert world.sent(m.Publish) == []
    world.live.feed(ev.PilotEnded(first.pilot, final=True))
    assert [order.task for order in world.sent(m.Publish)] == [task]


def test_what_was_committed_and_not_put_in_place_is_asked_for_by_the_next_hub(world: World) -> None:
    world.add_agent()
    ask = world.ask()
    first = world.submit(2, condition=world.branch(ask, "yes"))
    world.report(*(m.Report(first + at, world.binding, 0, State.DONE, b"v", ended=9.0 - at, unpublished=f"/own/{at}")
                   for at in range(2)))  # fmt: skip
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "yes"))
    assert [order.task for order in world.sent(m.Publish)] == [first + 1, first], "what ended first comes first"
    world.live.commit()
    world.reopen()
    world.add_agent()
    while world.live.core.backlog:
        world.live.feed(ev.Tick())
    world.live.publish_waiting()
    assert {order.sandbox for order in world.sent(m.Publish)} == {"/own/0", "/own/1"}
    world.live.published(m.Published(first, ok=True))
    assert world.live.core.state_of(first) is State.DONE
    row = world.live.store.outcome(first)
    assert row is not None
    assert (row.state, row.unpublished, row.payload) == (State.DONE, "", b"v")


def test_who_watches_a_task_is_not_told_of_a_value_whose_files_are_not_in_place(world: World) -> None:
    world.add_agent()
    ask = world.ask()
    first = world.submit(2, condition=world.branch(ask, "yes"))
    world.live.watch(world.client, [(first, 2)])
    world.done(first)
    world.done(first + 1, unpublished="/own")
    assert [outcome.task for outcome in world.client.held] == [first]
    world.live.watch(world.client, [(first, 2)])
    assert {outcome.task for outcome in world.client.held} == {first}


def test_reservations_name_the_conditions_of_their_checkpoint(world: World) -> None:
    world.add_agent()
    ask = world.ask(reserve=Resources(cores=1))
    assert [order.conditions for order in world.sent(m.Reserve)] == [[]]
    world.branch(ask, "yes")
    [order] = world.sent(m.Reserve)
    assert len(order.conditions) == 1
    assert order.resources == Resources(cores=1)


def test_conditions_are_told_before_the_tasks_under_them(world: World) -> None:
    world.add_agent()
    ask = world.ask()
    world.submit(condition=world.branch(ask, "yes"))
    assert world.agent is not None
    kinds = [type(message) for message in world.agent.outbox]
    assert kinds.index(m.AgentCondition) < kinds.index(m.Dispatch)
    world.sent(m.Dispatch)
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "no"))
    [condition] = world.sent(m.AgentCondition)
    assert condition.truth is Truth.FALSE


def test_terms_by_schema_are_evaluated(world: World) -> None:
    ask = world.ask(form='{"type":"number"}', choices=[])
    world.live.define(m.PutCondition(ONE + 77, [Term(ask.handle, Test.SCHEMA, '{"minimum":3}')]))
    first = world.submit(condition=ONE + 77)
    world.add_agent()
    world.done(first)
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "2.5"))
    assert world.outcomes()[first].state is State.DISCARDED


def test_the_policy_is_kept(world: World) -> None:
    world.live.use_policy("block")
    world.live.commit()
    world.reopen()
    assert world.live.core.speculation.policy.name == "block"
    world.live.use_policy("")
    assert world.live.core.speculation.policy.name == "block"


# --- answers and the versions of a question ---------------------------------------------------------------------------


def _audited(world: World, *kinds: str) -> list[dict[str, Any]]:
    world.live.commit()
    entries = [json.loads(content) for (content,) in world.live.store.rows("SELECT content FROM audit")]
    return [entry for entry in entries if entry["kind"] in kinds]


@pytest.mark.parametrize("order", further(2, ["AQ", "QA", "AQB", "QAB", "QBA", "AQAB"]))
def test_an_answer_while_the_question_is_asked_again_counts_for_what_it_is_to_or_is_refused(
    world: World, order: str
) -> None:
    world.ask(fingerprint=b"1", question="good?")
    token = 0
    for what in order:
        if what == "Q":
            world.ask(fingerprint=b"2", question="very good?")
        else:
            token += 1
            generation = {"A": 1, "B": 2}[what]
            world.live.gates.answer(world.client, m.Answer(token, 1, generation, "yes"))
    world.told(m.Refused)
    said = [type(each) for each in world.heard if isinstance(each, m.Reply | m.Refused)]
    assert len(said) == token, "each answer has one outcome"
    accepted = _audited(world, "answer")
    refused = _audited(world, "refused")
    assert len(accepted) == said.count(m.Reply)
    assert len(refused) == said.count(m.Refused)
    generations = [entry["facts"]["generation"] for entry in accepted]
    assert generations == sorted(set(generations)), "one answer a version"
    view = world.live.gates.view(1)
    assert view["generation"] == (2 if "Q" in order else 1)
    assert (view["state"] == "ANSWERED") == (2 in generations)
    if "Q" in order:
        assert view["changed"] == ["its question"]
        assert [each["generation"] for each in view["earlier"]] == [1]
        assert ("answer" in view["earlier"][0]) == (1 in generations)


def test_the_asker_is_told_once_why_people_are_asked_again(world: World) -> None:
    first = world.ask(fingerprint=b"1", form='{"type":"number"}', choices=[])
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "3"))
    again = world.ask(fingerprint=b"2", form='{"type":"string"}', choices=[], nth=2)
    told = world.told(m.CheckpointUpdate)
    assert [(each.handle, each.generation) for each in told if each.again] == [(again.handle, 2)]
    [sentence] = [each.again for each in told if each.again]
    assert sentence.startswith(
        "checkpoint 'gate' (s/1@2) is asked again, because what may be answered changed; before,"
    )
    assert first.handle != again.handle
    # A hub that starts later says nothing of it again, and still knows why.
    world.live.commit()
    world.reopen()
    world.ask(fingerprint=b"2", form='{"type":"string"}', choices=[])
    assert not any(each.again for each in world.told(m.CheckpointUpdate))
    assert world.live.gates.view(1)["changed"] == ["what may be answered"]
    assert world.live.gates.view(1)["earlier"][0]["answer"] == 3


def test_an_answer_that_is_kept_is_shown_with_the_question_that_it_is_to(world: World) -> None:
    world.ask(fingerprint=b"1", question="good?")
    world.live.gates.answer(world.client, m.Answer(1, 1, 1, "yes"))
    world.ask(fingerprint=b"2", question="very good?", on_change="keep")
    view = world.live.gates.view(1)
    assert (view["question"], view["answer"], view["generation"]) == ("good?", "yes", 1)


def test_whoever_asked_before_cannot_take_back_what_another_asks_now(world: World) -> None:
    first = world.ask(fingerprint=b"1")
    again = world.ask(fingerprint=b"2", nth=2)
    world.live.gates.withdraw(m.Withdraw(first.handle))
    assert world.live.gates.view(1)["state"] == "OPEN"
    world.live.gates.withdraw(m.Withdraw(again.handle))
    assert world.live.gates.view(1)["state"] == "WITHDRAWN"


def test_of_several_answers_in_the_spool_the_last_of_each_person_counts_and_all_are_on_record(world: World) -> None:
    world.ask(deadline=1000.0, default='"no"')
    world.live.commit()
    for at, (value, generation, withdraws) in enumerate(
        [("yes", 1, False), ("", 1, True), ("no", 1, False), ("bad", 1, False), ("yes", 1, False), ("no", 2, False)]
    ):
        answer = spool.SpooledAnswer(checkpoint=1, generation=generation, value=value, withdraws=withdraws)
        path = spool.write_answer(world.places, answer)
        os.utime(path, (time.time() + at, time.time() + at))
    world.reopen()
    world.live.commit()
    assert world.live.gates.view(1)["answer"] == "yes"
    kinds = [entry["kind"] for entry in _audited(world, "answer", "refused", "answer-replaced", "answer-withdrawn")]
    assert kinds == ["answer-withdrawn", "answer-replaced", "refused", "answer", "refused"]
    assert [e["facts"]["code"] for e in _audited(world, "refused")] == ["invalid", "unknown"]
    assert spool.take(world.places) == []


def test_an_answer_that_ends_hubs_is_set_aside_and_told(world: World) -> None:
    world.ask()
    world.live.commit()
    bad, good = (spool.SpooledAnswer(answer_id=each, checkpoint=1, generation=1, value="yes") for each in ("a", "b"))
    path = spool.write_answer(world.places, bad)
    os.utime(path, (1.0, 1.0))
    for times in (1, 2):
        # As a hub leaves it that ends while it looks into the file.
        assert spool.begin_reading(world.places, path) == times
    spool.write_answer(world.places, good)
    world.reopen()
    world.live.commit()
    assert world.live.gates.view(1)["answer"] == "yes", "the others are taken"
    [entry] = _audited(world, "refused")
    assert "ended 2 times while it looked into it" in entry["facts"]["why"]
    assert [each.name.split(".")[0] for each in (world.places.spool / "bad").iterdir()] == ["a"]
    assert not (world.places.spool / "reading.json").exists()
