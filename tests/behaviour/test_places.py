"""Homes, disks and surroundings as users have them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, further, wait_for

SCRIPT = """
with ph.Session("study") as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=1))
    print(session.call(abs, -3).result(), session.submit(
        ph.TaskDescription(executable="echo", arguments=["hello"])).result().stdout.strip())
"""


NEW_LINE = pytest.param("new\nline", marks=pytest.mark.only_local("what Slurm is told about files ends with the line"))


@pytest.mark.parametrize("name", [NEW_LINE, *further(1, ["ünï→😀", "with blanks", "x" * 120, "quo'te\"$HOME"])])
def test_any_home(study: Study, name: str) -> None:
    study.home = study.base / name / "deeper"
    study.environment["PILOT_HITL_HOME"] = str(study.home)
    study.home.parent.mkdir(mode=0o700)
    assert study.run(SCRIPT) == "3 hello\n"
    assert study.run(SCRIPT) == "3 hello\n"
    assert (study.home / "sessions" / "study" / "session.sqlite").exists()


def test_a_very_long_runtime_folder(study: Study) -> None:
    long = study.base / ("y" * 150)
    long.mkdir(mode=0o700)
    assert study.run(SCRIPT, XDG_RUNTIME_DIR=str(long), TMPDIR=str(long)) == "3 hello\n"
    assert not list(long.iterdir())


def test_no_runtime_folder(study: Study) -> None:
    gone = str(study.base / "not-there")
    assert study.run(SCRIPT, XDG_RUNTIME_DIR=gone, TMPDIR=gone) == "3 hello\n"


def test_no_home_variable(study: Study) -> None:
    path = study.folder / "bare.py"
    path.write_text("import pilot_hitl as ph\nBACKEND = 'local'\n" + SCRIPT)
    bare = {name: os.environ[name] for name in ("PATH", "XDG_RUNTIME_DIR", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**bare, "PILOT_HITL_HOME": str(study.home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "3 hello\n"), done.stderr


def test_a_home_that_others_may_enter_is_refused(study: Study) -> None:
    study.home.mkdir(mode=0o755)
    study.home.chmod(0o755)
    out = study.start(SCRIPT).communicate(timeout=60)[1]
    assert "chmod 700" in out
    assert "PilotHitlError" in out or "HubUnreachable" in out


def test_a_home_that_cannot_be_made(study: Study) -> None:
    study.home.write_text("a file is in the way")
    process = study.start(SCRIPT)
    out = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "HubUnreachable" in out


@pytest.mark.requires("mounts")
def test_a_full_disk_stops_no_hub(study: Study) -> None:
    """No room for results: nothing is told that is not on disk; when there is room again, all goes on."""
    tiny = study.base / "tiny"
    tiny.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "none", str(tiny)], check=True)
    try:
        study.home = tiny / "home"
        os.environ["PILOT_HITL_HOME"] = str(study.home)
        with study.session() as session:
            # Its modules are stored now: a call of what cannot be stored is refused.
            assert session.call(_kilobytes, 1).result(20) == bytes([1]) * 20_000
            filler = tiny / "filler"
            with pytest.raises(OSError, match="space"):
                _fill(filler)
            with pytest.raises(ph.PayloadError, match=r"cannot be stored: .*space"):
                session.call(_kilobytes, bytes(200_000))
            mapped = session.map(_kilobytes, range(200))
            with pytest.raises(TimeoutError):
                mapped.results(2)
            filler.unlink()
            assert mapped.results(40) == [bytes([x]) * 20_000 for x in range(200)]
        assert not study.wait_left()
    finally:
        subprocess.run(["umount", "-l", str(tiny)], check=False)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _kilobytes(x: int) -> bytes:
    return bytes([x]) * 20_000


def test_a_directory_that_went_away(study: Study) -> None:
    gone = 'os.makedirs(FOLDER + "/gone"); os.chdir(FOLDER + "/gone"); os.rmdir(FOLDER + "/gone")\n'
    assert study.run(gone + SCRIPT) == "3 hello\n"


def test_many_threads_submit(study: Study) -> None:
    with study.session() as session:
        found: dict[int, list[int]] = {}

        def submit(number: int) -> None:
            calls: list[ph.TaskFuture[int]] = [session.call(abs, -number * 1000 - x) for x in range(300)]
            found[number] = [call.result(60) for call in calls]

        threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {number: [number * 1000 + x for x in range(300)] for number in range(8)}


def test_two_scripts_start_one_hub(study: Study) -> None:
    script = SCRIPT.replace('"study"', "sys.argv[1]")
    scripts = [study.start(script, f"study{number}") for number in range(4)]
    assert [each.communicate(timeout=60) for each in scripts] == [("3 hello\n", "")] * 4
    assert not study.wait_left()


def test_the_hub_is_stopped_under_a_script(study: Study) -> None:
    with study.session() as session:
        mapped = session.map(abs, range(-300, 0))
        mapped.results(20)
        hub = next(process["pid"] for process in study.processes() if process["kind"] == "hub")
        os.kill(hub, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{hub}").exists() or session.closed, "the hub ended")
        with pytest.raises(ph.SessionClosed):
            session.call(abs, -3).result(40)
    with study.session() as session:
        assert session.map(abs, range(-300, 0)).results(20) == list(range(300, 0, -1))
