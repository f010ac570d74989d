"""A script that leaves while something has not ended says so; and it can wait for everything."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import pilot_hitl as ph
from pilot_hitl._leaving import Left
from tests.behaviour.studies import Study, further

SCRIPT = """
    def work(place):
        while not os.path.exists(FOLDER + "/go"):
            time.sleep(0.02)
        open(FOLDER + "/" + place, "a").close()
        return place

    with ph.Session("study", on_exit=sys.argv[1]) as session:
        if sys.argv[2] != "again":
            session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2, runtime=10))
        if sys.argv[2] != "end":
            session.map(work, ["a", "b", "c"])
            session.call(work, "d")
        question = session.checkpoint("go", question="Go?", choices=["yes", "no"])
        if sys.argv[2] == "undecided":
            with question.branch("yes"):
                session.call(work, "e")
        session.flush()
        if sys.argv[2] == "fails":
            raise KeyError("mine")
        if sys.argv[2] == "waits":
            open(FOLDER + "/go", "w").close()
            done, not_done = session.wait()
            print(len(done), len(not_done), sorted(set(os.listdir(FOLDER)) & set("abcd")))
"""


@pytest.mark.parametrize(
    ("on_exit", "how", "code", "said"),
    further(
        2,
        [
            ("stop", "undecided", 0, "5 tasks of session 'study' (1 in branches that nobody has decided yet) had not"),
            ("stop", "waits", 0, ""),
            ("stop", "stays", 0, "4 tasks of session 'study' had not ended and are given back as unfinished: run the"),
            ("stop", "fails", 1, "4 tasks of session 'study' had not ended and are given back as unfinished: run the"),
            ("stop", "end", 0, ""),
        ],
    ),
)
def test_what_had_not_ended_is_told_in_one_line(study: Study, on_exit: str, how: str, code: int, said: str) -> None:
    process = study.start(SCRIPT, on_exit, how)
    out, err = process.communicate(timeout=100)
    assert process.returncode == code
    told = [line for line in err.splitlines() if line.startswith("pilot-hitl: ")]
    assert len(told) == bool(said), err
    assert all(line.startswith(f"pilot-hitl: {said}") for line in told)
    assert how == "fails" or len(err.splitlines()) == len(told), err
    if how == "waits":
        assert out.strip() == "2 0 ['a', 'b', 'c', 'd']", "the map, and the call"


def test_work_that_goes_on_is_told_as_that(study: Study) -> None:
    process = study.start(SCRIPT, "detach", "stays")
    _out, err = process.communicate(timeout=100)
    assert "4 tasks of session 'study' had not ended and go on with its pilots" in err
    (study.folder / "go").touch()
    assert study.run(SCRIPT, "stop", "again", timeout=100) == ""


def _touch(place: str, seconds: float) -> str:
    time.sleep(seconds)
    Path(place).touch()
    return place


def test_wait_waits_for_all_that_is_needed(study: Study) -> None:
    with study.session() as session:
        assert session.wait() == (set(), set())
        for number in range(6):
            session.call(_touch, str(study.folder / f"dropped{number}"), 0.05)
        failing = session.call(_touch, str(study.folder / "no" / "such" / "folder"), 0.0)
        sequence = session.map(_touch, [str(study.folder / f"map{number}") for number in range(20)], [0.0] * 20)
        question = session.checkpoint("go", question="Go?", choices=["yes", "no"])
        open_branch = question.branch("yes").call(_touch, str(study.folder / "branch"), 0.0)
        done, not_done = session.wait()
        assert not_done == {open_branch}, "nobody has answered"
        assert {failing, sequence} <= done
        assert len(done) == 8
        assert len(list(study.folder.iterdir())) >= 26
        assert isinstance(failing.exception(0), FileNotFoundError), "what became of it is its future's to say"


def test_wait_has_a_timeout_and_its_place(study: Study) -> None:
    with study.session(cores=0) as session:
        future = session.call(len, "ab")
        assert session.wait(0.05) == (set(), {future}), "there is no pilot"
        question = session.checkpoint("go", question="Go?", choices=["yes", "no"])
        with question.branch("yes"), pytest.raises(ph.Undecided, match="only declares"):
            session.wait()
        study.pilot(session)
        assert session.wait(60) == ({future}, set())
    with pytest.raises(ph.SessionClosed):
        session.wait()


def test_wait_tells_that_no_pilot_is_left(study: Study) -> None:
    with study.session(cores=0) as session:
        pilot = study.pilot(session)
        question = session.checkpoint("go", question="Go?", choices=["yes", "no"])
        asked = question.branch("yes").call(len, "abc")
        endless = session.call(time.sleep, 3600.0)
        pilot.wait_ready(60)
        threading.Timer(0.5, pilot.cancel, ["enough for today"]).start()
        with pytest.raises(ph.PilotFailed, match=r"no pilot is left: pilot 1 .*enough for today"):
            session.wait(100)
        assert not endless.done(), "nothing ends by that"
        assert session.wait(0) == (set(), {endless, asked}), "it only looks"
        endless.cancel()
        assert session.wait(100)[1] == {asked}, "no pilot has to do what waits for a person"
        assert endless.cancelled()
        last = session.call(len, "ab")
        with pytest.raises(ph.PilotFailed):
            session.wait(100)
        study.pilot(session)
        assert session.wait(100)[1] == {asked}
        assert last.result(0) == 2


def test_one_task_is_one_task() -> None:
    assert "1 task of session 's' had" in Left(1, 0).describe("s", "stop")
    assert Left(0, 0).describe("s", "stop") == ""
    assert "session.wait()" not in Left(0, 2).describe("s", "stop"), "it does not wait for people"
