"""Staging: what is named arrives, whole, or the task fails and says what is missing; programs hand files on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, further, wait_for


def shell(text: str, **more: Any) -> ph.TaskDescription:
    return ph.TaskDescription(executable="/bin/sh", arguments=["-c", text], **more)


LIST = 'find . -type f -o -type l | sort | while read -r f; do echo "$f $(cat "$f")"; done'


@pytest.fixture
def work(study: Study, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client's folder, with files and links to them."""
    monkeypatch.chdir(study.folder)
    for name in ("frames/a.pdb", "frames/b b.pdb", "frames/deep/c.pdb", "odd > name", "x[1].dat"):
        path = study.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (study.folder / "current").symlink_to("frames/a.pdb")
    (study.folder / "linked").symlink_to("frames")
    (study.folder / "dangling").symlink_to("nowhere")
    return study.folder


@pytest.mark.parametrize("action", further(2, ["copy", "link", "transfer", "Download"]))
def test_every_match_arrives(study: Study, work: Path, action: str) -> None:
    cases: list[tuple[list[Any], list[str]]] = [
        (["frames/*.pdb"], ["./a.pdb frames/a.pdb", "./b b.pdb frames/b b.pdb"]),
        (["linked/?.pdb > in/"], ["./in/a.pdb frames/a.pdb"]),
        (["current > in.pdb"], ["./in.pdb frames/a.pdb"]),
        (["current"], ["./current frames/a.pdb"]),
        (["frames/*/[!x]*.pdb"], ["./c.pdb frames/deep/c.pdb"]),
        (["x[1].dat > y/z.dat"], ["./y/z.dat x[1].dat"]),
        ([{"source": "odd > name", "target": "x"}], ["./x odd > name"]),
        ([work / "odd > name"], ["./odd > name odd > name"]),
        ([f"file://{work}/current > c", "x[1].dat"], ["./c frames/a.pdb", "./x[1].dat x[1].dat"]),
    ]
    with study.session() as session:
        tasks = []
        for given, _ in cases:
            items = [
                item if isinstance(item, dict) else {"source": item} for item in given if not isinstance(item, str)
            ]
            for item in given:
                if isinstance(item, str):
                    source, _, target = item.partition(" > ")
                    items.append({"source": source, "target": target})
            tasks.append(session.submit(shell(LIST, input_staging=[{**item, "action": action} for item in items])))
        for task, (given, right) in zip(tasks, cases, strict=True):
            assert task.result(30).stdout.splitlines() == right, given


@pytest.mark.usefixtures("work")
def test_folders_arrive_whole(study: Study) -> None:
    whole = ["a.pdb frames/a.pdb", "b b.pdb frames/b b.pdb", "deep/c.pdb frames/deep/c.pdb"]
    with study.session() as session:
        for source, target in (
            ("frames", "frames"),
            ("frames/", "frames"),
            ("linked", "linked"),
            ("linked > in/", "in/linked"),
        ):
            task = session.submit(shell(LIST, input_staging=[source]))
            assert task.result(30).stdout.splitlines() == [f"./{target}/{line}" for line in whole]


def test_outputs_arrive_as_bytes_and_are_listed(study: Study, work: Path) -> None:
    script = 'mkdir d; echo 1 > a.log; echo 2 > "b b.log"; echo 3 > d/x; ln -s "$(pwd)/a.log" latest; ln -s d box'
    with study.session() as session:
        done = session.submit(
            shell(
                script,
                output_staging=["*.log > logs/", "latest > kept/latest", "box", {"source": "d/x", "action": "move"}],
            )
        ).result(30)
        right = {"logs/a.log": "1\n", "logs/b b.log": "2\n", "kept/latest": "1\n", "box/x": "3\n", "x": "3\n"}
        for name, text in right.items():
            assert (work / name).read_text() == text
            assert not (work / name).is_symlink()
        assert done.outputs == [str(work / name) for name in ("logs/a.log", "logs/b b.log", "kept/latest", "box", "x")]
        assert not (Path(done.sandbox) / "d" / "x").exists()


MISSING: list[tuple[dict[str, Any], str]] = [
    ({"input_staging": ["frames/*.xyz"]}, r"input_staging\[0\] \(frames/\*.xyz\): .*nothing matches"),
    ({"input_staging": ["none.pdb"]}, r"none.pdb: No such file or directory"),
    ({"input_staging": ["current", {"source": "none", "action": "link"}]}, r"input_staging\[1\].*No such file"),
    ({"input_staging": ["dangling"]}, "leads to nowhere, which is not there"),
    ({"input_staging": [{"source": "dangling", "action": "link"}]}, "leads to nowhere"),
    ({"input_staging": ["current/"]}, "no folder"),
    ({"input_staging": ["x[[]1]*"], "output_staging": ["never > y"]}, r"output_staging\[0\] \(never > y\)"),
    ({"output_staging": ["*.never"]}, r"output_staging\[0\].*nothing matches"),
    ({"input_staging": ["frames/*.pdb", "frames/deep/c.pdb > a.pdb"]}, "have the same target"),
    ({"input_staging": ["none.pdb"], "pre_exec": ["exit 0"]}, "none.pdb"),
]


def test_what_is_missing_is_named(study: Study, work: Path) -> None:
    with study.session() as session:
        for number, (more, said) in enumerate(MISSING):
            task = session.submit(shell(f"echo noise >&2; touch {work}/ran.{number}", **more))
            with pytest.raises(ph.TaskFailed, match=said) as caught:
                task.result(30)
            assert (work / f"ran.{number}").exists() is ("output_staging" in more), said
            assert "pilot-hitl" not in caught.value.stderr


def test_what_cannot_be_meant_is_refused_at_submit(study: Study) -> None:
    bad: list[dict[str, Any]] = [
        {"input_staging": "frames"},
        {"input_staging": [""]},
        {"input_staging": ["http://example.org/x"]},
        {"input_staging": [{"source": "frames", "action": "tarball"}]},
        {"input_staging": ["a > x", "b > x"]},
        {"output_staging": "out"},
        {"output_staging": ["out > x", "more/x"]},
        {"output_staging": ["*.log > all"]},
    ]
    with study.session(cores=0) as session:
        for more in bad:
            with pytest.raises(ph.DescriptionError, match="put_staging"):
                session.submit(shell("true", **more))


def test_a_failure_of_the_program_is_its_own(study: Study) -> None:
    with study.session() as session:
        task = session.submit(shell("echo why >&2; exit 7", output_staging=["never > x"]))
        with pytest.raises(ph.TaskFailed, match="exit code 7") as caught:
            task.result(30)
        assert (caught.value.exit_code, caught.value.stderr) == (7, "why\n")
        killed = session.submit(shell("kill -9 $$", output_staging=["never > x"]))
        with pytest.raises(ph.TaskFailed, match="SIGKILL"):
            killed.result(30)
        missing = session.submit(ph.TaskDescription(executable="no-such-program", output_staging=["never > x"]))
        with pytest.raises(ph.TaskFailed, match="no-such-program"):
            missing.result(30)


def test_staging_around_lines(study: Study, work: Path) -> None:
    with study.session() as session:
        task = session.submit(
            shell(
                "cat in > out; pwd",
                input_staging=["current > deep/in"],
                pre_exec=["cp() { echo no; }; mkdir() { echo no; }; PATH=$PATH:/x; set -- a b; set -f; cd deep"],
                post_exec=["echo more >> out", "cd /", "trap 'echo bye' EXIT"],
                output_staging=["deep/out > kept"],
            )
        )
        assert task.result(30).stdout == f"{task.result().sandbox}/deep\nbye\n"
        assert (work / "kept").read_text() == "frames/a.pdbmore\n"


# --- from task to task ------------------------------------------------------------------------------------------------


def test_programs_hand_files_on(study: Study) -> None:
    with study.session() as session:
        first = session.submit(
            shell("sleep 0.3; mkdir d; echo 1 > a.csv; echo 2 > 'b c.csv'; echo 3 > d/x", name="clean")
        )
        second = session.submit(
            shell(
                LIST,
                input_staging=[
                    {"source": (first, "a.csv"), "target": "in.csv"},
                    (first, "d/"),
                    {"source": (first, "*.csv"), "target": "all/"},
                ],
            )
        )
        right = ["./all/a.csv 1", "./all/b c.csv 2", "./d/x 3", "./in.csv 1"]
        assert second.result(30).stdout.splitlines() == right
        lost = session.submit(shell("true", name="plot", input_staging=[(first, "none.csv")]))
        with pytest.raises(ph.TaskFailed, match=f"none.csv.*{first.task} left no such file") as caught:
            lost.result(30)
        assert caught.value.task == lost.task
        broken = session.submit(shell("exit 3"))
        with pytest.raises(ph.DependencyFailed):
            session.submit(shell("true", input_staging=[(broken, "x")])).result(30)


def test_what_is_no_source(study: Study) -> None:
    with study.session() as session:
        call = session.call(len, "abc")
        done = session.submit(shell("true"))
        for source in ((call, "x"), done, (done,), {"source": done}, {"source": (done, "/etc/passwd")}, (3, "x")):
            with pytest.raises(ph.DescriptionError, match=r"input_staging\[0\]"):
                session.submit(shell("true", input_staging=[source]))
        with pytest.raises(ph.DescriptionError, match="output_staging"):
            session.submit(shell("true", output_staging=[(done, "x")]))


def test_branches_hand_files_on(study: Study) -> None:
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["yes", "no"])
        made: dict[str, tuple[ph.TaskFuture[Any], ph.TaskFuture[Any]]] = {}
        ready = {name: study.folder / f"ready-{name}" for name in ("yes", "no")}
        for name, path in ready.items():
            with gate.branch(name):
                # With neither ``sandbox`` nor ``output_staging``: what it left is where it stays, so others run ahead.
                one = session.submit(shell(f"echo {name} > out.txt"))
                two = session.submit(
                    shell(
                        f"cat out.txt; tr a-z A-Z < out.txt > two.txt; touch {path}",
                        input_staging=[(one, "out.txt")],
                        output_staging=[f"two.txt > {study.folder}/two-{name}"],
                    )
                )
                made[name] = (one, two)
        wait_for(lambda: all(each.exists() for each in ready.values()), "both ran")
        assert not (study.folder / "two-yes").exists()
        gate.respond("yes")
        assert made["yes"][1].result(30).stdout == "yes\n"
        assert (study.folder / "two-yes").read_text() == "YES\n"
        later = session.submit(
            shell("cat out.txt two.txt", input_staging=[(each, "*.txt") for each in made["yes"][1:]])
        )
        assert later.result(30).stdout == "yes\nYES\n"
        with pytest.raises(ph.Discarded):
            made["no"][1].result(30)
    assert not (study.folder / "two-no").exists()


def test_whoever_takes_files_of_a_program_with_a_place_waits_for_that_place(study: Study) -> None:
    box, ran = study.folder / "box", study.folder / "ran"
    with study.session() as session:
        gate = session.checkpoint("gate", choices=["yes", "no"])
        with gate.branch("yes"):
            one = session.submit(shell("echo one > out.txt", sandbox=str(box)))
            two = session.submit(shell(f"touch {ran}; cat out.txt {box}/out.txt", input_staging=[(one, "out.txt")]))
        wait_for(lambda: one.task in [row["task"] for row in session.query("tasks") if row["state"] == "HELD"], "held")
        assert f"it waits for {one.task}" in two.explain()
        assert not ran.exists()
        gate.respond("yes")
        assert two.result(30).stdout == "one\none\n"


def test_what_a_branch_cannot_undo_is_refused(study: Study) -> None:
    with study.session(cores=0) as session:
        branch = session.checkpoint("gate", choices=["yes", "no"]).branch("yes")
        for item in ({"source": "a", "action": "move"}, "a > /tmp/b", "a > ../b", "a > pilot:///b"):
            with pytest.raises(ph.DescriptionError, match="effects='outside'"):
                branch.submit(shell("true", input_staging=[item]))
            branch.submit(shell("true", input_staging=[item], effects="outside"))
            session.submit(shell("true", input_staging=[item]))


def test_a_program_that_takes_files_of_another_is_found_again(study: Study) -> None:
    script = """
        with ph.Session("again") as session:
            session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2, runtime=10))
            def shell(text, **more):
                return ph.TaskDescription(executable="/bin/sh", arguments=["-c", text], **more)
            first = session.submit(shell("echo 1 > a"))
            second = session.submit(shell(f"cat a; echo ran >> {FOLDER}/log", input_staging=[(first, "a")]))
            other = session.submit(shell(f"cat a; echo ran >> {FOLDER}/log", input_staging=[(first, sys.argv[1])]))
            print(second.result(30).stdout, isinstance(other.exception(30), ph.TaskFailed))
    """
    assert study.run(script, "a") == "1\n False\n"
    assert study.lines("log") == ["ran", "ran"]
    assert study.run(script, "a") == "1\n False\n"
    assert study.lines("log") == ["ran", "ran"]
    assert study.run(script, "[a]") == "1\n False\n"
    assert study.lines("log") == ["ran", "ran", "ran"]


@pytest.mark.usefixtures("work")
def test_nothing_is_left_of_what_staging_needs(study: Study) -> None:
    many = [f"x[1].dat > many/{number:04d}" for number in range(1500)]
    with study.session() as session:
        done = session.submit(shell("ls many | wc -l", input_staging=many, pre_exec=[f": {'x' * 110_000}"])).result(60)
        assert done.stdout.split() == ["1500"]
        folder = Path(done.sandbox).parent.parent / "steps"
        assert not folder.exists() or list(folder.iterdir()) == []
        assert os.listdir(done.sandbox) == ["many"]
