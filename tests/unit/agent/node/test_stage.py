"""The stager: what it finds, what it makes of it, and what it says of what it cannot do."""

from __future__ import annotations

import fnmatch
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl_agent.node import stage, steps
from pilot_hitl_agent.node.scripts import stager
from pilot_hitl_agent.node.stage import Stager, StagingError

if TYPE_CHECKING:
    from pilot_hitl_agent.node.stage import Move

MTIME = 1_000_000_000_123_456_789


def move_of(
    root: Path, source: str, target: Path, *, action: str = "copy", folder: bool = False, whose: str = ""
) -> Move:
    return ("field[0] (x)", action, str(root), source, str(target), folder, whose)


def do(root: Path, source: str, target: Path, *, action: str = "copy", folder: bool = False) -> list[str]:
    return Stager().do(move_of(root, source, target, action=action, folder=folder))


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): f"-> {os.readlink(path)}" if path.is_symlink() else path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Files, folders, and links to them."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "a.dat").write_text("a")
    (tmp_path / "real" / "deep" / "b.dat").write_text("b")
    (tmp_path / "real" / ".hidden.dat").write_text("h")
    (tmp_path / "file").symlink_to("real/a.dat")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "gone").symlink_to("nowhere")
    return tmp_path


@given(st.text("ab.]-^", max_size=6), st.text("ab.*?[]!^-", min_size=1, max_size=6))
def test_patterns_are_those_of_fnmatch(name: str, pattern: str) -> None:
    # The shell knows [^a] as well, and Python's module takes it for a letter.
    if "[^" not in pattern:
        assert stage.fits(name, pattern) == fnmatch.fnmatchcase(name, pattern)


def test_a_caret_negates_too() -> None:
    assert stage.fits("b", "[^a]")
    assert not stage.fits("a", "[^a]")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.dat", ["-x.dat", "a\n.dat", "a b.dat", "a[1].dat"]),
        ("a[1].dat", ["a[1].dat"]),
        ("a?b.dat", ["a b.dat"]),
        ("*/*.txt", ["sub/x.txt"]),
        ("s[a-z]b/./*", ["sub/x.txt"]),
        ("*/", ["sub"]),
        (".*", [".h.dat"]),
        ("sub/../*.none", []),
        ("none/*", []),
        ("-x.dat/*", []),
    ],
)
def test_what_a_pattern_finds(tmp_path: Path, pattern: str, found: list[str]) -> None:
    root = tmp_path / "[odd] * root"
    (root / "sub").mkdir(parents=True)
    for name in ("-x.dat", "a b.dat", "a\n.dat", "a[1].dat", ".h.dat", "sub/x.txt"):
        (root / name).write_text(name)
    made = stage.matches(str(root), pattern)
    assert [os.path.relpath(path, root) for path in made[0]] == found
    assert made[1] is (pattern != "a[1].dat")


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("file", {"t": "a"}),
        ("folder", {"t/a.dat": "a", "t/deep/b.dat": "b", "t/.hidden.dat": "h"}),
        ("folder/", {"t/a.dat": "a", "t/deep/b.dat": "b", "t/.hidden.dat": "h"}),
        ("folder/deep/b.dat", {"t": "b"}),
    ],
)
def test_a_copy_has_the_bytes_behind_links(here: Path, source: str, files: dict[str, str]) -> None:
    assert do(here, source, here / "out" / "t") == [str(here / "out" / "t")]
    assert tree(here / "out") == files


def test_a_copy_keeps_mode_and_time(here: Path) -> None:
    program = here / "real" / "a.dat"
    program.chmod(0o754)
    os.utime(program, ns=(MTIME, MTIME))
    os.utime(here / "real", ns=(MTIME, MTIME))
    do(here, "real", here / "out")
    made = (here / "out" / "a.dat").stat()
    assert stat.S_IMODE(made.st_mode) == 0o754
    assert made.st_mtime_ns == MTIME
    assert (here / "out").stat().st_mtime_ns == MTIME


def test_a_link_is_a_link_to_what_is_there(here: Path) -> None:
    do(here, "file", here / "out" / "l", action="link")
    assert os.readlink(here / "out" / "l") == str(here / "file")
    do(here, "real", here / "out" / "l", action="link")
    assert (here / "out" / "l" / "a.dat").read_text() == "a"


def test_a_move_leaves_nothing_behind(here: Path) -> None:
    do(here, "real/deep", here / "out" / "d", action="move")
    assert tree(here / "out") == {"d/b.dat": "b"}
    assert not (here / "real" / "deep").exists()
    do(here, "file", here / "out" / "f", action="move")
    assert tree(here / "out") == {"d/b.dat": "b", "f": "a"}
    assert not (here / "file").is_symlink()
    assert (here / "real" / "a.dat").exists()


def test_a_move_to_another_file_system(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(source: str, _target: str) -> None:
        raise OSError(18, "Invalid cross-device link", source)

    monkeypatch.setattr(os, "rename", rename)
    do(here, "real", here / "out", action="move")
    assert tree(here / "out") == {"a.dat": "a", "deep/b.dat": "b", ".hidden.dat": "h"}
    assert not (here / "real").exists()


def test_what_is_there_is_replaced_and_never_written_through(here: Path) -> None:
    (here / "precious").write_text("precious")
    (here / "t").symlink_to("precious")
    do(here, "file", here / "t")
    assert not (here / "t").is_symlink()
    assert (here / "precious").read_text() == "precious"
    assert (here / "t").read_text() == "a"
    do(here, "real/deep/b.dat", here / "t")
    assert (here / "t").read_text() == "b"
    assert not [path for path in here.iterdir() if path.name.endswith(".staged")]


def test_a_file_goes_into_a_folder_and_a_folder_into_one_of_its_name(here: Path) -> None:
    (here / "into" / "real").mkdir(parents=True)
    (here / "into" / "real" / "mine").write_text("m")
    assert do(here, "file", here / "into") == [str(here / "into" / "file")]
    do(here, "real", here / "into", folder=True)
    do(here, "real/deep", here / "into" / "real")
    assert tree(here / "into") == {
        "file": "a", "real/a.dat": "a", "real/deep/b.dat": "b", "real/b.dat": "b", "real/.hidden.dat": "h",
        "real/mine": "m",
    }  # fmt: skip


def test_a_tree_keeps_its_links(here: Path) -> None:
    do(here, ".", here.parent / f"{here.name}-tree", action=stage.TREE)
    made = tree(here.parent / f"{here.name}-tree")
    assert made["file"] == "-> real/a.dat"
    assert made["gone"] == "-> nowhere"
    do(here, "never-made", here / "empty", action=stage.TREE)
    assert list((here / "empty").iterdir()) == []


def test_what_is_where_it_is_meant_to_be_stays(here: Path) -> None:
    for action in ("copy", "move", "link"):
        do(here, "real/a.dat", here / "real" / "a.dat", action=action)
        do(here, "file", here / "real" / "a.dat", action=action)
    assert (here / "real" / "a.dat").read_text() == "a"
    assert not (here / "real" / "a.dat").is_symlink()


def test_devices_and_pipes(here: Path) -> None:
    do(here, "file", Path(os.devnull))
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    os.mkfifo(here / "pipe")
    do(here, "pipe", here / "copy")
    assert stat.S_ISFIFO((here / "copy").stat().st_mode)
    with pytest.raises(StagingError, match="neither file nor folder"):
        do(Path("/dev"), "null", here / "n")


@pytest.mark.parametrize(
    ("source", "target", "action", "said"),
    [
        ("none", "t", "copy", "none: No such file or directory"),
        ("none", "t", "link", "none: No such file or directory"),
        ("none", "t", "move", "none: No such file or directory"),
        ("*.none", "t", "copy", "none: No such file or directory, nothing matches"),
        ("gone", "t", "copy", "leads to nowhere, which is not there"),
        ("gone", "t", "link", "leads to nowhere, which is not there"),
        ("file/", "t", "copy", "it is no folder"),
        ("real", "real/deep/t", "copy", "into itself"),
        ("folder", "real/t", "move", "into itself"),
        ("real", "real/a.dat", "copy", "exists|itself"),
        ("file", "real/a.dat/t", "copy", "File exists|Not a directory"),
        ("rea[l]", "t", "copy", "its target is a folder"),
        ("real", "box", "link", "a folder of that name already"),
        ("folder/a.dat", "box/x", "copy", "a folder of that name already"),
        ("loop", "t", "copy", "leads back to a folder"),
    ],
)
def test_what_cannot_be_done_is_named(here: Path, source: str, target: str, action: str, said: str) -> None:
    (here / "box" / "x" / "a.dat").mkdir(parents=True)
    (here / "loop").mkdir()
    (here / "loop" / "back").symlink_to("../loop")
    with pytest.raises(StagingError, match=said):
        do(here, source, here / target, action=action)


def test_two_sources_of_one_target(here: Path) -> None:
    doing = Stager()
    doing.do(move_of(here, "real/*.dat", here / "out", folder=True))
    with pytest.raises(StagingError, match="have the same target"):
        doing.do(move_of(here, "real/deep/b.dat", here / "out" / "a.dat"))


# --- as a process -----------------------------------------------------------------------------------------------------


def run(report: Path, before: list[Move], after: list[Move], *argv: str) -> tuple[int, list[str]]:
    command = stager(str(report), before, after, argv, f"{report}.job")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert not done.stderr
    return done.returncode, steps.take(str(report))


def test_the_program_runs_between_its_inputs_and_its_outputs(here: Path) -> None:
    before = [move_of(here, "file", here / "box" / "in")]
    after = [move_of(here / "box", "o*", here / "kept", folder=True)]
    code, said = run(
        here / "r", before, after, "sh", "-c", f'cd {here}/box; cat in > out; echo "$1" > odd', "x", "a b\n*"
    )
    assert (code, said) == (
        0, ["staged", "over 0", *(f"out {stage.hidden(f'{here}/kept/{name}')}" for name in ("odd", "out")), "put"]
    )  # fmt: skip
    assert tree(here / "kept") == {"odd": "a b\n*\n", "out": "a"}


@pytest.mark.parametrize(("script", "code", "over"), [("exit 3", 3, 3), ("kill -11 $$", 139, -11)])
def test_a_program_that_fails_leaves_no_outputs(here: Path, script: str, code: int, over: int) -> None:
    after = [move_of(here, "real", here / "kept")]
    assert run(here / "r", [], after, "sh", "-c", script) == (code, [f"over {over}"])
    assert not (here / "kept").exists()


def test_a_program_that_cannot_be_run(here: Path) -> None:
    before, after = [move_of(here, "file", here / "t")], [move_of(here, "file", here / "u")]
    assert run(here / "r", before, [], "no-such-program") == (stage.FAILED, ["staged", "unrun 2"])
    assert run(here / "r", before, after, str(here / "real" / "a.dat")) == (stage.FAILED, ["staged", "unrun 13"])
    (here / "script").write_text("exit 4\n")
    (here / "script").chmod(0o755)
    assert run(here / "r", before, [], str(here / "script")) == (4, ["staged"])
    assert run(here / "r", [], after, str(here / "script")) == (4, ["over 4"])


def test_a_program_may_take_its_time_to_end(here: Path) -> None:
    script = f"trap 'sleep 0.2; echo > {here}/saved; exit 0' TERM; echo > {here}/up; while :; do sleep 0.05; done"
    command = stager(str(here / "r"), [], [move_of(here, "real", here / "kept")], ["sh", "-c", script])
    process = subprocess.Popen(command, start_new_session=True)
    limit = time.monotonic() + 20
    while not (here / "up").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(20) == 0
    assert (here / "saved").exists()
    # It was told to end: what it would have left is not brought out.
    assert not (here / "kept").exists()


def test_the_program_inherits_no_ignored_signal(here: Path) -> None:
    code = "import _signal as s; print(s.getsignal(s.SIGPIPE) == s.SIG_IGN)"
    # Python itself ignores it, so a shell in between tells.
    for after in ([], [move_of(here, "file", here / "u")]):
        command = stager(
            str(here / "r"), [move_of(here, "file", here / "t")], after,
            ["sh", "-c", 'grep SigIgn /proc/$$/status; exec "$@"', "sh", sys.executable, "-c", code],
        )  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        ignored = int(done.stdout.split()[1], 16)
        assert not ignored & (1 << (signal.SIGPIPE - 1)), done.stdout
        assert not ignored & (1 << (signal.SIGXFSZ - 1)), done.stdout


def test_thousands_of_directives_and_megabytes_of_arguments(here: Path) -> None:
    before = [move_of(here, "real/a.dat", here / "many" / f"{number:05d}-{'x' * 100}") for number in range(3000)]
    code, said = run(here / "r", before, [], "sh", "-c", '[ $# = 9000 ] && [ "${#9}" = 100 ]', *["y" * 100] * 9001)
    assert (code, said) == (0, ["staged"])
    assert len(list((here / "many").iterdir())) == 3000
