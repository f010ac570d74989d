"""In words, what holds a task: what the hub knows, with what an agent says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pilot_hitl.hub.live import LiveSession
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


def explanation(session: LiveSession, task: int) -> str:
    """Return in one sentence what holds a task, as far as the hub knows."""
    bulk = session.core.tasks.find(task)
    if bulk is None:
        return "it is not known"
    state = State(bulk.states[task - bulk.first])
    if state.final:
        return f"it ended: {state.name}"
    if task in session.core.unpublished and bulk.condition.truth is Truth.TRUE:
        return "it ran and counts; what it left is being put in place (an agent of its session does that)"
    if state in (State.HELD, State.HELD_FAILED):
        return f"it ran, and counts once {assumption(session, bulk.condition)}"
    return _what_holds(session, bulk, state) + _asks(session, task)


def _what_holds(session: LiveSession, bulk: Bulk, state: State) -> str:
    if bulk.missing:
        waiting = [task_name(dep) for dep in bulk.deps if _is_unmet(session, dep)]
        return f"it waits for {', '.join(waiting[:5])}{' and others' if len(waiting) > 5 else ''}"
    if bulk.asleep:
        return "it was submitted by an earlier run of the script: run the script again"
    if any(other is bulk for other in bulk.condition.parked):
        until = assumption(session, bulk.condition)
        if bulk.outside:
            return f"it acts outside its sandbox, so it waits until {until}"
        return f"policy {session.core.speculation.policy.name}: it waits until {until}"
    if state is State.QUEUED:
        held = session.core.fleet.holds(bulk)
        if not session.core.fleet.pilots and (last := _last_pilot(session)):
            return last
        if held:
            messages = [pilot.message for pilot in session.active_pilots if pilot.message and pilot.job]
            return f"{held} ({'; '.join(messages)})" if messages else held
        judged = session.core.speculation.judgement(bulk.condition, bulk.kind)
        under = ""
        if judged is not None:
            under = f", and counts only if {assumption(session, bulk.condition)}; {judged.reason}"
        return f"its pilot has no room for {describe(bulk)} yet{under}"
    return f"it is {state.name.lower()} on a pilot"


def _is_unmet(session: LiveSession, task: int) -> bool:
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


def explained(session: LiveSession, bulk: Bulk, facts: dict[str, Any], said: list[Any]) -> dict[str, Any]:
    """Return what an agent said of a task, with why it has its place among speculative work."""
    if not said:
        return facts
    number = bulk.condition.number
    # An agent knows conditions and checkpoints by their numbers.
    known, named = f"its condition {number} is undecided", f"it counts only if {assumption(session, bulk.condition)}"
    text = str(said[0].get("explanation", "")).replace(known, named)
    text = _RESERVED.sub(lambda found: f"reserved for {_asked(session, int(found[1]))}", text)
    if facts.get("condition_truth") == Truth.UNDECIDED.name and facts.get("score_reason"):
        text += f"; {facts['score_reason']}"
    return facts | {"explanation": text}


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
    return f"; it asks people: {', '.join(asked)}" if asked else ""
