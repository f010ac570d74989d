from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from pathlib import Path

import pytest

from pilot_hitl.inbox import audit, spool
from pilot_hitl.model.canonical import Json
from pilot_hitl.wire import messages as wire
from pilot_hitl.wire.places import SessionPlaces
from tests.unit.cli.conftest import Cli
from tests.unit.cli.fakes import FakeHub, publish

REQUEST: dict[str, Json] = {
    "id": "mesh/1",
    "session": "mesh",
    "name": "accept-mesh",
    "question": "Is the mesh good enough?",
    "choices": ["accept", "refine"],
    "form": {"enum": ["accept", "refine"]},
    "state": "OPEN",
}
NEEDED = {"id", "session", "name", "question", "choices", "state"}


# --- without a hub ----------------------------------------------------------------------------------------------------


def test_the_list_without_a_hub(cli: Cli, home: Path) -> None:
    publish(home)
    publish(home, "other", 7, "other")
    rows = json.loads(cli("inbox", "list", "--json").stdout)
    assert [row["id"] for row in rows] == ["mesh/1", "other/7"]
    assert set(rows[0]) >= NEEDED
    assert (rows[0]["choices"], rows[0]["state"], rows[0]["queued"]) == (["accept", "refine"], "OPEN", 0)
    assert [row["id"] for row in json.loads(cli("inbox", "list", "-s", "other", "--json").stdout)] == ["other/7"]
    table = cli("inbox", "list").stdout
    assert "Is the mesh good enough?" in table
    assert "accept, refine" in table


def test_an_empty_inbox(cli: Cli) -> None:
    assert json.loads(cli("inbox", "list", "--json").stdout) == []
    assert cli("inbox", "list").stdout == "No open requests.\n"


def test_a_broken_request_does_not_hide_the_others(cli: Cli, home: Path) -> None:
    publish(home)
    (SessionPlaces(home, "mesh").requests / "2.json").write_text("{")
    assert [row["id"] for row in json.loads(cli("inbox", "list", "--json").stdout)] == ["mesh/1"]


@pytest.mark.parametrize("wanted", ["mesh/1", "accept-mesh", "mesh/accept-mesh"])
def test_an_answer_without_a_hub_is_queued_not_accepted(cli: Cli, home: Path, wanted: str) -> None:
    publish(home)
    said = cli("inbox", "answer", wanted, "accept", "--comment", "looks good")
    assert said.exit_code == 0
    assert said.stdout.startswith('queued: mesh/1 = "accept"\n')
    assert "is next opened" in said.stdout
    assert "pilot-hitl session resume mesh" in said.stdout
    (taken,) = spool.take(SessionPlaces(home, "mesh"))
    assert (taken.answer.checkpoint, taken.answer.value, taken.answer.comment) == (1, '"accept"', "looks good")
    assert taken.answer.by == spool.user_name(os.getuid())


def test_a_queued_answer_is_seen(cli: Cli, home: Path) -> None:
    publish(home)
    first = json.loads(cli("inbox", "answer", "mesh/1", "accept", "--json").stdout)
    assert (first["status"], first["id"], first["value"]) == ("queued", "mesh/1", "accept")
    assert Path(first["file"]).is_file()
    assert json.loads(cli("inbox", "list", "--json").stdout)[0]["queued"] == 1
    assert 'It replaces your earlier answer "accept".' in cli("inbox", "answer", "mesh/1", "refine").stderr
    assert json.loads(cli("inbox", "list", "--json").stdout)[0]["queued"] == 1


def test_a_wrong_answer_is_refused_and_not_queued(cli: Cli, home: Path) -> None:
    publish(home)
    said = cli("inbox", "answer", "mesh/1", "maybe")
    assert said.exit_code == 1
    assert said.stderr == "pilot-hitl: maybe is not one of: accept, refine\n"
    assert spool.take(SessionPlaces(home, "mesh")) == []


@pytest.mark.parametrize(("text", "value"), [("-3", -3), ("-3.5", -3.5), ("7", 7)])
def test_a_number_below_zero_is_an_answer_not_an_option(cli: Cli, home: Path, text: str, value: float) -> None:
    publish(home, choices=[], form={"type": "number"})
    assert json.loads(cli("inbox", "answer", "mesh/1", text, "--json").stdout)["value"] == value


def test_what_may_be_refused_later_is_said_now(cli: Cli, home: Path) -> None:
    publish(home, assignees=["someone-else"], deadline_at=time.time() - 60)
    said = cli("inbox", "answer", "mesh/1", "accept")
    assert said.exit_code == 0
    assert "mesh/1 is for someone-else" in said.stderr
    assert "The deadline was" in said.stderr


def test_show_without_a_hub(cli: Cli, home: Path) -> None:
    shown: Json = [
        {"kind": "markdown", "title": "Notes", "text": "*fine*"},
        {"kind": "table", "columns": ["size", "error"], "rows": [[10, 0.5], [20, 0.25]]},
        {"kind": "image", "name": "mesh.png", "path": "figures/mesh.png", "data": "A" * 1000},
        "odd",
    ]
    publish(home, show=shown, question="# Is it good?\nLook twice.")
    said = cli("inbox", "show", "accept-mesh").stdout
    for words in (
        "Look twice.",
        "Notes:",
        "*fine*",
        "size  error",
        "0.25",
        "figures/mesh.png",
        "one of: accept, refine",
    ):
        assert words in said
    assert "AAAA" not in said
    assert "pilot-hitl inbox answer mesh/1 VALUE" in said
    assert json.loads(cli("inbox", "show", "mesh/1", "--json").stdout)["show"] == shown


def test_tables_are_shown_with_their_own_titles(cli: Cli, home: Path) -> None:
    """Titles that differ by case or are alike, or that our lists give a meaning to, are the author's."""
    units: Json = {
        "kind": "table",
        "columns": ["power mW", "power MW", "began"],
        "rows": [[-1234.56789, -1234.56712, 17]],
    }
    facts: Json = {"kind": "table", "columns": ["", ""], "rows": [["learning rate", 0.1], ["epochs", 10]]}
    publish(home, show=[units, facts])
    said = cli("inbox", "show", "mesh/1").stdout
    assert "power mW     power MW     began\n-1234.56789  -1234.56712  17\n" in said
    assert "learning rate  0.1\nepochs         10\n" in said


def test_unknown_and_ambiguous_requests(cli: Cli, home: Path) -> None:
    publish(home)
    publish(home, number=2)
    assert "there is no request 'absent'" in cli("inbox", "show", "absent").stderr
    assert "mesh/1, mesh/2" in cli("inbox", "answer", "accept-mesh", "accept").stderr


def test_the_audit_without_a_hub(cli: Cli, home: Path) -> None:
    publish(home)
    assert "no store yet" in cli("inbox", "audit", "mesh/1").stderr
    places = SessionPlaces(home, "mesh")
    entries = []
    head = audit.genesis("mesh")
    for number in (1, 2, 1):
        entries.append(audit.append(head, audit.Kind.ANSWER, number, 1.7e9, {"by": "ana"}))
        head = entries[-1].hash
    with contextlib.closing(sqlite3.connect(places.database)) as database, database:
        database.execute("CREATE TABLE audit (sequence INTEGER PRIMARY KEY, content BLOB, hash BLOB)")
        rows = [(entry.content, entry.hash) for entry in entries]
        database.executemany("INSERT INTO audit (content, hash) VALUES (?,?)", rows)
    assert len(json.loads(cli("inbox", "audit", "mesh", "--json").stdout)) == 3
    assert [entry["checkpoint"] for entry in json.loads(cli("inbox", "audit", "mesh/1", "--json").stdout)] == [1, 1]
    assert "by ana" in cli("inbox", "audit", "accept-mesh").stdout
    assert "nothing is recorded of request mesh/7" in cli("inbox", "audit", "mesh/7").stderr
    with contextlib.closing(sqlite3.connect(places.database)) as database, database:
        database.execute("DELETE FROM audit WHERE sequence=2")
    assert json.loads(cli("inbox", "audit", "mesh", "--json").stdout)[-1]["kind"] == "fault"


# --- with a hub -------------------------------------------------------------------------------------------------------


def _accepting(hub: FakeHub) -> None:
    def answer(message: wire.Message) -> list[wire.Message]:
        if isinstance(message, wire.Answer):
            return [wire.Reply(message.token, '{"accepted": true, "answered_at": 1700000000.0}')]
        return []

    hub.answerer = answer


def test_the_list_comes_from_the_hub(cli: Cli, home: Path, hub: FakeHub) -> None:
    publish(home, "mesh", 9)
    hub.replies["inbox"] = [REQUEST, {"id": "mesh/2"}]
    rows = json.loads(cli("inbox", "list", "--all", "--json").stdout)
    assert [row["id"] for row in rows] == ["mesh/1", "mesh/2"]
    assert all(set(row) >= NEEDED for row in rows)
    hello = hub.said(wire.Hello)[-1]
    assert (hello.role, hello.session, hello.pid) == ("tool", "", os.getpid())
    assert [json.loads(query.arguments) for query in hub.said(wire.Query) if query.what == "inbox"] == [{"all": True}]


@pytest.mark.parametrize("wanted", ["mesh/1", "accept-mesh"])
def test_accepted_is_said_when_the_hub_said_so(cli: Cli, hub: FakeHub, home: Path, wanted: str) -> None:
    hub.replies.update(inbox=[REQUEST], request=REQUEST)
    _accepting(hub)
    said = cli("inbox", "answer", wanted, "accept", "-c", "good")
    assert (said.exit_code, said.stdout) == (0, 'accepted: mesh/1 = "accept"\n')
    (given,) = hub.said(wire.Answer)
    assert (given.checkpoint, given.value, given.comment, given.channel) == (1, '"accept"', "good", "cli")
    hello = hub.said(wire.Hello)[-1]
    assert hello.session == "mesh"
    assert not (SessionPlaces(home, "mesh").spool / "new").exists()


def test_the_record_is_in_the_json(cli: Cli, hub: FakeHub) -> None:
    hub.replies["request"] = REQUEST
    _accepting(hub)
    said = json.loads(cli("inbox", "answer", "mesh/1", "accept", "--json").stdout)
    assert (said["status"], said["accepted"], said["value"], said["answered_at"]) == ("accepted", True, "accept", 1.7e9)


@pytest.mark.parametrize(("duration", "after", "told"), [("2h", 7200.0, 1.7e9), ("none", 0.0, None)])
def test_a_deadline_moves(cli: Cli, hub: FakeHub, duration: str, after: float, told: float | None) -> None:
    hub.replies.update(request=REQUEST, session={})

    def answer(message: wire.Message) -> list[wire.Message]:
        if isinstance(message, wire.Extend):
            return [wire.Reply(message.token, json.dumps({"accepted": True, "deadline_at": told}))]
        return []

    hub.answerer = answer
    said = json.loads(cli("inbox", "extend", "mesh/1", duration, "--json").stdout)
    assert said == {"id": "mesh/1", "deadline_at": told}
    (given,) = hub.said(wire.Extend)
    assert (given.checkpoint, given.seconds) == (1, after)
    assert given.by
    assert [hello.role for hello in hub.said(wire.Hello)][-2:] == ["observer", "tool"], "one that opens the session"
    text = cli("inbox", "extend", "mesh/1", duration).stdout
    assert text.startswith("mesh/1 has no deadline now" if told is None else "mesh/1 has until 2023-")


@pytest.mark.parametrize("duration", ["soon", "0", "-5"])
def test_a_deadline_does_not_move_to_anywhere(cli: Cli, hub: FakeHub, duration: str) -> None:
    said = cli("inbox", "extend", "mesh/1", "--", duration)
    assert said.exit_code != 0
    assert hub.said(wire.Extend) == []


def test_a_refusal_is_an_error(cli: Cli, hub: FakeHub) -> None:
    hub.replies["request"] = REQUEST

    def refuse(message: wire.Message) -> list[wire.Message]:
        if isinstance(message, wire.Answer):
            return [wire.Refused("AnswerRefused", "ana answered 'refine' at 10:00", message.token)]
        return []

    hub.answerer = refuse
    said = cli("inbox", "answer", "mesh/1", "accept")
    assert (said.exit_code, said.stdout) == (1, "")
    assert "ana answered 'refine'" in said.stderr


def test_no_yes_is_no_acceptance(cli: Cli, hub: FakeHub) -> None:
    hub.replies["request"] = REQUEST
    hub.answerer = lambda message: [wire.Reply(message.token, "{}")] if isinstance(message, wire.Answer) else []
    said = cli("inbox", "answer", "mesh/1", "accept")
    assert (said.exit_code, said.stdout) == (1, "")
    assert "did not accept" in said.stderr


def test_an_invalid_answer_is_refused_before_the_hub_hears_it(cli: Cli, hub: FakeHub) -> None:
    hub.replies["request"] = REQUEST
    assert cli("inbox", "answer", "mesh/1", "maybe").exit_code == 1
    assert hub.said(wire.Answer) == []


def test_choices_without_a_form_are_enough(cli: Cli, hub: FakeHub) -> None:
    hub.replies["request"] = {**REQUEST, "form": ""}
    _accepting(hub)
    assert cli("inbox", "answer", "mesh/1", "accept").exit_code == 0
    assert cli("inbox", "answer", "mesh/1", "maybe").exit_code == 1


def test_the_spool_can_be_chosen(cli: Cli, home: Path, hub: FakeHub) -> None:
    publish(home)
    assert cli("inbox", "answer", "mesh/1", "accept", "--spool").stdout.startswith("queued: ")
    assert hub.said(wire.Answer) == []


def test_what_the_hub_does_not_hold_is_read_and_queued_as_without_it(cli: Cli, home: Path, hub: FakeHub) -> None:
    publish(home)
    publish(home, "other", 7, "other")
    hub.replies["sessions"] = [{"session": "mesh", "state": "open"}, {"session": "other", "state": "closed"}]
    hub.replies.update(inbox=[REQUEST], request=REQUEST)
    _accepting(hub)
    assert [row["id"] for row in json.loads(cli("inbox", "list", "--json").stdout)] == ["mesh/1", "other/7"]
    assert cli("inbox", "answer", "accept-mesh", "accept").stdout.startswith("accepted: mesh/1")
    assert cli("inbox", "answer", "other", "accept").stdout.startswith("queued: other/7")
    assert len(spool.take(SessionPlaces(home, "other"))) == 1
    assert "one of: accept, refine" in cli("inbox", "show", "other/7").stdout


def test_an_answer_is_not_left_to_a_hub_that_came_up_meanwhile(
    cli: Cli, home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(home)
    _accepting(hub)
    answers = iter([False, True])
    monkeypatch.setattr("pilot_hitl.cli._requests.held", lambda _session: False)
    monkeypatch.setattr("pilot_hitl.cli.inbox.held", lambda _session: next(answers))
    assert cli("inbox", "answer", "mesh/1", "accept").stdout.startswith("accepted: mesh/1")
    assert spool.take(SessionPlaces(home, "mesh")) == []


def test_show_and_audit_from_the_hub(cli: Cli, home: Path, hub: FakeHub) -> None:
    publish(home)
    hub.replies["request"] = {**REQUEST, "state": "ANSWERED", "record": {"by": "ana"}}
    said = cli("inbox", "show", "mesh/1").stdout
    assert "ana" in said
    assert "Answer with" not in said
    hub.replies["audit"] = [{"at": 1.7e9, "kind": "answer", "checkpoint": 1, "facts": {"by": "ana"}}]
    assert "answer" in cli("inbox", "audit", "mesh/1").stdout
    assert json.loads(cli("inbox", "audit", "mesh", "--json").stdout) == hub.replies["audit"]
    asked = [json.loads(query.arguments) for query in hub.said(wire.Query) if query.what == "audit"]
    assert asked == [{"id": "mesh/1"}, {"session": "mesh"}]


def test_an_unknown_request(cli: Cli, hub: FakeHub) -> None:
    hub.replies["request"] = wire.Refused("UnknownCheckpoint", "there is no request mesh/9")
    said = cli("inbox", "show", "mesh/9")
    assert (said.exit_code, said.stderr) == (1, "pilot-hitl: there is no request mesh/9\n")


# --- versions, queued answers, size -----------------------------------------------------------------------------------


def test_an_answer_names_the_version_of_a_question_that_was_asked_again(cli: Cli, home: Path) -> None:
    publish(home, generation=2)
    assert [row["id"] for row in json.loads(cli("inbox", "list", "--json").stdout)] == ["mesh/1@2"]
    for plain in ("mesh/1", "accept-mesh", "mesh/accept-mesh"):
        assert "name the version that you answer, mesh/1@2" in cli("inbox", "answer", plain, "accept").stderr
    assert spool.waiting(SessionPlaces(home, "mesh")) == []
    said = cli("inbox", "answer", "mesh/1@1", "nonsense")
    assert said.exit_code == 1
    assert "asked again since version 1" in said.stderr
    assert "mesh/1@3 was never asked" in cli("inbox", "answer", "mesh/1@3", "accept").stderr.replace("'", "")
    assert cli("inbox", "answer", "accept-mesh@2", "accept").stdout.startswith('queued: mesh/1@2 = "accept"')
    # The one that cannot count waits for the record alone.
    assert [each.answer.generation for each in spool.waiting(SessionPlaces(home, "mesh"))] == [1, 2]
    assert json.loads(cli("inbox", "list", "--json").stdout)[0]["queued"] == 1
    assert "mesh/1@1 was asked again since" in cli("inbox", "show", "mesh/1@1").stderr


@pytest.mark.parametrize(("wanted", "generation"), [("mesh/1@2", 2), ("mesh/1@1", 1)])
def test_the_hub_is_told_which_version_was_answered(cli: Cli, hub: FakeHub, wanted: str, generation: int) -> None:
    hub.replies["request"] = {**REQUEST, "id": "mesh/1@2", "generation": 2}
    _accepting(hub)
    assert cli("inbox", "answer", wanted, "accept").exit_code == 0
    (given,) = hub.said(wire.Answer)
    assert (given.checkpoint, given.generation) == (1, generation)
    assert "name the version" in cli("inbox", "answer", "mesh/1", "accept").stderr
    assert len(hub.said(wire.Answer)) == 1


def test_a_queued_answer_is_taken_back_once(cli: Cli, home: Path) -> None:
    publish(home)
    assert "nothing to take back" in cli("inbox", "withdraw", "mesh/1").stderr
    cli("inbox", "answer", "mesh/1", "accept", "-c", "first")
    said = json.loads(cli("inbox", "withdraw", "accept-mesh", "--json").stdout)
    assert said == {"status": "withdrawn", "id": "mesh/1", "value": "accept"}
    assert cli("inbox", "withdraw", "mesh/1").exit_code == 1
    cli("inbox", "answer", "mesh/1", "refine")
    shown = json.loads(cli("inbox", "show", "mesh/1", "--json").stdout)["queued_answers"]
    assert [(each["value"], each["standing"], each["comment"]) for each in shown] == [
        ("accept", "withdrawn", "first"),
        ("(taken back)", "withdraws", ""),
        ("refine", "counts", ""),
    ]
    assert "withdrawn" in cli("inbox", "show", "mesh/1").stdout


def test_other_peoples_answers_are_not_taken_back(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(home)
    cli("inbox", "answer", "mesh/1", "accept")
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert "nothing to take back" in cli("inbox", "withdraw", "mesh/1").stderr
    assert "1 earlier answer(s) of other people" in cli("inbox", "answer", "mesh/1", "refine").stderr


@pytest.mark.parametrize("default", ["refine", None])
def test_a_deadline_that_passed_while_nobody_held_the_session_is_said(
    cli: Cli, home: Path, default: str | None
) -> None:
    now = time.time()
    for session in ("mesh", "late"):
        if default is None:
            publish(home, session, deadline_at=now - 5)
        else:
            publish(home, session, deadline_at=now - 5, default=default)
    queued = json.loads(cli("inbox", "answer", "mesh/1", "accept", "--json").stdout)
    os.utime(queued["file"], (now - 10, now - 10))
    rows = json.loads(cli("inbox", "list", "--json").stdout)
    assert [(row["id"], row["state"]) for row in rows] == [("late/1", "EXPIRED"), ("mesh/1", "QUEUED")]
    assert f"{default or 'no answer'} is taken when session late" in cli("inbox", "show", "late/1").stdout
    assert "the queued answer is taken when session mesh" in cli("inbox", "show", "mesh/1").stdout
    assert "OPEN" not in cli("inbox", "list").stdout


def test_what_comes_after_the_deadline_replaces_nothing_and_takes_nothing_back(cli: Cli, home: Path) -> None:
    now = time.time()
    publish(home, deadline_at=now - 5)
    queued = json.loads(cli("inbox", "answer", "mesh/1", "accept", "--json").stdout)
    os.utime(queued["file"], (now - 10, now - 10))
    late = cli("inbox", "answer", "mesh/1", "refine").stderr
    assert "a late answer is kept but not applied" in late
    assert "replaces" not in late
    refused = cli("inbox", "withdraw", "mesh/1")
    assert refused.exit_code == 1
    assert 'nothing is taken back any more: "accept" counts' in refused.stderr
    shown = json.loads(cli("inbox", "show", "mesh/1", "--json").stdout)["queued_answers"]
    assert [(each["value"], each["standing"]) for each in shown] == [("accept", "counts"), ("refine", "unfit")]


def test_what_could_not_count_is_not_said_to(cli: Cli, home: Path) -> None:
    publish(home, assignees=["someone-else"])
    cli("inbox", "answer", "mesh/1", "accept")
    shown = json.loads(cli("inbox", "show", "mesh/1", "--json").stdout)
    assert ([each["standing"] for each in shown["queued_answers"]], shown["queued"]) == (["unfit"], 0)


def test_long_texts_are_cut_in_lists_and_their_length_is_said(cli: Cli, home: Path) -> None:
    long = "x" * (1 << 20)
    publish(home, question=long, choices=[long, "b"], form={"enum": [long, "b"]})
    places = SessionPlaces(home, "mesh")
    entry = audit.append(audit.genesis("mesh"), audit.Kind.REQUEST, 1, 1.7e9, {"question": long, "by": long})
    with contextlib.closing(sqlite3.connect(places.database)) as database, database:
        database.execute("CREATE TABLE audit (sequence INTEGER PRIMARY KEY, content BLOB, hash BLOB)")
        database.execute("INSERT INTO audit (content, hash) VALUES (?,?)", (entry.content, entry.hash))
    for words in (["list"], ["audit", "mesh"], ["answer", "mesh/1", "c"]):
        said = cli("inbox", *words)
        assert len(said.stdout + said.stderr) < 5000
        assert "characters)" in said.stdout + said.stderr
    assert cli("inbox", "answer", "mesh/1", "b").exit_code == 0
    assert len(cli("inbox", "list", "--json").stdout) > 3 << 20, "all of it"


@pytest.mark.parametrize(
    ("choices", "text", "value"),
    [
        ([True, False], "yes", True),
        ([True, False], "No", False),
        ([True, False], "true", True),
        ([True, "yes"], "yes", "yes"),
        ([None, 0.123456789], "null", None),
        ([None, 0.123456789], "0.123456789", 0.123456789),
    ],
)
def test_choices_are_answered_as_the_list_prints_them(
    cli: Cli, home: Path, choices: list[Json], text: str, value: Json
) -> None:
    publish(home, choices=choices, form={"enum": choices})
    assert json.loads(cli("inbox", "answer", "mesh/1", text, "--json").stdout)["value"] == value
    listed = cli("inbox", "list").stdout
    assert all(json.dumps(choice).strip('"') in listed for choice in choices)
