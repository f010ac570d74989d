"""Answers name the version of the question that their author saw: asked again, queued, replaced, taken back."""

from __future__ import annotations

import json
import signal
from typing import Any

from tests.behaviour.studies import Study, wait_for

ASKS = """
with ph.Session("s") as session:
    gate = session.checkpoint("gate", question=sys.argv[1], choices=["a", "b"], wait=sys.argv[2])
    gate.wait_number()
    print(gate.id, flush=True)
    print("ANSWER", gate.result(), flush=True)
"""


def audit(study: Study, kind: str = "") -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(study.tool("inbox", "audit", "s", "--json"))
    return [entry for entry in entries if kind in ("", entry["kind"])]


def gates(study: Study) -> list[tuple[int, str, str, bool]]:
    """Version, state and answer of what the report has of the question, and whether it says why it was asked."""
    found = json.loads(study.tool("report", "s", "--json"))["gates"]
    return [(gate["generation"], gate["state"], gate["answer"], bool(gate["changed"])) for gate in found]


def test_a_question_that_changed_after_its_answer_is_asked_again_and_says_so(study: Study) -> None:
    first = study.start(ASKS, "is it good?", "exit")
    assert first.communicate(timeout=60)[1].count("asked again") == 0
    assert "queued" in study.tool("inbox", "answer", "s/1", "a")
    second = study.start(ASKS, "is it very good?", "exit")
    said = second.communicate(timeout=60)[1]
    assert second.returncode == 75
    assert '(s/1@2) is asked again, because its question changed; before, it was answered "a" by' in said
    [row] = study.inbox()
    assert (row["id"], row["generation"], row["changed"]) == ("s/1@2", 2, ["its question"])
    assert "its question changed; before, it was answered" in study.tool("inbox", "list")
    shown = study.tool("inbox", "show", "gate")
    assert "is it very good?" in shown
    assert 'it was answered "a" by' in shown
    # Nobody can know which one a plain id means; the old one is told, and kept for the record.
    assert "name the version that you answer, s/1@2" in study.tool("inbox", "answer", "s/1", "b", code=1)
    assert "name the version" in study.tool("inbox", "answer", "gate", "b", code=1)
    assert "asked again since version 1" in study.tool("inbox", "answer", "s/1@1", "b", code=1)
    assert "never asked" in study.tool("inbox", "answer", "s/1@3", "b", code=1)
    assert "queued: s/1@2" in study.tool("inbox", "answer", "gate@2", "b")
    assert study.run(ASKS, "is it very good?", "exit").split() == ["s/1@2", "ANSWER", "b"]
    assert [(e["facts"]["generation"], e["facts"]["answer"]) for e in audit(study, "answer")] == [
        (1, '"a"'),
        (2, '"b"'),
    ]
    assert [(e["facts"]["generation"], e["facts"]["code"]) for e in audit(study, "refused")] == [(1, "asked-again")]
    assert gates(study) == [(1, "ANSWERED", '"a"', False), (2, "ANSWERED", '"b"', True)]
    # What became of a closed question is told by its name, without a hub.
    assert 'it was answered "b" by' in study.tool("inbox", "answer", "gate@2", "a", code=1)
    shown = study.tool("inbox", "show", "gate")
    assert "\nanswer " in shown
    assert "ANSWERED" in shown


def test_a_question_that_changed_while_it_is_open_takes_no_answer_to_its_old_text(study: Study) -> None:
    first = study.start(ASKS, "is it good?", "stay")
    wait_for(study.inbox, "it is open")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = study.start(ASKS, "is it very good?", "stay")
    assert second.stdout is not None
    assert second.stdout.readline().strip() == "s/1@2"
    assert [row["id"] for row in study.inbox()] == ["s/1@2"]
    assert "asked-again" in study.tool("inbox", "answer", "s/1@1", "a", code=1)
    assert "name the version" in study.tool("inbox", "answer", "s/1", "a", code=1)
    assert study.tool("inbox", "answer", "s/1@2", "b").startswith("accepted: s/1@2")
    out, err = second.communicate(timeout=60)
    assert out.strip() == "ANSWER b"
    assert "(s/1@2) is asked again, because its question changed; before, nobody had answered it" in err
    assert [e["facts"]["code"] for e in audit(study, "refused")] == ["asked-again"]
    assert gates(study) == [(1, "ASKED_AGAIN", "", False), (2, "ANSWERED", '"b"', True)]


def test_a_queued_answer_is_replaced_and_taken_back_until_somebody_acts_on_it(study: Study) -> None:
    study.run(ASKS, "?", "exit", code=75)
    assert "nothing to take back" in study.tool("inbox", "withdraw", "gate", code=1)
    study.tool("inbox", "answer", "gate", "a")
    study.tool("inbox", "answer", "gate", "b")
    assert study.inbox()[0]["queued"] == 1
    shown = json.loads(study.tool("inbox", "show", "gate", "--json"))["queued_answers"]
    assert [(each["value"], each["standing"]) for each in shown] == [("a", "replaced"), ("b", "counts")]
    assert study.tool("inbox", "withdraw", "gate").startswith('withdrawn: s/1 = "b"')
    assert study.inbox()[0]["queued"] == 0
    study.run(ASKS, "?", "exit", code=75)
    assert [e["facts"]["value"] for e in audit(study, "answer-replaced")] == ['"a"']
    assert [e["facts"]["value"] for e in audit(study, "answer-withdrawn")] == ['"b"']
    study.tool("inbox", "answer", "gate", "b")
    assert study.run(ASKS, "?", "exit").split() == ["s/1", "ANSWER", "b"]
    assert "nothing to take back" in study.tool("inbox", "withdraw", "gate", code=1)
    assert len(audit(study, "answer")) == 1


WAITS = """
with ph.Session("s") as session:
    session.checkpoint("flag", choices=[True, False], deadline=float(sys.argv[1]), default=False).wait_number()
"""


def test_what_passed_while_nobody_held_the_session_is_not_open(study: Study) -> None:
    study.run(WAITS, "1")
    wait_for(lambda: study.inbox()[0]["state"] == "EXPIRED", "its deadline passes")
    assert "Its deadline has passed: false is taken" in study.tool("inbox", "show", "flag")
    study.run(WAITS, "1")
    assert study.inbox() == []
    [row] = json.loads(study.tool("inbox", "list", "-a", "--json"))
    assert (row["state"], row["answer"], row["record"]["channel"]) == ("EXPIRED", False, "system")


def test_yes_is_an_answer_where_true_is(study: Study) -> None:
    study.run(WAITS, "900")
    assert "queued: s/1 = true" in study.tool("inbox", "answer", "flag", "yes")
    study.run(WAITS, "900")
    assert json.loads(study.tool("inbox", "show", "flag", "--json"))["answer"] is True


def test_a_hostile_pattern_stops_nobody(study: Study) -> None:
    # An engine that tries again would take longer than any test may.
    with study.session("s", cores=0) as session:
        gate = session.checkpoint("gate", form={"type": "string", "pattern": "^(a+)+$"})
        number = gate.wait_number()
        assert "does not match" in study.tool("inbox", "answer", f"s/{number}", "a" * 60 + "!", code=1)
        assert "queued" in study.tool("inbox", "answer", f"s/{number}", "aaaa", "--spool")
        assert gate.result(30) == "aaaa"
