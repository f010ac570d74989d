"""Executables against real processes: what a user's description promises."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, wait_for


def shell(text: str, **more: Any) -> ph.TaskDescription:
    return ph.TaskDescription(executable="/bin/sh", arguments=["-c", text], **more)


def test_output_arguments_and_names_of_any_text(study: Study) -> None:
    odd = ["", " ", "two\nlines", "ünï→😀", "'\"$HOME`id`", "-n", "\\n", "*"]
    with study.session() as session:
        echoed = session.submit(
            ph.TaskDescription(
                executable=sys.executable,
                arguments=["-c", "import sys; print(ascii(sys.argv[1:])); print('é', file=sys.stderr)", *odd],
                name="näme\nwith lines",
                environment={"PYTHONIOENCODING": "utf-8"},
            )
        )
        binary = session.submit(shell(r"printf '\377\000x\n\n'"))
        silent = session.submit(ph.TaskDescription(executable="true"))
        assert echoed.result().stdout == ascii(odd) + "\n"
        assert echoed.result().stderr == "é\n"
        assert binary.result().stdout_bytes == b"\xff\x00x\n\n"
        done = silent.result()
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_megabytes_of_output(study: Study) -> None:
    with study.session() as session:
        task = session.submit(shell("head -c 5000000 /dev/zero | tr '\\0' x; echo end >&2"))
        assert task.result().stdout == "x" * 5_000_000
        assert task.result().stderr == "end\n"


def test_ways_to_fail(study: Study) -> None:
    with study.session() as session:
        exits = session.submit(shell("echo out; echo because >&2; exit 7"))
        killed = session.submit(shell("kill -9 $$"))
        missing = session.submit(ph.TaskDescription(executable="/no/such/program"))
        unknown = session.submit(ph.TaskDescription(executable="no-such-program-anywhere"))
        plain = study.folder / "plain"
        plain.write_text("no program")
        forbidden = session.submit(ph.TaskDescription(executable=str(plain)))
        with pytest.raises(ph.TaskFailed, match="7") as caught:
            exits.result()
        assert caught.value.exit_code == 7
        assert caught.value.stderr == "because\n"
        assert caught.value.task == exits.task
        assert caught.value.attempt[0] >= 1
        with pytest.raises(ph.TaskFailed, match="SIGKILL") as died:
            killed.result()
        assert died.value.exit_code == -9
        for task, word in ((missing, "/no/such/program"), (unknown, "no-such-program-anywhere"), (forbidden, "plain")):
            with pytest.raises(ph.TaskFailed, match=word):
                task.result()
        assert session.submit(ph.TaskDescription(executable="true")).result().exit_code == 0


def test_environment_directory_and_files(study: Study) -> None:
    real = study.folder / "real"
    with study.session() as session:
        seen = session.submit(shell("echo $STUDY; pwd", environment={"STUDY": "a b"})).result()
        assert seen.stdout.splitlines() == ["a b", seen.sandbox]
        first = session.submit(shell("echo x > out.txt; pwd"))
        second = session.submit(shell("ls"))
        assert first.result().sandbox != second.result().sandbox
        assert second.result().stdout == ""
        assert (Path(first.result().sandbox) / "out.txt").read_text() == "x\n"
        placed = session.submit(shell("echo made > made.txt; echo told", sandbox=str(real), stdout="told.txt"))
        placed.result()
        assert (real / "made.txt").read_text() == "made\n"
        assert (real / "told.txt").read_text() == "told\n"
        assert placed.result().stdout == "told\n"
        absolute = study.folder / "absolute.txt"
        session.submit(shell("echo wrong >&2", stderr=str(absolute))).result()
        assert absolute.read_text() == "wrong\n"


def test_lines_before_and_after(study: Study) -> None:
    with study.session() as session:
        good = session.submit(
            shell("echo $FROM_PRE; echo x > made", pre_exec=["export FROM_PRE=yes"], post_exec=["cp made copied"])
        )
        bad = session.submit(shell(f"touch {study.folder}/never", pre_exec=["false", "echo not reached"]))
        assert good.result().stdout == "yes\n"
        assert (Path(good.result().sandbox) / "copied").read_text() == "x\n"
        with pytest.raises(ph.TaskFailed):
            bad.result()
        assert not (study.folder / "never").exists()


def test_staging(study: Study) -> None:
    source = study.folder / "input.dat"
    source.write_text("data")
    target = study.folder / "result.dat"
    with study.session() as session:
        task = session.submit(
            shell(
                "tr a-z A-Z < given.dat > made.dat",
                input_staging=[f"{source} > given.dat"],
                output_staging=[f"made.dat > {target}"],
            )
        )
        done = task.result()
        assert target.read_text() == "DATA"
        assert str(target) in done.outputs
        lost = session.submit(shell("true", output_staging=[f"never-made > {study.folder}/x"]))
        with pytest.raises(ph.TaskFailed, match="never-made"):
            lost.result()


@pytest.mark.one_node("a rank of two cores")
def test_ranks_and_cores(study: Study) -> None:
    with study.session(cores=4) as session:
        ranks = session.submit(shell("echo $PILOT_HITL_RANK/$PILOT_HITL_RANKS; sleep 0.05", ranks=4))
        mixed = session.submit(
            [shell("sleep 0.02", cores_per_rank=1 + index % 2, name=f"mixed {index}") for index in range(12)]
        )
        assert sorted(ranks.result().stdout.split()) == ["0/4", "1/4", "2/4", "3/4"]
        assert [task.result().exit_code for task in mixed] == [0] * 12
        failing = session.submit(shell('test "$PILOT_HITL_RANK" != 2', ranks=3))
        with pytest.raises(ph.TaskFailed):
            failing.result()


@pytest.mark.one_node("a rank of two cores")
def test_what_can_never_fit_is_refused(study: Study) -> None:
    with study.session(cores=2) as session:
        session.submit(shell("true")).result()
        for request in ({"cores_per_rank": 3}, {"gpus_per_rank": 1}, {"ranks": 3}):
            with pytest.raises(ph.CannotFit):
                session.submit(shell("true", **request))
        with pytest.raises(ph.CannotFit):
            session.options(cores=99).call(os.getpid)
        assert session.submit(shell("true", cores_per_rank=2)).result().exit_code == 0


def test_retries_count_what_failed(study: Study) -> None:
    with study.session() as session:
        log = study.folder / "tries"
        task = session.submit(shell(f"echo x >> {log}; test $(wc -l < {log}) -ge 3", retries=5))
        assert task.result().exit_code == 0
        assert len(study.lines("tries")) == 3
        hopeless = session.submit(shell(f"echo x >> {study.folder}/hopeless; false", retries=2))
        with pytest.raises(ph.TaskFailed):
            hopeless.result()
        assert len(study.lines("hopeless")) == 3


def test_timeout(study: Study) -> None:
    with study.session() as session:
        slow = session.submit(shell("sleep 60 & sleep 60", timeout=0.3, grace=0.2))
        stubborn = session.submit(shell("trap '' TERM; while :; do sleep 0.1; done", timeout=0.3, grace=0.2))
        for task in (slow, stubborn):
            with pytest.raises(ph.TaskTimeout):
                task.result(20)
        wait_for(lambda: not _sleeping(study), "its children are gone")


def _sleeping(study: Study) -> list[str]:
    return [stray for stray in study.strays() if "sleep 60" in stray]


def test_cancel_reaches_every_descendant(study: Study) -> None:
    script = (
        f"(setsid sleep 6000 & echo $! >> {study.folder}/pids); (sleep 6000 & echo $! >> {study.folder}/pids); "
        f"setsid sh -c 'trap \"\" TERM; echo $$ >> {study.folder}/pids; while :; do sleep 0.1; done' & "
        f"echo $$ >> {study.folder}/pids; wait; sleep 6000"
    )
    with study.session() as session:
        tree = session.submit(shell(script, grace=0.3))
        pids = wait_for(lambda: len(lines := study.lines("pids")) >= 4 and lines, "the tree is there")
        assert tree.cancel()
        with pytest.raises(ph.TaskCanceled):
            tree.result(20)
        assert tree.cancelled()
        assert not tree.cancel()
        wait_for(lambda: not [pid for pid in map(int, pids) if psutil.pid_exists(pid)], "nothing of it lives")


def test_children_of_a_task_that_ended_are_ended(study: Study) -> None:
    with study.session() as session:
        task = session.submit(shell(f"setsid sleep 6001 & echo $! >> {study.folder}/pids"))
        task.result(20)
        pid = int(study.lines("pids")[0])
        wait_for(lambda: not psutil.pid_exists(pid), "its child is gone")


def test_cancel_of_what_waits(study: Study) -> None:
    with study.session(cores=1) as session:
        blocking = session.submit(shell(f"while [ ! -e {study.folder}/go ]; do sleep 0.02; done"))
        waiting = session.submit([shell(f"echo x >> {study.folder}/ran", name=f"{index}") for index in range(20)])
        for task in waiting[:10]:
            assert task.cancel()
        for task in waiting[:10]:
            with pytest.raises(ph.TaskCanceled):
                task.result(20)
        (study.folder / "go").touch()
        assert blocking.result().exit_code == 0
        assert [task.result().exit_code for task in waiting[10:]] == [0] * 10
        assert len(study.lines("ran")) == 10


def test_priorities(study: Study) -> None:
    with study.session(cores=1) as session:
        blocking = session.submit(shell(f"while [ ! -e {study.folder}/go ]; do sleep 0.02; done"))
        wait_for(lambda: "RUNNING" in str(session.query("session")["states"]), "it runs")
        order = [0, 5, -5, 9]
        tasks = session.submit([shell(f"echo {level} >> {study.folder}/order", priority=level) for level in order])
        session.flush()
        (study.folder / "go").touch()
        for task in [blocking, *tasks]:
            task.result(20)
        assert study.lines("order") == ["9", "5", "0", "-5"]


def test_two_thousand(study: Study) -> None:
    with study.session() as session:
        tasks = session.submit([shell(f"echo x >> {study.folder}/ran") for _ in range(2000)])
        assert sum(task.result().exit_code == 0 for task in tasks) == 2000
        assert len(study.lines("ran")) == 2000
        assert len({task.task for task in tasks}) == 2000


def test_folders_are_ours_alone(study: Study) -> None:
    with study.session() as session:
        done = session.submit(shell("umask; echo x > y")).result()
        for folder in (study.home, study.home / "hub"):
            assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0, folder
        assert Path(done.sandbox).is_dir()
