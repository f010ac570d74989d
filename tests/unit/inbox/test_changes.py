"""Why a question is asked again: which part of it changed, whatever else a run makes differ."""

from __future__ import annotations

from typing import Any

import pytest

from pilot_hitl.inbox import changes
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.wire.messages import Ask


def ask(fingerprint: bytes, **more: Any) -> Ask:
    facts: dict[str, Any] = {"question": "good?", "form": '{"enum":[1]}', "show": "[]", **more}
    return Ask(1, b"k" * 16, "gate", 0, fingerprint=fingerprint, **facts)


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        ({"question": "very good?"}, ["its question"]),
        ({"form": '{"enum":[1,2]}'}, ["what may be answered"]),
        ({"question": "?", "form": "{}"}, ["its question", "what may be answered"]),
        ({"show": '[{"kind":"markdown","text":"b"},{"kind":"task","task":"t.2"}]'}, ["what it shows (item 1)"]),
        ({"show": '[{"kind":"markdown","text":"a"}]'}, ["what it shows (1 items instead of 2)"]),
        # Only the key of the task differs, which the hub does not know.
        ({"show": '[{"kind":"markdown","text":"a"},{"kind":"task","task":"t.2"}]'}, ["what it shows (a task)"]),
        ({"deadline": 9.0}, ["what it shows (a task)"]),
    ],
)
def test_what_changed_is_named(more: dict[str, Any], changed: list[str]) -> None:
    show = '[{"kind":"markdown","text":"a"},{"kind":"task","task":"t.1"}]'
    assert changes.changed(ask(b"1", show=show), ask(b"2", **{"show": show, **more})) == changed
    assert changes.changed(ask(b"1", show=show), ask(b"1", **{"show": show, **more})) == []


def test_what_became_of_each_version_is_kept_in_order() -> None:
    first = changes.earlier(
        ask(b"1"),
        {"generation": 1, "by": "ana", "answered_at": 5.0, "opened_at": 3.0},
        "2",
        CheckpointState.ANSWERED,
        9.0,
    )
    record: dict[str, Any] = {"generation": 2, "opened_at": 9.0, "earlier": first, "changed": ["its question"]}
    second = changes.earlier(ask(b"2", question="x" * 5000), record, "", CheckpointState.OPEN, 20.0)
    assert [changes.became(each) for each in second] == ["it was answered 2 by ana", "nobody had answered it"]
    times = [(each["opened_at"], each["ended_at"]) for each in second if isinstance(each, dict)]
    assert times == [(3.0, 5.0), (9.0, 20.0)]
    assert len(str(second)) < 2000
    said = changes.sentence("gate", "s/1@3", {"changed": ["its question", "what it shows (item 1)"], "earlier": second})
    assert said == (
        "checkpoint 'gate' (s/1@3) is asked again, because its question and what it shows (item 1) changed; before, "
        "nobody had answered it"
    )


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"state": "EXPIRED", "answer": "no"}, 'its deadline passed and "no" was taken'),
        ({"state": "EXPIRED"}, "its deadline passed"),
        ({"state": "WITHDRAWN"}, "it was taken back"),
        ({"state": "ANSWERED", "answer": "x" * 1000}, f'it was answered "{"x" * 119}… (1,002 characters)'),
        ("odd", ""),
    ],
)
def test_what_became_of_a_question_is_said_in_words(facts: Any, words: str) -> None:
    assert changes.became(facts) == words
