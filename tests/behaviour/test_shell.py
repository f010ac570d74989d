"""The lines of pre_exec and post_exec: what they do to their shell is theirs, and never touches the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, wait_for


def shell(text: str, **more: Any) -> ph.TaskDescription:
    return ph.TaskDescription(executable="/bin/sh", arguments=["-c", text], **more)


def test_lines_see_no_parameters_and_change_none(study: Study) -> None:
    folder = study.folder
    (folder / "env.sh").write_text('[ $# -eq 0 ] || { echo "takes none: $*" >&2; return 1; }\nexport READY=yes\n')
    (folder / "set.sh").write_text("set -- x y\n")
    cases: list[tuple[list[str], list[str], str]] = [
        ([f". {folder}/env.sh"], [], "yes\n"),
        ([f". {folder}/set.sh", f". {folder}/env.sh"], [], "yes\n"),
        (["set -- echo another", "export READY=yes"], [], "yes\n"),
        (["set -eu; set -f; IFS=es", "export READY=yes"], ["true"], "yes\n"),
        (["trap 'echo bye' EXIT", "export READY=yes"], [], "yes\nbye\n"),
        (
            ["cd /; export READY=$(pwd)"],
            [f"set -- a; . {folder}/set.sh", f". {folder}/env.sh; echo $READY"],
            "/\nyes\n",
        ),
        ([], ["set -- a", f". {folder}/env.sh; echo $READY"], "\nyes\n"),
    ]
    with study.session() as session:
        tasks = [session.submit(shell("echo $READY", pre_exec=pre, post_exec=post)) for pre, post, _ in cases]
        for task, (pre, post, right) in zip(tasks, cases, strict=True):
            assert task.result(30).stdout == right, (pre, post)
            assert task.result().stderr == ""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_line_that_fails_or_leaves_is_named(study: Study, ranks: int) -> None:
    cases = [
        (["true", "exit 0"], "pre_exec line 2 (exit 0) left the shell with exit code 0"),
        (["true", "exit 3"], "pre_exec line 2 (exit 3) left the shell with exit code 3"),
        (["set -e", "false"], "pre_exec line 2 (false) left the shell with exit code 1"),
        (["exec 2>/dev/null", "false"], "pre_exec line 2 (false) failed with exit code 1"),
        (["echo 'open"], "pre_exec line 1 (echo 'open) failed"),
    ]
    with study.session() as session:
        tasks = [session.submit(shell(f"touch {study.folder}/ran", pre_exec=pre, ranks=ranks)) for pre, _ in cases]
        for task, (pre, said) in zip(tasks, cases, strict=True):
            error = task.exception(30)
            assert isinstance(error, ph.TaskFailed), pre
            assert said in str(error)
            assert "pilot-hitl" not in error.stderr
            assert "__ph" not in error.stderr
    assert not (study.folder / "ran").exists()


def test_lines_after_the_program(study: Study) -> None:
    with study.session() as session:
        failed = session.submit(shell("echo why >&2; exit 4", post_exec=["echo after; exit 0"]))
        left = session.submit(shell("true", post_exec=["exit 0"]))
        good = session.submit(shell("echo ran", post_exec=["echo after >&2"], ranks=2))
        with pytest.raises(ph.TaskFailed, match="exit code 4") as caught:
            failed.result(30)
        assert (caught.value.exit_code, caught.value.stderr) == (4, "why\n")
        with pytest.raises(ph.TaskFailed, match=r"post_exec line 1 \(exit 0\) left the shell with exit code 0"):
            left.result(30)
        assert (good.result(30).stdout, good.result().stderr) == ("ran\nran\n", "after\nafter\n")


def test_only_the_user_s_lines_are_traced(study: Study) -> None:
    with study.session() as session:
        done = session.submit(shell("true", pre_exec=["set -x", "export A=1"], post_exec=["echo $A"])).result(30)
        assert {line.lstrip("+ ") for line in done.stderr.splitlines()} <= {"export A=1", "A=1", "echo 1"}
        assert "export A=1" in done.stderr
        assert done.stdout == "1\n"


def test_arguments_of_any_size_and_kind_with_lines(study: Study) -> None:
    odd = ["$HOME", "`id`", "*", "a b", "'", '"', "\\", "two\nlines", "-n", "", "~", "{a,b}"]
    with study.session() as session:
        forms: list[dict[str, Any]] = [{}, {"pre_exec": ["set -- x; IFS=a"]}, {"post_exec": ["true"]}]
        for more in (*forms, {"ranks": 2, "pre_exec": ["true"]}):
            task = ph.TaskDescription(executable="printf", arguments=["%s|", *odd], **more)
            assert session.submit(task).result(30).stdout == "|".join([*odd, ""]) * more.get("ranks", 1), more
        big = ph.TaskDescription(
            executable="/bin/sh", arguments=["-c", "echo $# ${#1}", "sh", *["y" * 99] * 9000], pre_exec=["true"]
        )
        assert session.submit(big).result(30).stdout == "9000 99\n"


def test_a_program_behind_lines_has_its_grace(study: Study) -> None:
    saved = study.folder / "saved"
    script = f"trap 'sleep 0.3; touch {saved}; exit 0' TERM; touch {study.folder}/up; while :; do sleep 0.05; done"
    with study.session() as session:
        task = session.submit(shell(script, post_exec=["true"], grace=20))
        wait_for((study.folder / "up").exists, "it runs")
        task.cancel()
        wait_for(saved.exists, "it saved its work")


def test_nothing_is_left_of_what_lines_need(study: Study) -> None:
    with study.session() as session:
        for more in ({"pre_exec": ["true"]}, {"post_exec": ["true"], "ranks": 2}, {"pre_exec": ["exit 3"]}):
            session.submit(shell("true", **more)).exception(30)
        done = session.submit(shell("true")).result(30)
        folder = Path(done.sandbox).parent.parent / "steps"
        assert list(folder.iterdir()) == []
