"""Where sockets lie, whatever the variables say; what a killed hub leaves there; folders of sessions that are links."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pilot_hitl as ph
from pilot_hitl.wire.places import runtime_folder
from tests.behaviour.studies import further

SCRIPT = """
import json, os, subprocess, sys, time
import pilot_hitl as ph
with ph.Session("study") as session:
    other = {**os.environ, "XDG_RUNTIME_DIR": sys.argv[1]}
    command = [sys.executable, "-m", "pilot_hitl", "hub", "status", "--json"]
    found = subprocess.run(command, env=other, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    print(json.loads(found.stdout)["pid"], flush=True)
    if sys.argv[2:]:
        time.sleep(100)
"""


def missing(tmp_path: Path) -> str:
    return str(tmp_path / "not" / "there")


def a_file(tmp_path: Path) -> str:
    (tmp_path / "file").touch()
    return str(tmp_path / "file")


def somebody_elses(tmp_path: Path) -> str:
    if os.getuid():
        return "/"
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    return str(tmp_path / "theirs")


def a_long_one(tmp_path: Path) -> str:
    (tmp_path / ("x" * 120)).mkdir()
    return str(tmp_path / ("x" * 120))


def a_good_one(tmp_path: Path) -> str:
    (tmp_path / "run").mkdir(mode=0o700)
    return str(tmp_path / "run")


CASES: list[Callable[[Path], str]] = [somebody_elses, a_long_one, a_good_one, missing, a_file]


def environment(home: Path, runtime: str) -> dict[str, str]:
    return {**os.environ, "PILOT_HITL_HOME": str(home), "XDG_RUNTIME_DIR": runtime}


def ran(home: Path, runtime: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the home's parent."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=home.parent,
        env=environment(home, runtime),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def folder_of(home: Path, runtime: str) -> Path:
    """Where the sockets of a home are, with this variable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        return runtime_folder(home)


@pytest.mark.parametrize("runtime", further(3, [*CASES, "", "relative", "\udcff"]))
def test_a_hub_is_found_whatever_the_variables_say(tmp_path: Path, runtime: str | Callable[[Path], str]) -> None:
    value = runtime if isinstance(runtime, str) else runtime(tmp_path)
    home = tmp_path / "home"
    # A second shell has another value than the first one.
    other = a_good_one(tmp_path) if value != str(tmp_path / "run") else ""
    (tmp_path / "script.py").write_text(SCRIPT)
    before = set(tmp_path.iterdir())
    done = ran(home, value, "script.py", other)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert int(done.stdout) > 0
    assert set(tmp_path.iterdir()) - before == {home}, "nothing else was made"
    for each in filter(os.path.isabs, (value, other)):
        assert not list(Path(each).glob("pilot-hitl-*")), "nothing is left"


def test_a_folder_of_somebody_else_in_our_place_is_a_clear_error(tmp_path: Path) -> None:
    runtime, home = a_good_one(tmp_path), tmp_path / "home"
    place = folder_of(home, runtime)

    def open_to_all() -> None:
        place.mkdir()
        place.chmod(0o777)

    makers: list[Callable[[], object]] = [
        place.touch,
        lambda: place.symlink_to(tmp_path),
        lambda: os.mkfifo(place),
        open_to_all,
    ]
    for make in makers:
        place.unlink(missing_ok=True)
        make()
        done = ran(home, runtime, "-c", "import pilot_hitl as ph; ph.Session('x')")
        assert f"{place} must be a folder of yours" in done.stderr.splitlines()[-1]
    place.rmdir()


def test_what_a_killed_hub_left_is_swept_by_whoever_comes_next(tmp_path: Path) -> None:
    runtime, home = a_good_one(tmp_path), tmp_path / "home"
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", runtime, "stay"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(home, runtime), stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout is not None
        hub = int(script.stdout.readline())
        ended = os.pidfd_open(hub)
        os.kill(hub, signal.SIGSTOP)  # else it would see its script end, and end in order
        script.kill()
        os.kill(hub, signal.SIGKILL)
    assert select.select([ended], [], [], 30)[0]
    os.close(ended)
    left = folder_of(home, runtime)
    assert (left / "hub.sock").exists()
    (left / "s-0123456789-1-4194305.sock").touch()  # a replica's, which was killed
    for words in (["hub", "status"], ["session", "list"], ["session", "show", "study"]):
        done = ran(home, runtime, "-m", "pilot_hitl", *words)
        assert done.returncode == 0, (words, done.stderr)
    assert not left.exists(), "nothing stale stays"


def test_what_lies_elsewhere_is_never_removed_with_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere, runtime = tmp_path / "home", tmp_path / "elsewhere", a_good_one(tmp_path)
    monkeypatch.setenv("PILOT_HITL_HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    with ph.Session("study"):
        pass
    (home / "sessions" / "study").rename(elsewhere)
    link = home / "sessions" / "study"
    link.symlink_to(elsewhere)
    remove = ("-m", "pilot_hitl", "session", "rm", "--yes", "study")
    done = ran(home, runtime, *remove)
    assert done.returncode == 1
    assert f"{link} is a link to {elsewhere}" in " ".join(done.stderr.split())
    with pytest.raises(ph.SessionError, match="is a link to"):
        ph.Session("study", fresh=True)
    assert link.readlink() == elsewhere
    assert (elsewhere / "session.sqlite").exists()
    with ph.Session("study"):
        pass  # It is a session like any other.
    link.unlink()
    elsewhere.rename(link)
    (home / "sessions" / ".removed-0123").mkdir()  # by a removal that was cut short
    assert ran(home, runtime, *remove).returncode == 0
    assert list((home / "sessions").iterdir()) == []
