"""The shell around a program: what the user's lines do in it is theirs, and what they cannot touch."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.model.staging import PILOT, SANDBOX, SESSION, directives
from pilot_hitl.model.templates import ExecutableTemplate
from pilot_hitl_agent.node import stage, steps
from pilot_hitl_agent.node.scripts import TRAPS, Folders, Origin, moves, publication, shell_command
from pilot_hitl_agent.node.steps import Fault, Steps

SHELLS = [shell for shell in ("/bin/bash", "/bin/sh") if Path(shell).exists()]
SHOW = ("sh", "-c", 'echo "ran $# $A $(pwd) $(umask)"; env | grep -c "^__ph"; exit ${CODE:-0}', "sh", "a b", "*")

pytestmark = pytest.mark.parametrize("shell", SHELLS)


class Ran:
    """A program that was run between lines."""

    def __init__(
        self, folder: Path, shell: str, pre: Sequence[str] = (), post: Sequence[str] = (), argv: Sequence[str] = SHOW
    ) -> None:
        template = ExecutableTemplate(executable="x", name="x", pre_exec=list(pre), post_exec=list(post))
        report, script = str(folder / "re port"), str(folder / "script")
        command = shell_command(template, argv, report, script, shell, ranked=False)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        self.out, self.err, self.status = done.stdout, done.stderr, done.returncode
        lines = steps.take(report, report + TRAPS, script)
        self.said: Steps = steps.read(template, lines, done.returncode, staged=False, lined=True)
        assert not list(folder.glob("re port*"))


RAN = "ran 2  {} 0022\n0\n"


@pytest.mark.parametrize(
    ("pre", "right"),
    [
        (["export A=1"], "ran 2 1 {} 0022\n0\n"),
        (["mkdir -p x; cd x", "umask 077"], "ran 2  {}/x 0077\n0\n"),
        (["set -- a b c", "[ $# -eq 0 ]"], RAN),
        (["set -- a b; while [ $# -gt 0 ]; do shift; done"], RAN),
        (["set -eu", "set -f", "set -C", "IFS=xra-+01"], RAN),
        (["set -a", "A=2"], "ran 2 2 {} 0022\n0\n"),
        (["__ph=1; x=2", "readonly x; unset y"], RAN),
        (["printf() { echo no; }", "test() { return 1; }"], RAN),
        (["alias printf=false exec=false test=false", "shopt -s expand_aliases 2>/dev/null || true"], RAN),
        (["exec 9>&1", "cat </dev/null"], RAN),
        (["# nothing", "", "for i in 1 2; do\n  A=$i\ndone\nexport A"], "ran 2 2 {} 0022\n0\n"),
    ],
)
def test_the_program_and_its_arguments_are_never_touched(
    tmp_path: Path, shell: str, pre: list[str], right: str
) -> None:
    for post in ([], ['echo "after $#"']):
        ran = Ran(tmp_path, shell, pre, post)
        assert ran.out == right.format(tmp_path) + ("after 0\n" if post else ""), (pre, post, ran.err)
        assert (ran.err, ran.status, ran.said.fault) == ("", 0, None)


def test_functions_named_like_what_a_shell_brings_along(tmp_path: Path, shell: str) -> None:
    names = ("command", "exec", "exit", "eval", "set", "trap", "unset", "return", "case")
    ran = Ran(tmp_path, shell, [f"{name}() {{ echo no; }}" for name in names if shell == "/bin/bash"][:-1], ["true"])
    assert (ran.out, ran.err, ran.said.fault) == (RAN.format(tmp_path), "", None)


@pytest.mark.parametrize(
    ("pre", "said", "code"),
    [
        (["true", "false"], "pre_exec line 2 (false) failed with exit code 1", 1),
        (["true", "exit 0"], "pre_exec line 2 (exit 0) left the shell with exit code 0, so the program never ran", 0),
        (["true", "exit 3"], "pre_exec line 2 (exit 3) left the shell with exit code 3, so the program never ran", 3),
        (["set -e", "false"], "pre_exec line 2 (false) left the shell with exit code 1", 1),
        (["trap 'exit 5' EXIT", "exit 0"], "pre_exec line 2 (exit 0) left the shell with exit code 5", 5),
        (["set -n", "true"], "pre_exec line 1 (set -n) left the shell with exit code 0", 0),
        (["exec true"], "pre_exec line 1 (exec true) left the shell with exit code 0", 0),
        (["echo 'never closed", "true"], "pre_exec line 1 (echo 'never closed)", 2),
        (["exec 2>/dev/null; cd /no/such"], "pre_exec line 1 (exec 2>/dev/null; cd /no/such)", None),
        (["kill -9 $$"], "pre_exec line 1 (kill -9 $$) did not end: the shell was ended by signal 9", 0),
    ],
)
def test_a_line_that_fails_or_leaves_is_named(
    tmp_path: Path, shell: str, pre: list[str], said: str, code: int | None
) -> None:
    ran = Ran(tmp_path, shell, pre)
    assert "ran" not in ran.out
    assert "__ph" not in ran.err
    fault = ran.said.fault
    assert fault is not None
    assert fault.message.startswith(said)
    assert code in (None, fault.code)


@pytest.mark.parametrize(
    ("post", "code", "message"),
    [
        (["exit 0"], 0, "post_exec line 1 (exit 0) left the shell with exit code 0"),
        (["true", "false"], 0, "post_exec line 2 (false) failed with exit code 1"),
        (["exit 0"], 3, ""),
        (["false"], 3, ""),
        (["true"], 3, ""),
    ],
)
def test_a_program_s_failure_goes_before_that_of_the_lines_after_it(
    tmp_path: Path, shell: str, post: list[str], code: int, message: str
) -> None:
    ran = Ran(tmp_path, shell, [f"export CODE={code}"], post)
    assert (ran.said.fault.message if ran.said.fault else "") == message
    assert ran.said.code == code


def test_only_the_user_s_lines_are_traced(tmp_path: Path, shell: str) -> None:
    ran = Ran(tmp_path, shell, ["set -x", "export A=1"], ["true", "set +x", "false || true"])
    traced = [line.lstrip("+ ") for line in ran.err.splitlines()]
    assert traced in (["export A=1", "A=1", "true", "set +x"], ["export A=1", "true", "set +x"])
    assert Ran(tmp_path, shell, ["set -x", ": 1"]).err.splitlines()[-1].endswith(": 1")


def test_traps_are_the_user_s(tmp_path: Path, shell: str) -> None:
    ran = Ran(tmp_path, shell, ["trap 'echo bye' EXIT"], argv=["sh", "-c", "echo ran; exit 4"])
    assert (ran.out, ran.said.code, ran.said.fault) == ("ran\nbye\n", 4, None)
    ran = Ran(tmp_path, shell, ["trap 'echo bye' EXIT"], ["echo after"], argv=["echo", "ran"])
    assert (ran.out, ran.status) == ("ran\nafter\nbye\n", 0)


def test_a_program_that_a_signal_ended(tmp_path: Path, shell: str) -> None:
    ran = Ran(tmp_path, shell, [], ["echo after"], argv=["sh", "-c", "kill -11 $$"])
    assert (ran.out, ran.said.code) == ("after\n", 139)
    assert "exec" not in ran.err


def test_a_program_that_cannot_be_run(tmp_path: Path, shell: str) -> None:
    for post in ([], ["true"]):
        assert Ran(tmp_path, shell, ["true"], post, argv=["no-such-program"]).said.fault == Fault("program", "")
        found = Ran(tmp_path, shell, ["no_such() { echo no; }"], post, argv=["no_such", "x"])
        assert "no\n" not in found.out
        assert found.status
        assert Ran(tmp_path, shell, ["true"], post, argv=["/no/such"]).status in (126, 127)


def test_arguments_of_any_length(tmp_path: Path, shell: str) -> None:
    argv = ["sh", "-c", 'echo "$# ${#1}"', "sh", *["y" * 99] * 9000]
    assert Ran(tmp_path, shell, ["set -- a", "true"], argv=argv).out == "9000 99\n"


def test_the_roots_of_directives(shell: str) -> None:
    assert shell
    folders = Folders(session="/session", pilot="/pilot")
    given = directives(
        "input_staging",
        ["a", "/b/c > x/", "session:///d", {"source": (object(), "e*"), "target": "pilot:///all/", "action": "link"}],
        folder="/client",
        number=lambda _future: 1,
    )
    assert [each.into for each in given] == [SANDBOX, SANDBOX, SANDBOX, PILOT]
    assert given[2].root == SESSION
    made = moves(given, "/box", folders, [Origin("task.1.000001", "/other")])
    assert [each[1:6] for each in made] == [
        ("copy", "/client", "a", "/box/", True),
        ("copy", "/", "b/c", "/box/x/", True),
        ("copy", "/session", "d", "/box/", True),
        ("link", "/other", "e*", "/pilot/all/", True),
    ]
    assert "task.1.000001" in made[3][6]
    template = ExecutableTemplate(
        executable="x", name="x", output_staging=directives("output_staging", ["out"], folder="/client")
    )
    plain = ExecutableTemplate(executable="x", name="x")
    assert publication(plain, "/own", "", folders) == []
    assert publication(plain, "/own", "/own", folders) == []
    assert [each[1] for each in publication(plain, "/own", "/asked", folders)] == [stage.TREE]
    assert [each[1:5] for each in publication(template, "/own", "", folders)] == [("copy", "/own", "out", "/client/")]


@pytest.mark.parametrize(
    ("ranks", "status", "message"),
    [
        ([["pre 1", "run"], ["pre 1", "run"]], 0, ""),
        ([["pre 1", "run"], ["pre 1"]], 0, "left the shell with exit code 0"),
        ([["pre 1"], ["pre 1"]], 3, "left the shell with exit code 3"),
        ([["pre 1", "run"], ["pre 1"]], 3, ""),
        ([["pre 1"], ["pre 1", "stuck 7"]], 121, "failed with exit code 7"),
        ([[], ["pre 1"]], 1, "left the shell with exit code 1"),
        ([["pre 1", "run"], []], 0, "ended with exit code 0 before the first"),
    ],
)
def test_which_of_several_ranks_counts(shell: str, ranks: list[list[str]], status: int, message: str) -> None:
    assert shell
    template = ExecutableTemplate(executable="x", name="x", pre_exec=["line"])
    each = [steps.read(template, lines, status, staged=False, lined=True) for lines in ranks]
    fault = steps.first(each, status).fault
    told = fault.message if fault else ""
    assert message in told if message else not told


@pytest.mark.parametrize(("failed", "line"), [(-1, 2), (0, 1), (1, 2), (2, 1)])
def test_a_rank_that_was_ended_by_the_failure_of_another_is_not_blamed(shell: str, failed: int, line: int) -> None:
    assert shell
    template = ExecutableTemplate(executable="x", name="x", pre_exec=["set -e", "false"])
    reports = [["pre 1"], ["pre 1", "pre 2"], ["pre 1"]]
    each = [steps.read(template, lines, 1, staged=False, lined=True) for lines in reports]
    fault = steps.first(each, 1, failed).fault
    assert fault is not None
    assert f"pre_exec line {line} " in fault.message


@given(
    st.lists(
        st.sampled_from(
            ["pre 1", "pre", "pre 9", "post -1", "stuck", "stuck x", "failed zz", "out 1", "ran -", "over", "unrun"]
        )
    )
)
def test_a_report_that_somebody_else_wrote_ends_no_daemon(shell: str, lines: list[str]) -> None:
    assert shell
    template = ExecutableTemplate(executable="x", name="x", pre_exec=["line"])
    assert steps.read(template, lines, 0, staged=True, lined=True).fault is not None
