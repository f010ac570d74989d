"""The report of session files that were made by hand: each figure from rows whose sums are known."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from pilot_hitl.errors import SessionError
from pilot_hitl.model.ledger import Account
from pilot_hitl.model.resources import Shape
from pilot_hitl.model.states import CheckpointState, PilotState, State, Truth
from pilot_hitl.model.templates import FunctionTemplate
from pilot_hitl.report import ROWS, page, summarise
from pilot_hitl.report.tasks import task_record, task_records
from pilot_hitl.report.words import duration, seconds
from pilot_hitl.wire.messages import OpenSpan, Submit
from tests.unit.report.files import READY, START, File, span


def rows(file: Path, now: float | None = None) -> dict[str, float]:
    return summarise(file, None if now is None else START + now).ledger


def test_rows_heads_and_tails_are_all_of_the_time(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=10.5)
    file.spans(
        span([0, 1], READY, 2),
        span([0], 2, 6, Account.NEEDED, task=5, epoch=1, run=1, attempts=1),
        span([1], 2, 6, Account.BACKFILL, attempts=3),
        span([0, 1], 6, 10, Account.SERVICE),
        at=10,
    )
    report = summarise(file.close())
    # Two cores: one second before the agent began, half a second after its last word.
    assert report.ledger["overhead"] == pytest.approx(2 * 1.0 + 2 * 0.5)
    assert report.ledger["idle"] == pytest.approx(2)
    assert (report.ledger["needed"], report.ledger["backfill"], report.ledger["services"]) == pytest.approx((4, 4, 8))
    assert report.ledger["total"] == pytest.approx(2 * 10.5)
    assert report.ledger_error_core_s == pytest.approx(0, abs=1e-6)
    assert report.utilisation == pytest.approx(16 / 21)
    assert report.useful_utilisation == pytest.approx(16 / 21)
    assert report.span_s == pytest.approx(10.5)
    assert (report.cores, report.live) == (2, False)


def test_an_overlap_is_an_error_of_the_sum(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=5)
    file.spans(span([0], READY, 5, Account.NEEDED, busy=5.0), span([1], READY, 5), at=5, faults=1, fault_s=1.0)
    report = summarise(file.close())
    assert report.ledger_error_core_s == pytest.approx(1)
    assert (report.faults, report.fault_s) == (1, 1.0)
    assert "1 fault" in page(report)


@pytest.mark.parametrize(
    ("truth", "row"),
    [
        (Truth.TRUE, "speculative_committed"),
        (Truth.FALSE, "speculative_discarded"),
        (Truth.UNDECIDED, "speculative_undecided"),
    ],
)
def test_the_condition_says_what_speculation_was(tmp_path: Path, truth: Truth, row: str) -> None:
    file = File(tmp_path)
    file.pilot(ended=3)
    file.condition(4, truth)
    file.spans(span([0, 1], READY, 3, Account.SPECULATIVE, condition=4), at=3)
    assert rows(file.close())[row] == pytest.approx(4)


def test_a_failed_attempt_counts_only_if_it_decided_its_task(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=7)
    file.outcome(5, State.FAILED, run=2)
    file.outcome(6, State.DONE, run=2)
    more = {"epoch": 1, "attempts": 1}
    file.spans(
        span([0], 1, 3, Account.NEEDED, task=5, run=1, failed=True, **more),
        span([0], 3, 4, Account.NEEDED, task=5, run=2, failed=True, **more),
        span([0], 4, 6, Account.NEEDED, task=6, run=1, failed=True, **more),
        span([0], 6, 7, Account.NEEDED, task=7, run=1, failed=True, **more),
        span([1], 1, 7),
        at=7,
    )
    found = rows(file.close())
    assert found["needed"] == pytest.approx(1)
    assert found["lost"] == pytest.approx(2 + 2 + 1)


def test_a_success_that_another_attempt_outdid_is_lost(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=3)
    file.outcome(5, State.DONE, epoch=2, run=1)
    file.spans(span([0, 1], 1, 3, Account.NEEDED, task=5, epoch=1, run=1), at=3)
    assert rows(file.close())["lost"] == pytest.approx(4)


def test_memory_is_outside_the_sum(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=3)
    file.spans(span([0, 1], 1, 3), span([0], 1, 3, Account.SUSPENDED), span([1], 2, 3, Account.LENT), at=3)
    report = summarise(file.close())
    assert report.memory == pytest.approx({"suspended": 2, "lent": 1})
    assert sum(report.ledger[row] for row in ROWS) == pytest.approx(report.ledger["total"])


def test_spans_that_are_told_twice_are_kept_once(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=3)
    for _ in range(2):
        file._sequence = 6
        file.spans(span([0, 1], 1, 3, Account.NEEDED), at=3)
    assert rows(file.close())["needed"] == pytest.approx(4)


def test_what_goes_on_counts_up_to_now(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(state=PilotState.ACTIVE)
    file.condition(4, Truth.UNDECIDED)
    opened = [
        OpenSpan(0, [0], START + 1, 0.0, "busy", int(Account.SPECULATIVE), 4, 9),
        OpenSpan(0, [1], START + 1, 0.0, "reserved", int(Account.NOTHING)),
    ]
    file.spans(at=1.5, final=False, opened=opened)
    file.store.commit()
    # The hub has it open still.
    report = summarise(file.folder, START + 11)
    assert report.live
    assert report.ledger["speculative_undecided"] == pytest.approx(10)
    assert report.ledger["reserved_idle"] == pytest.approx(10)
    assert report.ledger_error_core_s == pytest.approx(0, abs=1e-6)
    assert "still running" in page(report)
    file.close()


def test_of_a_killed_agent_the_last_seconds_are_uncertain_and_what_ran_is_lost(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=20)
    opened = [
        OpenSpan(0, [0], START + 4, 0.0, "busy", int(Account.NEEDED), 0, 9),
        OpenSpan(0, [1], START + 1, 0.0, "idle", int(Account.NOTHING)),
    ]
    file.spans(span([0], READY, 4), at=5, final=False, opened=opened)
    # The spawner starts another agent of the same job, which ends well.
    file.spans(span([0, 1], 9, 20), at=20, binding=2, began=9)
    report = summarise(file.close())
    assert report.ledger["lost"] == pytest.approx(5)
    assert report.ledger["total"] == pytest.approx(40)
    assert report.agents_lost == 1
    assert report.agents_lost_core_s == pytest.approx(5)
    assert "5.00 core-seconds ran in vain because of that" in page(report)
    assert report.uncertain_core_s == pytest.approx(2 * 2)
    assert report.ledger_error_core_s == pytest.approx(4)
    assert report.pilots[0].lives == 2


def test_time_without_a_job_is_nobodys(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=12)
    file.spans(span([0, 1], 1, 3), at=3)
    file.spans(span([0, 1], 10, 12), at=12, binding=2, job=9.5, began=10)
    report = summarise(file.close())
    assert (report.agents_lost, report.agents_lost_core_s) == (0, 0.0)
    assert "in vain" not in page(report)
    assert report.ledger["total"] == pytest.approx(2 * 3 + 2 * 2.5)
    assert report.ledger_error_core_s == pytest.approx(0, abs=1e-6)


def test_a_gate_what_it_took_and_what_it_cost(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=10)
    file.condition(4, Truth.TRUE)
    file.condition(5, Truth.FALSE)
    file.gate(opened=2, answered=6)
    file.spans(
        span([0, 1], 1, 2),
        span([0], 2, 7, Account.SPECULATIVE, condition=4, task=1, attempts=1),
        span([1], 2, 5, Account.SPECULATIVE, condition=5, task=2, attempts=1),
        span([1], 5, 6, Account.NOTHING, idle=0.25, reserved=0.75),
        span([1], 6, 10, Account.NEEDED),
        span([0], 7, 10),
        at=10,
    )
    (gate,) = summarise(file.close()).gates
    assert (gate.name, gate.state, gate.answer, gate.by, gate.channel) == ("gate-1", "ANSWERED", '"yes"', "ana", "cli")
    assert gate.took_s == pytest.approx(4)
    assert (gate.idle_core_s, gate.reserved_idle_core_s) == pytest.approx((0.25, 0.75))
    assert (gate.speculative_committed_core_s, gate.speculative_discarded_core_s) == pytest.approx((5, 3))
    # Four of its five seconds ran before the answer; two cores could have caught up in two.
    assert (gate.waited_core_s, gate.saved_s) == pytest.approx((4, 2))


def test_each_version_of_a_question_has_its_own_answer_and_its_own_time(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=20)
    file.condition(4, Truth.TRUE)
    file.condition(5, Truth.TRUE, reopened=1)
    earlier = [
        {"generation": 1, "reopened": 0, "state": "OPEN", "opened_at": START + 1, "ended_at": START + 2},
        {"generation": 2, "reopened": 0, "state": "ANSWERED", "opened_at": START + 2, "ended_at": START + 5,
         "answer": "yes", "by": "ana", "channel": "cli", "answered_at": START + 5, "question": "Was it good?"},
    ]  # fmt: skip
    file.gate(opened=8, answered=12, by="ben", answer='"no"', generation=3, reopened=1, earlier=earlier)
    file.spans(
        span([0], 3, 4, Account.SPECULATIVE, condition=4, task=1, attempts=1),
        span([0], 8, 10, Account.SPECULATIVE, condition=5, task=2, attempts=1),
        at=20,
    )
    report = summarise(file.close(), now=START + 100)
    first, second, third = report.gates
    assert [gate.generation for gate in report.gates] == [1, 2, 3]
    assert [(gate.state, gate.answer, gate.by) for gate in report.gates] == [
        ("ASKED_AGAIN", "", ""),
        ("ANSWERED", '"yes"', "ana"),
        ("ANSWERED", '"no"', "ben"),
    ]
    assert [gate.took_s for gate in report.gates] == pytest.approx([1, 3, 4])
    assert (second.question, third.question) == ("Was it good?", "Is it good?")
    assert third.changed == "its question changed"
    # What assumed an answer belongs to the version that was given it.
    assert [gate.speculative_committed_core_s for gate in (first, second, third)] == pytest.approx([0, 1, 2])
    assert {person.name: person.answers for person in report.people} == {"ana": 1, "ben": 1}
    assert "asked again: its question changed" in page(report)


def test_people_are_those_who_answered(tmp_path: Path) -> None:
    file = File(tmp_path)
    for number, (by, took) in enumerate([("ana", 1), ("ben", 5), ("ana", 4), ("ana", 2)], 1):
        file.gate(number, opened=2, answered=2 + took, by=by)
    file.gate(5, CheckpointState.EXPIRED, answered=100, by="deadline")
    file.gate(6, CheckpointState.OPEN)
    file.gate(7, CheckpointState.WITHDRAWN)
    file.gate(8, CheckpointState.PENDING, opened=0)
    report = summarise(file.close(), START + 12)
    assert [(it.name, it.answers, it.median_s, it.total_s, it.longest_s) for it in report.people] == [
        ("ana", 3, 2, 7, 4),
        ("ben", 1, 5, 5, 5),
    ]
    assert [gate.took_s for gate in report.gates[4:]] == pytest.approx([98, 10, 0, 0])
    assert report.gates[7].opened is None


def test_questions_that_stand_close_share_a_flag(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=100)
    file.spans(span([0, 1], 1, 100), at=100)
    for number, opened in enumerate((10, 12, 50, 200), 1):
        file.gate(number, opened=opened, answered=opened + 1)
    text = page(summarise(file.close()))
    assert 'style="left:10.00%">1+1</span>' in text
    assert 'style="left:50.00%">3</span>' in text
    # The last was asked when no pilot ran.
    assert "left:200" not in text


def test_the_timeline_has_every_core_without_overlap_and_not_too_many_bars(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(ended=101)
    short = [span([0], 1 + n * 0.01, 1.01 + n * 0.01, Account.NEEDED, busy=0.004, idle=0.006) for n in range(10_000)]
    file.spans(span([1], 1, 101, Account.BACKFILL, task=3, attempts=1), *short, at=101)
    report = summarise(file.close())
    assert [(line.node, line.core) for line in report.timeline] == [(0, 0), (0, 1)]
    assert len(report.timeline[0].bars) < 2500
    for line in report.timeline:
        assert line.bars[0].began == START
        ends = [bar.ended for bar in line.bars]
        assert all(bar.began >= end - 1e-6 for bar, end in zip(line.bars[1:], ends, strict=False))
    shares = {round(bar.share, 1) for bar in report.timeline[0].bars[1:-1]}
    assert shares == {0.4}
    assert report.timeline[1].bars[-1].task == 3


def test_a_session_without_accounts_has_an_empty_ledger(tmp_path: Path) -> None:
    folder = File(tmp_path).close()
    report = summarise(folder)
    assert report.ledger["total"] == 0.0
    assert (report.utilisation, report.ledger_error) == (0.0, 0.0)
    assert "kept accounts" in page(report)
    with sqlite3.connect(folder / "session.sqlite") as database:
        database.execute("DROP TABLE span")
        database.execute("DROP TABLE life")
    database.close()
    assert summarise(folder / "session.sqlite").ledger["total"] == 0.0


def test_what_is_no_session_is_named(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="session list"):
        summarise(tmp_path)
    broken = tmp_path / "session.sqlite"
    broken.write_bytes(b"not a database, but long enough to look like one" * 50)
    with pytest.raises(SessionError, match="cannot be read"):
        summarise(tmp_path)


def test_a_file_that_nobody_renewed_is_not_live(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.pilot(state=PilotState.ACTIVE)
    file.spans(at=4, final=False, opened=[OpenSpan(0, [0, 1], START + 1, 0.0, "busy", int(Account.NEEDED), 0, 9)])
    report = summarise(file.left_by_a_dead_hub(), START + 1000)
    assert not report.live
    # Nobody knows what became of it: nothing is claimed beyond its last word.
    assert report.ledger["total"] == pytest.approx(8)
    assert report.ledger["lost"] == pytest.approx(6)


def test_tasks_by_the_file(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.condition(4, Truth.TRUE)
    template = FunctionTemplate(digest=b"", code=b"", name="solve")
    file.store.put("template", 7, msgspec.msgpack.encode(template))
    known = msgspec.msgpack.encode(Submit(1, 3, 7, Shape(), b"", b""))
    for first, condition, spec in ((1 << 32 | 1, 0, known), (1 << 32 | 11, 4, b"of another release")):
        file.store.put("bulk", first, 3, 1, condition, START, spec, b"", b"")
    file.outcome(1 << 32 | 2, State.FAILED, run=3)
    file.outcome(1 << 32 | 11, State.HELD)
    folder = file.close()
    assert summarise(folder).states == {"DONE": 1, "FAILED": 1}
    listed = task_records(folder)
    assert [(it["task"], it["state"]) for it in listed] == [
        ("task.1.000001", "QUEUED"),
        ("task.1.000002", "FAILED"),
        ("task.1.000003", "QUEUED"),
        ("task.1.000011", "DONE"),
        ("task.1.000012", "QUEUED"),
        ("task.1.000013", "QUEUED"),
    ]
    assert [it["task"] for it in task_records(folder, "QUEUED", limit=2, offset=1)] == [
        "task.1.000003",
        "task.1.000012",
    ]
    assert [it["name"] for it in listed] == ["solve"] * 3 + [""] * 3
    shown = task_record(folder, 1 << 32 | 2)
    assert (shown["run"], shown["cores"], shown["began"]) == (3, "0", START + 1)
    with pytest.raises(SessionError, match=r"no task\.1\.000004"):
        task_record(folder, 1 << 32 | 4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 s"),
        (0.0000042, "4 µs"),
        (0.25, "250 ms"),
        (3.14159, "3.14 s"),
        (61.04, "61.0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (200000, "2 d 7 h"),
    ],
)
def test_durations(value: float, text: str) -> None:
    assert duration(value) == text


def test_seconds_have_the_digits_that_matter() -> None:
    assert [seconds(value) for value in (0.123, 123.456, 12345.6)] == ["0.12", "123.5", "12,346"]
