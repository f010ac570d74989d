"""In words, what holds a task: what the hub knows, with what an agent says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from pilot_hitl.hub.live import LiveSession, PilotRecord
from pilot_hitl.model.conditions import Test
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.states import PilotState, State, Truth
from pilot_hitl.study.bulk import Bulk
from pilot_hitl.study.conditions import NUMBER_MASK
from pilot_hitl.study.pilots import describe

if TYPE_CHECKING:
    from pilot_hitl.model.conditions import Term
    from pilot_hitl.study.conditions import Condition

LONGEST = 200
"""Characters of a JSON Schema or a value that are said."""

_RESERVED = re.compile(r"reserved for checkpoint (\d+)")


class Reason(NamedTuple):
    """What holds a task.

    Attributes:
        key: the same for the same thing, whichever task it holds.
        text: in words, as the end of a sentence that says that a task waits.
        soft: it ends by itself when what runs ends.
    """

    key: str
    text: str
    soft: bool = False


def explanation(session: LiveSession, task: int) -> str:
    """Return in one sentence what holds a task, as far as the hub knows."""
    return reason(session, task).text


def reason(session: LiveSession, task: int) -> Reason:
    """Return what holds a task, as far as the hub knows."""
    bulk = session.core.tasks.find(task)
    if bulk is None:
        return Reason("unknown", "it is not known")
    state = State(bulk.states[task - bulk.first])
    if task in session.core.unpublished and bulk.condition.truth is Truth.TRUE:
        return Reason(
            "publishing", "it ran and counts; what it left is being put in place (an agent of its session does that)"
        )
    if state.final:
        return Reason("ended", f"it ended: {state.name}")
    if state in (State.HELD, State.HELD_FAILED):
        return _assuming(session, bulk.condition, "it ran, and counts once {}")
    found = _agents_missing(session, bulk, task) or _what_holds(session, bulk, state)
    if asked := _asks(session, task):
        return Reason(f"people {asked}", f"{found.text}; it asks people: {asked}")
    if inside := _waits_itself(session, task):
        return Reason(inside, f"{found.text}; {inside}")
    return found


def _agents_missing(session: LiveSession, bulk: Bulk, task: int) -> Reason | None:
    """Return that agents which may be running a task have not reconnected to this hub, None when that is not it."""
    if bulk.missing or bulk.asleep:
        return None
    pilots = session.core.recovery.waited_for(bulk, task - bulk.first)
    if not pilots:
        return None
    numbers = " or ".join(map(str, pilots))
    text = f"it waits to hear from pilot {numbers}, which may be running it since before the hub was started again"
    return Reason(f"missing {numbers}", text)


def _assuming(session: LiveSession, condition: Condition, words: str) -> Reason:
    """Return as a reason that somebody has to answer; branches of one checkpoint wait for the same."""
    numbers = sorted({term.checkpoint & NUMBER_MASK for term in condition.terms})
    return Reason(f"people {numbers}", words.format(assumption(session, condition)))


def _what_holds(session: LiveSession, bulk: Bulk, state: State) -> Reason:
    if bulk.missing:
        waiting = [task_name(dep) for dep in bulk.deps if is_unmet(session, dep)]
        return Reason("tasks", f"it waits for {', '.join(waiting[:5])}{' and others' if len(waiting) > 5 else ''}")
    if bulk.asleep:
        return Reason("asleep", "it was submitted by an earlier run of the script: run the script again")
    if any(other is bulk for other in bulk.condition.parked):
        if bulk.outside:
            return _assuming(session, bulk.condition, "it acts outside its sandbox, so it waits until {}")
        policy = session.core.speculation.policy.name
        return _assuming(session, bulk.condition, f"policy {policy}: it waits until {{}}")
    if state is State.QUEUED:
        return _what_keeps(session, bulk)
    return Reason("bound", f"it is {state.name.lower()} on a pilot", soft=True)


def _what_keeps(session: LiveSession, bulk: Bulk) -> Reason:
    """Return what keeps a task here that waits for nothing but a pilot."""
    fleet = session.core.fleet
    if not fleet.pilots and (last := _last_pilot(session)):
        return Reason("ended pilot", last)
    if held := fleet.holds(bulk):
        numbers = {pilot.number for pilot in fleet.candidates(bulk)}
        waiting = [_state_of(each) for each in session.active_pilots if each.number in numbers and _may_come(each)]
        text = f"{held} ({'; '.join(waiting)})" if waiting else held
        return Reason(text, text)
    judged = session.core.speculation.judgement(bulk.condition, bulk.kind)
    under = ""
    if judged is not None:
        under = f", and counts only if {assumption(session, bulk.condition)}; {judged.reason}"
    pilots = "its pilot has" if len(fleet.candidates(bulk)) == 1 else "its pilots have"
    return Reason("room", f"{pilots} no room for {describe(bulk)} yet{under}", soft=True)


def _may_come(pilot: PilotRecord) -> bool:
    return pilot.state is not PilotState.ACTIVE or bool(pilot.job and pilot.message)


def _state_of(pilot: PilotRecord) -> str:
    if pilot.message and pilot.job:
        return pilot.message
    return f"pilot {pilot.number} is {pilot.state.name}" + (f": {pilot.message}" if pilot.message else "")


def is_unmet(session: LiveSession, task: int) -> bool:
    """Return whether what depends on a task has to wait for it."""
    return (session.core.state_of(task) or State.NEW) < State.HELD or task in session.core.unpublished


def _last_pilot(session: LiveSession) -> str:
    """Return how the last pilot of a session ended, empty when it never had one."""
    last = max(session.pilots.values(), key=lambda pilot: (pilot.ended, pilot.number), default=None)
    if last is not None:
        ended = [(last.number, last.state, last.message)]
    else:
        query = "SELECT number, state, message FROM pilot ORDER BY ended DESC, number DESC LIMIT 1"
        ended = [(number, PilotState(state), message) for number, state, message in session.store.rows(query)]
    for number, state, message in ended:
        why = f" ({message})" if message else ""
        return f"no pilot is left: pilot {number} is {state.name}{why}; submit another one"
    return ""


def explained(session: LiveSession, task: int, facts: dict[str, Any], said: list[Any]) -> dict[str, Any]:
    """Return what an agent said of a task, with why it has its place among speculative work."""
    if not said:
        pilot = session.core.pilot_of(task)
        where = f"pilot {pilot}, whose agent did not answer at once" if pilot else "a pilot, and is with it no more"
        return facts | {"explanation": f"{task_name(task)} was given to {where}: ask again"}
    text = agent_words(session, task, str(said[0].get("explanation", "")))
    if facts.get("condition_truth") == Truth.UNDECIDED.name and facts.get("score_reason"):
        text += f"; {facts['score_reason']}"
    asked = _asks(session, task)
    more = f"it asks people: {asked}" if asked else _waits_itself(session, task)
    return facts | {"explanation": f"{text}; {more}" if more else text}


def _waits_itself(session: LiveSession, task: int) -> str:
    """Return what a task that runs said that it waits for; empty when it said nothing."""
    said = [each.waits for each in session.clients if each.waits is not None and each.waits.task == task]
    for waits in said:
        if waits.said:
            return waits.said[0]
        if waits.tasks:
            more = " and others" if sum(count for _first, count in waits.tasks) > 1 else ""
            return f"it waits for {task_name(waits.tasks[0][0])}{more}"
    return ""


def agent_words(session: LiveSession, task: int, text: str) -> str:
    """Return an agent's words with names: it knows conditions and checkpoints by their numbers."""
    bulk = session.core.tasks.find(task)
    if bulk is not None:
        number = bulk.condition.number
        known = f"its condition {number} is undecided"
        text = text.replace(known, f"it counts only if {assumption(session, bulk.condition)}")
    return _RESERVED.sub(lambda found: f"reserved for {_asked(session, int(found[1]))}", text)


def assumption(session: LiveSession, condition: Condition) -> str:
    """Return the answers that a condition assumes, as in ``"accept-mesh (study/1) is answered "accept""``."""
    terms = sorted(condition.terms, key=lambda term: (term.checkpoint & NUMBER_MASK, term.operand))
    return " and ".join(_assumed(session, term) for term in terms) or "nothing is assumed"


def _assumed(session: LiveSession, term: Term) -> str:
    number = term.checkpoint & NUMBER_MASK
    value = term.operand if len(term.operand) <= LONGEST else f"{term.operand[:LONGEST]}…"
    how = {Test.EQUALS: "", Test.ONE_OF: "with one of ", Test.SCHEMA: "with what fits "}[term.test]
    return f"{_asked(session, number)} is answered {how}{value}"


def _asked(session: LiveSession, number: int) -> str:
    checkpoint = session.core.checkpoints.get(number)
    name = "" if checkpoint is None else f"{checkpoint.ask.name!r} "
    return f"checkpoint {name}({session.name}/{number})"


def _asks(session: LiveSession, task: int) -> str:
    """Return which people a running task waits for."""
    asked = [
        f"{each.ask.name!r} ({session.name}/{each.number})"
        for each in session.core.checkpoints
        if each.ask.parent == task and not each.state.closed
    ]
    return ", ".join(asked)
