"""Why a question is asked again, and what became of it before. Pure."""

from __future__ import annotations

import json

from pilot_hitl.model.canonical import Json, canonical, cut
from pilot_hitl.model.ids import without_ids
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.wire.messages import Ask

_ANSWER = ("by", "channel", "comment", "answered_at", "on_behalf_of")
_QUESTION = 1000
"""Characters of an earlier question that are kept beside the present one; the audit has all of it."""
_SHOWN = 120
"""Characters of an answer that a sentence holds."""


def changed(before: Ask, after: Ask) -> list[str]:
    """Return, in words, which parts of a question differ; empty when it is the same question."""
    if before.fingerprint == after.fingerprint:
        return []
    found = []
    if without_ids(before.question) != without_ids(after.question):
        found.append("its question")
    if before.form != after.form:
        found.append("what may be answered")
    places = _shown(before.show, after.show)
    if places:
        found.append(f"what it shows ({', '.join(places)})")
    # Of a task that is shown only the id is known here, which differs on each run; its key is in the fingerprint.
    return found or ["what it shows (a task)"]


def earlier(ask: Ask, record: dict[str, Json], answer: str, state: CheckpointState, now: float) -> list[Json]:
    """Return what became of all generations before, the last of which was asked so, with this record and answer."""
    before = record.get("earlier")
    facts: dict[str, Json] = {
        "generation": record.get("generation"),
        "reopened": record.get("reopened"),
        "question": cut(ask.question, _QUESTION),
        "state": state.name,
        "opened_at": record.get("opened_at"),
        "ended_at": record.get("answered_at") or now,
    }
    if answer:
        facts["answer"] = json.loads(answer)
    facts |= {key: record[key] for key in _ANSWER if record.get(key)}
    return [*(before if isinstance(before, list) else []), facts]


def why(parts: list[str]) -> str:
    """Return why a question is asked again, given what :func:`changed`."""
    return f"{' and '.join(parts)} changed" if parts else "it had been taken back"


def became(facts: Json) -> str:
    """Return in words what became of an earlier generation, as :func:`earlier` tells it."""
    if not isinstance(facts, dict):
        return ""
    answer = canonical(facts["answer"]) if "answer" in facts else ""
    answer = cut(answer, _SHOWN)
    if facts.get("state") == CheckpointState.ANSWERED.name:
        by = facts.get("by")
        return f"it was answered {answer}" + (f" by {by}" if by else "")
    if facts.get("state") == CheckpointState.EXPIRED.name:
        return "its deadline passed" + (f" and {answer} was taken" if answer else "")
    return "it was taken back" if facts.get("state") == CheckpointState.WITHDRAWN.name else "nobody had answered it"


def sentence(name: str, id_: str, record: dict[str, Json]) -> str:
    """Return what the one who asks is told when people are asked again."""
    parts, before = record.get("changed"), record.get("earlier")
    said = [str(each) for each in parts] if isinstance(parts, list) else []
    last = f"; before, {became(before[-1])}" if said and isinstance(before, list) and before else ""
    return f"checkpoint {name!r} ({id_}) is asked again, because {why(said)}{last}"


def _shown(before: str, after: str) -> list[str]:
    """Return the places at which two lists of shown things differ, counted from 1."""
    old, new = _content(before), _content(after)
    places = [f"item {at}" for at, pair in enumerate(zip(old, new, strict=False), 1) if pair[0] != pair[1]]
    if len(old) != len(new):
        places.append(f"{len(new)} items instead of {len(old)}")
    return places[:5]


def _content(show: str) -> list[str]:
    items = json.loads(show or "[]")
    return [
        without_ids(
            canonical({key: value for key, value in item.items() if (key, item.get("kind")) != ("task", "task")})
        )
        if isinstance(item, dict)
        else without_ids(canonical(item))
        for item in (items if isinstance(items, list) else [])
    ]
