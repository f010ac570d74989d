"""Modes below the home: what is ours is for its user alone whatever the umask is; what tasks write keeps the umask."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.behaviour.studies import further

STUDY = """
import os, sys
import pilot_hitl as ph

def large(where):
    print("printed " * 20000)
    with open(where + "/by_call", "w") as file:
        file.write("x")
    os.mkdir(where + "/folder_by_call")
    return os.urandom(200_000)

if __name__ == "__main__":
    work = sys.argv[1]
    with ph.Session("modes") as session:
        session.submit_pilot(ph.PilotDescription(cores=1))
        assert len(session.call(large, work).result(60)) == 200_000
        plain = session.submit(ph.TaskDescription(
            executable="/bin/sh", arguments=["-c", "echo by_task > by_task; mkdir folder_by_task; seq 50000"],
            pre_exec=["true"], input_staging=[{"source": work + "/input", "target": "input"}]))
        own = plain.result(60).sandbox
        asked = session.submit(ph.TaskDescription(
            executable="/bin/sh", arguments=["-c", "echo x > by_task"], stdout="out", sandbox=work + "/a/b"))
        asked.result(60)
        gate = session.checkpoint("go", question="Go on?")
        gate.wait_number()
        print(own, gate.id)
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def below(folder: Path) -> list[Path]:
    return [Path(top) / name for top, folders, files in os.walk(folder) for name in (*folders, *files)]


@pytest.mark.parametrize("umask", further(1, (0o777, 0o000, 0o022, 0o077)))
def test_what_is_ours_is_private_and_what_is_a_tasks_is_as_its_umask_says(tmp_path: Path, umask: int) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    (work / "input").write_text("x")
    script = tmp_path / "study.py"
    script.write_text(STUDY)
    environment = {**os.environ, "PILOT_HITL_HOME": str(home)}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, env=environment, cwd=work, umask=umask, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    own, gate = run(sys.executable, str(script), str(work)).split()[-2:]
    run(sys.executable, "-m", "pilot_hitl", "inbox", "answer", gate, "true")
    theirs = [Path(own) / name for name in ("by_task", "folder_by_task", "input")]
    found = [each for each in below(home) if each not in theirs]
    assert {each.suffix for each in found} >= {".sqlite", ".json", ".log"}
    assert any("blobs" in each.parts for each in found)
    assert any("new" in each.parts and "spool" in each.parts for each in found)
    open_to_others = {
        str(each.relative_to(home)): oct(mode(each))
        for each in (home, *found)
        if mode(each) != (0o700 if each.is_dir() else 0o600)
    }
    assert not open_to_others
    assert mode(Path(own)) == 0o700
    written = {work / "by_call": 0o666, work / "folder_by_call": 0o777, work / "a/b": 0o777, work / "a": 0o777}
    written |= {work / "a/b/by_task": 0o666, work / "a/b/out": 0o666, theirs[0]: 0o666, theirs[1]: 0o777}
    assert {path: oct(mode(path)) for path in written} == {path: oct(full & ~umask) for path, full in written.items()}
