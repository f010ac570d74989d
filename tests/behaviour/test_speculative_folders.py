"""What a task writes lies where it would lie without speculation, once it counts, and nowhere before."""

from __future__ import annotations

import glob
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import pilot_hitl as ph
from tests.behaviour.files_seen import FilesSeen
from tests.behaviour.studies import Study, further, wait_for

if TYPE_CHECKING:
    from mpi4py import MPI

POLICIES = ["score", "fifo", "block", "backfill"]


@pytest.fixture
def here(study: Study, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script's folder."""
    folder = study.folder / "script"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def shell(line: str, **more: Any) -> ph.TaskDescription:
    return ph.TaskDescription(executable="/bin/sh", arguments=["-c", line], **more)


def wait_held(session: ph.Session, *futures: ph.TaskFuture[Any]) -> None:
    names = {future.task for future in futures}

    def held() -> bool:
        states = {row["task"]: row["state"] for row in session.query("tasks")}
        return all(states.get(name) == "HELD" for name in names)

    wait_for(held, f"{len(names)} tasks are held", 60)


def below(folder: Path) -> dict[str, str]:
    """The files below a folder, with what is in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text(errors="replace") for path in files}


def apart(study: Study) -> list[str]:
    """Own folders of attempts that are there."""
    return [str(path) for path in study.home.glob("sessions/*/pilots/*/tasks/*")]


def write(name: str, text: str, seconds: float = 0.0) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    time.sleep(seconds)
    return name


def read(name: object) -> str:
    return Path(str(name)).read_text()


# --- the loser and the winner -----------------------------------------------------------------------------------------


def three_files(who: str, number: int) -> int:
    Path(f"{who}-{number}.txt").write_text(who * 1000)
    folder = Path(f"{who}-folder/{number}")
    folder.mkdir(parents=True)
    (folder / f"{who}.dat").write_bytes(bytes([number % 256]) * 5000)
    partial = Path(f"{who}-{number}.part")
    partial.write_text(f"{number}\n")
    partial.rename(f"{who}-{number}.csv")
    return number


def three_by_a_program(who: str, number: int, box: Path) -> ph.TaskDescription:
    lines = f"mkdir deep; echo {who} > {who}.txt; echo {number} > deep/{who}; echo x > {who}.out"
    return shell(lines, sandbox=str(box / f"{who}-{number}"), output_staging=[f"{who}.out > {box}/{who}-{number}.out"])


@pytest.mark.requires("inotify")
@pytest.mark.parametrize("policy", further(1, ["score", "fifo"]))
def test_two_hundred_calls_of_three_files(study: Study, here: Path, policy: str) -> None:
    """Nothing of the loser is anywhere outside the session's folder at any moment; the winner's is complete."""
    count, box = 200, study.folder / "box"
    box.mkdir()
    with FilesSeen(study.folder, study.temporary, study.runtime) as seen, study.session(policy=policy) as session:
        gate = session.checkpoint("which", choices=["win", "lose"])
        branches = {who: gate.branch(who, probability=0.5) for who in ("win", "lose")}
        calls = {who: branch.map(three_files, [who] * count, range(count)) for who, branch in branches.items()}
        boxed = {
            who: branch.options(sandbox=str(box / f"{who}-calls")).map(three_files, [who] * 20, range(20))
            for who, branch in branches.items()
        }
        programs = {
            who: branch.submit([three_by_a_program(who, number, box) for number in range(10)])
            for who, branch in branches.items()
        }
        wait_for(lambda: session.query("session")["states"].get("HELD") == 2 * (count + 30), "all ran ahead", 90)
        assert below(here) == {}
        assert below(box) == {}
        gate.respond("win")
        for number, future in enumerate(calls["win"]):
            assert future.result(60) == number
            assert Path(f"win-{number}.txt").read_text() == "win" * 1000, "it is there once the result is"
            assert Path(f"win-folder/{number}/win.dat").stat().st_size == 5000
            assert Path(f"win-{number}.csv").read_text() == f"{number}\n"
        assert boxed["win"].results(30) == list(range(20))
        assert len(below(here)) == 3 * count
        assert len(below(box / "win-calls")) == 3 * 20
        for number, program in enumerate(programs["win"]):
            done = program.result(30)
            assert done.sandbox == str(box / f"win-{number}")
            assert below(Path(done.sandbox)) == {"win.txt": "win\n", "deep/win": f"{number}\n", "win.out": "x\n"}
            assert done.outputs == [f"{box}/win-{number}.out"]
            assert Path(done.outputs[0]).read_text() == "x\n"
        losers: list[ph.TaskFuture[Any]] = [*calls["lose"], *boxed["lose"], *programs["lose"]]
        assert {type(future.exception(30)) for future in losers} == {ph.Discarded}
    assert {name for name in seen.names if "lose" in name} == set()
    assert len([name for name in seen.names if name.endswith(".csv")]) == count + 20, "it did look"
    assert not [name for name in below(study.folder) if "/.pilot-hitl" in name], "no partial file is left"


@pytest.mark.long
def test_the_space_of_what_was_discarded_is_free_again(study: Study, here: Path) -> None:
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        chosen, loser = gate.branch("a").call(write, "a/file", "a"), gate.branch("b").call(write, "b/file", "b")
        wait_held(session, chosen, loser)
        [kept] = [path for path in apart(study) if chosen.task in path]
        gate.respond("a")
        assert chosen.result(30) == "a/file"
        wait_for(lambda: not [path for path in apart(study) if loser.task in path], "the loser's folder is gone")
        assert (Path(kept) / "a" / "file").samefile(here / "a" / "file"), "not a second copy"
        assert below(here) == {"a/file": "a"}


# --- where it would lie -----------------------------------------------------------------------------------------------


def where() -> tuple[str, str]:
    path = Path("mine.txt")
    path.write_text("x")
    return str(path.resolve()), path.resolve().read_text()


def test_needed_calls_run_in_the_scripts_folder_and_speculative_ones_apart(study: Study, here: Path) -> None:
    with study.session() as session:
        assert session.call(where).result(30)[0] == str(here / "mine.txt")
        (here / "mine.txt").unlink()
        box = session.options(sandbox=str(study.folder / "box"))
        assert box.call(where).result(30)[0] == str(study.folder / "box" / "mine.txt")
        gate = session.checkpoint("gate", choices=["y", "n"])
        ahead = gate.branch("y").call(where)
        wait_held(session, ahead)
        assert below(here) == {}
        gate.respond("y")
        path, _ = ahead.result(30)
        assert str(study.home) in path
        assert below(here) == {"mine.txt": "x"}
        assert Path(path).read_text() == "x", "a path that it told still leads there"


def leave_all_kinds() -> None:
    Path("plain").write_text("new")
    Path("program").write_text("#!/bin/sh\n")
    Path("program").chmod(0o751)
    Path("secret").write_text("s")
    Path("secret").chmod(0o600)
    os.symlink("plain", "link")
    os.symlink(Path("plain").resolve(), "absolute")
    os.symlink("/no/such", "dangling")
    Path("folder/deep").mkdir(parents=True)
    Path("folder/deep/new").write_text("new")
    Path("folder/old").write_text("replaced")
    Path("empty").mkdir()
    Path("closed").mkdir()
    Path("closed/file").write_text("c")
    Path("closed").chmod(0o550)
    Path("through").write_text("through the link")
    Path("ünïcode \n name").write_text("u")
    Path("x" * 255).write_text("long")


def kinds_below(folder: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        told = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, told.replace(str(folder), "HERE"))
    return found


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "folder").mkdir()
    (folder / "folder" / "old").write_text("old")
    (folder / "folder" / "other").write_text("stays")
    (folder / "elsewhere").write_text("before")
    (folder / "through").symlink_to("elsewhere")
    (folder / "plain").write_text("old")


def test_a_committed_call_leaves_what_a_needed_one_would(study: Study, here: Path) -> None:
    needed, ahead = study.folder / "needed", study.folder / "ahead"
    for folder in (needed, ahead):
        prepare(folder)
    with study.session() as session:
        session.options(sandbox=str(needed)).call(leave_all_kinds).result(30)
        gate = session.checkpoint("gate", choices=["y", "n"])
        future = gate.branch("y").options(sandbox=str(ahead)).call(leave_all_kinds)
        before = kinds_below(ahead)
        wait_held(session, future)
        assert kinds_below(ahead) == before
        gate.respond("y")
        future.result(30)
    assert kinds_below(ahead) == kinds_below(needed)
    assert kinds_below(here) == {}
    for folder in (needed, ahead):
        (folder / "closed").chmod(0o700)


def test_of_two_files_of_one_name_the_later_one_stays(study: Study, here: Path) -> None:
    with study.session(cores=2) as session:
        gate = session.checkpoint("gate", choices=["y", "n"])
        branch = gate.branch("y")
        # Submitted first and ended last, many times over.
        late = [branch.call(write, f"file{number}", "late", 0.3) for number in range(4)]
        early = [branch.call(write, f"file{number}", "early") for number in range(4)]
        wait_held(session, *late, *early)
        ended = {row["task"]: row["ended"] for row in session.query("tasks")}
        gate.respond("y")
        assert [future.result(30) for future in late + early] == [f"file{number}" for number in range(4)] * 2
        for number in range(4):
            last = "late" if ended[late[number].task] > ended[early[number].task] else "early"
            assert (here / f"file{number}").read_text() == last


# --- what follows -----------------------------------------------------------------------------------------------------


def outcome_of(session: ph.Session, gate: ph.Checkpoint, folder: Path) -> dict[str, Any]:
    """Programs and calls that hand files on, before and after the answer: what each of them sees."""
    branch = gate.branch("y")
    box = str(folder / "box")
    made = branch.submit(shell("echo made > a.txt", sandbox=box, name="made"))
    staged = branch.submit(shell("echo staged > o.txt", output_staging=[f"o.txt > {folder}/o.txt"]))
    wrote = branch.options(sandbox=str(folder / "calls")).call(write, "w.txt", "wrote")
    inside = {
        "box": branch.submit(shell("cat a.txt || echo missing", sandbox=box), after=[made]),
        "staged": branch.submit(shell(f"cat {folder}/o.txt || echo missing"), after=[staged]),
        "wrote": branch.submit(shell(f"cat {folder}/calls/w.txt || echo missing"), after=[wrote]),
    }
    values: dict[str, ph.TaskFuture[Any]] = {
        "by value": branch.options(sandbox=str(folder / "calls")).call(read, wrote),
        "of a program": branch.call(sandbox_and_outputs, made, staged),
    }
    time.sleep(0.3)
    gate.respond("y")
    outside = {
        "later box": session.submit(shell("cat a.txt || echo missing", sandbox=box), after=[made]),
        "later staged": session.submit(shell(f"cat {folder}/o.txt || echo missing"), after=[staged]),
    }
    found: dict[str, Any] = {what: future.result(30).stdout for what, future in (inside | outside).items()}
    found |= {what: future.result(30) for what, future in values.items()}
    found["made"] = (made.result().sandbox, os.listdir(box), made.result().outputs)
    found["outputs"] = staged.result().outputs
    return found


def sandbox_and_outputs(made: ph.Completed, staged: ph.Completed) -> tuple[str, list[str], str]:
    return made.sandbox, staged.outputs, Path(staged.outputs[0]).read_text()


@pytest.mark.parametrize("policy", further(2, POLICIES))
@pytest.mark.usefixtures("here")
def test_what_follows_finds_the_files_under_every_policy(study: Study, policy: str) -> None:
    folder = study.folder / policy
    folder.mkdir()
    with study.session(policy=policy) as session:
        gate = session.checkpoint("gate", choices=["y", "n"])
        found = outcome_of(session, gate, folder)
    box, output = str(folder / "box"), f"{folder}/o.txt"
    assert found == {
        "box": "made\n",
        "staged": "staged\n",
        "wrote": "wrote",
        "by value": "wrote",
        "of a program": (box, [output], "staged\n"),
        "later box": "made\n",
        "later staged": "staged\n",
        "made": (box, ["a.txt"], []),
        "outputs": [output],
    }


def double(x: int) -> int:
    return 2 * x


def count_files(folder: str, after: str) -> str:
    return f"{len(os.listdir(folder)) if os.path.isdir(folder) else -1} after {after}"


def test_values_run_ahead_and_files_wait(study: Study, here: Path) -> None:
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["y", "n"])
        branch = gate.branch("y")
        pure = branch.call(double, branch.call(double, branch.call(double, 1)))
        program = branch.submit(shell("echo kept > file"))
        after_program = branch.call(read_of, program)
        writer = branch.call(write, "made/w.txt", "wrote")
        counter = branch.call(count_files, "made", writer)
        wait_held(session, pure, after_program, writer)
        assert f"it waits for {writer.task}" in counter.explain()
        assert not [row for row in session.query("tasks") if row["task"] == counter.task and row["state"] == "HELD"]
        gate.respond("y")
        assert (pure.result(30), after_program.result(30), counter.result(30)) == (8, "kept\n", "1 after made/w.txt")
        # What a program leaves in its own folder is not put anywhere, so nobody has to wait for it.
        assert below(here) == {"made/w.txt": "wrote"}


def read_of(done: ph.Completed) -> str:
    return Path(done.sandbox, "file").read_text()


def test_files_that_cannot_be_put_in_place_fail_their_task_and_what_follows(study: Study, here: Path) -> None:
    (here / "taken").mkdir()
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["y", "n"])
        branch = gate.branch("y")
        bad, good = branch.call(write, "taken", "x"), branch.call(write, "free", "x")
        outputs = branch.submit(shell("echo x > o", output_staging=[f"o > {here}/taken/o", f"none > {here}/none"]))
        after = branch.submit(shell("true"), after=[bad])
        wait_held(session, bad, good, outputs)
        gate.respond("y")
        assert good.result(30) == "free"
        for future in (bad, outputs):
            error = future.exception(30)
            assert isinstance(error, ph.TaskFailed), error
            assert "could not be put in place" in str(error)
        assert "a folder is where a file is to be put" in str(bad.exception())
        assert isinstance(after.exception(30), ph.DependencyFailed)


# --- a call that looks for the script's files -------------------------------------------------------------------------


def _append() -> str:
    with open("log.txt", "a") as file:
        file.write("second\n")
    return Path("log.txt").read_text()


def _default() -> str:
    try:
        return Path("input.csv").read_text()
    except FileNotFoundError:
        return "a default"


def _update() -> str:
    with open("log.txt", "r+") as file:
        file.write("FIRST")
    return Path("log.txt").read_text()


def _pattern() -> list[str]:
    return sorted(glob.glob("*.csv"))


def _walk() -> list[str]:
    return sorted(name for _folder, _folders, files in os.walk(".") for name in files)


def _remove() -> bool:
    try:
        os.remove("old.csv")
    except FileNotFoundError:
        return False
    return not os.path.exists("old.csv")


def _rename() -> str:
    try:
        os.rename("old.csv", "renamed.csv")
    except OSError:
        Path("renamed.csv").write_text("nothing")
    return Path("renamed.csv").read_text()


def _program() -> str:
    return subprocess.run(["cat", "input.csv"], capture_output=True, text=True, check=False).stdout


def _shell() -> str:
    line = "cat input.csv 2>/dev/null || echo none"
    return subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True).stdout


def _database() -> int:
    with sqlite3.connect("data.sqlite") as database:
        database.execute("CREATE TABLE IF NOT EXISTS it (x)")
        database.execute("INSERT INTO it VALUES (1)")
        return int(database.execute("SELECT count(*) FROM it").fetchone()[0])


def _only_here(tmp: str = "scratch") -> str:
    os.makedirs(tmp, exist_ok=True)
    Path(tmp, "a.bin").write_text("a")
    listed = sorted(os.listdir(tmp))
    with open(Path(tmp, "a.bin"), "a") as file:
        file.write("b")
    os.rename(Path(tmp, "a.bin"), Path(tmp, "b.bin"))
    return f"{listed} {Path(tmp, 'b.bin').read_text()}"


def _rewrite() -> str:
    Path("input.csv").write_text("rewritten")
    return Path("input.csv").read_text()


def _import() -> str:
    import colorsys
    import fractions

    return f"{colorsys.__name__} {fractions.Fraction(1, 2)}"


LOOKING = [_append, _default, _update, _pattern, _walk, _remove, _rename, _program, _shell, _database]
NOT_LOOKING = [_only_here, _rewrite, _import]


def fill(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "input.csv").write_text("1,2,3\n")
    (folder / "old.csv").write_text("old\n")
    (folder / "log.txt").write_text("first\n")
    with sqlite3.connect(folder / "data.sqlite") as database:
        database.execute("CREATE TABLE it (x)")
        database.execute("INSERT INTO it VALUES (0)")
    database.close()


def texts_below(folder: Path) -> dict[str, str]:
    return {name: text for name, text in below(folder).items() if not name.endswith(".sqlite")}


@pytest.mark.usefixtures("here")
def test_a_call_that_looks_for_the_scripts_files_ends_as_if_it_had_waited(study: Study) -> None:
    functions: list[Callable[[], Any]] = [*LOOKING, *NOT_LOOKING]
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["y", "n"])
        ahead = {}
        needed = {}
        for function in functions:
            for how in ("needed", "ahead"):
                fill(study.folder / f"{how}{function.__name__}")
            needed[function] = session.options(sandbox=str(study.folder / f"needed{function.__name__}")).call(function)
            branch = gate.branch("y").options(sandbox=str(study.folder / f"ahead{function.__name__}"))
            ahead[function] = branch.call(function)
        names = {function: future.task for function, future in ahead.items()}

        def rows() -> dict[str, str]:
            return {row["task"]: row["state"] for row in session.query("tasks") if row["task"] in names.values()}

        wait_for(lambda: set(rows().values()) <= {"HELD", "HELD_FAILED"}, "all were tried", 60)
        states = rows()
        found = {function.__name__: states[names[function]] for function in functions}
        wanted = {function.__name__: "HELD_FAILED" if function in LOOKING else "HELD" for function in functions}
        assert found == wanted
        gate.respond("y")
        for function in functions:
            assert ahead[function].result(30) == needed[function].result(30), function.__name__
        for function in functions:
            folders = [study.folder / f"{how}{function.__name__}" for how in ("needed", "ahead")]
            assert texts_below(folders[1]) == texts_below(folders[0]), function.__name__
        failed = session.query("tasks")
        # A call that waited behind a long one may have been taken back before it began, which is a run as well.
        assert all(row["run"] >= 1 for row in failed if row["task"] in {names[f] for f in LOOKING})


def slow_reader(started: str, seconds: float) -> str:
    Path(started).touch()
    time.sleep(seconds)
    return Path("input.csv").read_text()


def test_what_runs_apart_when_the_answer_comes_is_not_failed_by_that(study: Study, here: Path) -> None:
    (here / "input.csv").write_text("1,2,3")
    started = study.folder / "started"
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["y", "n"])
        future = gate.branch("y").call(slow_reader, str(started), 1.0)
        wait_for(started.exists, "it runs")
        gate.respond("y")
        assert future.result(30) == "1,2,3"


# --- tasks of tasks ---------------------------------------------------------------------------------------------------


def parent() -> tuple[str, str]:
    Path("part.txt").write_text("part")
    session = ph.current_session()
    child = session.submit(
        ph.TaskDescription(
            executable="/bin/sh",
            arguments=["-c", "cat part.txt input.csv > sum.txt"],
            input_staging=["part.txt", "input.csv"],
            output_staging=["sum.txt > results/sum.txt"],
            sandbox="child",
        )
    )
    done = child.result()
    return done.sandbox, done.outputs[0]


def test_what_a_speculative_call_submits_finds_and_leaves_files_as_a_needed_ones_does(study: Study, here: Path) -> None:
    (here / "input.csv").write_text("input")
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["y", "n"])
        future = gate.branch("y").call(parent)
        wait_for(lambda: "HELD" in [row["state"] for row in session.query("tasks")], "the child ran ahead")
        assert below(here) == {"input.csv": "input"}
        gate.respond("y")
        assert future.result(30) == (str(here / "child"), str(here / "results" / "sum.txt"))
        found = below(here)
        assert found["results/sum.txt"] == found["child/sum.txt"] == "partinput"
        assert found["part.txt"] == "part"


def ranks_write(comm: MPI.Intracomm) -> list[str]:
    Path(f"rank{comm.rank}.txt").write_text(str(comm.rank))
    comm.barrier()
    return comm.allgather(os.getcwd())


@pytest.mark.requires("openmpi", "mpi4py")
def test_all_ranks_of_a_speculative_function_share_one_folder(study: Study, here: Path) -> None:
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["y", "n"])
        chosen = gate.branch("y", probability=0.6).options(ranks=2).call(ranks_write)
        wait_held(session, chosen)
        loser = gate.branch("n", probability=0.4).options(ranks=2).call(ranks_write)
        wait_held(session, loser)
        assert below(here) == {}
        gate.respond("y")
        folders = chosen.result(60)
        assert len(set(folders)) == 1
        assert str(study.home) in folders[0]
        assert below(here) == {"rank0.txt": "0", "rank1.txt": "1"}
        wait_for(lambda: not [path for path in apart(study) if loser.task in path], "the loser's folder is gone")
        assert session.options(ranks=2).call(ranks_write).result(60) == [str(here)] * 2


# --- killed in between ------------------------------------------------------------------------------------------------

KILLED = """
with ph.Session("study") as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2, runtime=10))

    def write(name):
        open(name, "w").write(name)
        return os.getcwd()

    gate = session.checkpoint("gate", question="?", choices=["y", "n"])
    branch = gate.branch("y")
    call = branch.call(write, "call.txt")
    made = branch.submit(ph.TaskDescription(
        executable="/bin/sh", arguments=["-c", "echo out > o"], sandbox="box", output_staging=["o > staged"]))
    print("asked", flush=True)
    after = session.submit(ph.TaskDescription(
        executable="/bin/sh", arguments=["-c", f"cat {FOLDER}/staged {FOLDER}/box/o {FOLDER}/call.txt"]),
        after=[made, call])
    print(after.result(60).stdout.split(), made.result().outputs, made.result().sandbox, flush=True)
"""


@pytest.mark.only_local
@pytest.mark.parametrize("victim", further(1, ["all", "hub"]))
def test_a_hub_that_is_killed_between_commit_and_publication(study: Study, victim: str) -> None:
    script = study.start(KILLED)
    assert script.stdout is not None
    assert script.stdout.readline() == "asked\n"
    wait_for(lambda: json.loads(study.tool("session", "show", "study", "--json"))["states"].get("HELD") == 2, "held")
    [gate] = [each["id"] for each in study.inbox()]
    processes = study.processes()
    [agent] = [each["pid"] for each in processes if each["kind"] == "agent"]
    [hub] = [each["pid"] for each in processes if each["kind"] == "hub"]
    # The agent takes the answer's consequences only after the hub that told it is gone.
    os.kill(agent, signal.SIGSTOP)
    study.tool("inbox", "answer", gate, "y")
    assert not (study.folder / "staged").exists()
    for pid in [hub] if victim == "hub" else [script.pid, hub, *(p["pid"] for p in processes if p["pid"] != hub)]:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)
    if victim == "hub":
        os.kill(agent, signal.SIGCONT)
        out, err = script.communicate(timeout=90)
        assert script.returncode == 0, err
    else:
        script.communicate()
        wait_for(lambda: not study.strays(), "nothing runs")
        assert not (study.folder / "staged").exists()
        out = study.run(KILLED, timeout=90).split("\n", 1)[1]
    assert out.strip() == f"['out', 'out', 'call.txt'] ['{study.folder}/staged'] {study.folder}/box"
