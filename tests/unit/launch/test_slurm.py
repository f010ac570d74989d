"""The batch script of a description: what is asked of Slurm, and what the job runs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pilot_hitl.launch import slurm
from pilot_hitl.launch.platforms import Platform
from pilot_hitl.model.descriptions import PilotDescription

ANY = Platform(name="slurm")


def _job(description: PilotDescription, *pilots: int, platform: Platform = ANY, folder: str = "/home/a/p") -> slurm.Job:
    description.verify()
    return slurm.Job(
        description=description,
        platform=platform,
        session="study",
        mark="abc/study",
        pilots=pilots or (3,),
        folder=folder,
        python="/usr/bin/python3",
        spawner="/lib/spawner.py",
    )


def _options(platform: Platform = ANY, **asked: Any) -> set[str]:
    description = PilotDescription(resource="slurm", **asked)
    return set(slurm.options(_job(description, platform=platform)))


@pytest.mark.parametrize(
    ("asked", "wanted", "unwanted"),
    [
        ({"nodes": 4}, {"--nodes=4", "--ntasks-per-node=1", "--exclusive", "--mem=0"}, "--cpus-per-task"),
        ({"nodes": 4, "cores": 10}, {"--nodes=4", "--cpus-per-task=3"}, "--exclusive"),
        ({"nodes": 2, "cores": 4, "exclusive": True}, {"--exclusive", "--nodes=2"}, "--cpus-per-task"),
        ({"cores": 6}, {"--ntasks=6"}, "--nodes"),
        ({"cores": 6, "gpus": 2, "memory": 6000}, {"--gpus=2", "--mem-per-cpu=1000M"}, "--gres"),
        ({}, {"--nodes=1", "--exclusive"}, "--ntasks="),
        ({"nodes": 2, "gpus": 3}, {"--gres=gpu:2"}, "--gpus"),
        ({"nodes": 2, "memory": 3001}, {"--mem=1501M"}, "--mem=0"),
        ({"runtime": 90.5}, {"--time=01:30:30"}, "--account"),
        ({"queue": "long:high", "project": "ab:resv"}, {"--partition=long", "--qos=high", "--account=ab"}, "--x"),
        ({"requeue": True}, {"--requeue"}, "--no-requeue"),
        ({}, {"--no-requeue", "--no-kill", "--export=ALL"}, "--requeue"),
        ({"constraint": "[a*2&b]", "job_name": "a b"}, {"--constraint=[a*2&b]", '--job-name="a b"'}, "--x"),
        ({"system_args": ["--licenses=x"]}, {"--licenses=x"}, "--x"),
    ],
)
def test_what_is_asked_for(asked: dict[str, Any], wanted: set[str], unwanted: str) -> None:
    options = _options(**asked)
    assert wanted <= options
    assert not [option for option in options if option.startswith(unwanted)]


def test_a_platform_fills_in_what_is_open() -> None:
    platform = Platform(name="big", queue="gpu", qos="normal", cores_per_node=64, gpus_per_node=8, system_args=["-S0"])
    options = _options(platform, cores=65, queue="")
    assert {"--partition=gpu", "--qos=normal", "--nodes=2", "--cpus-per-task=33", "--gres=gpu:8", "-S0"} <= options
    assert "--partition=mine" in _options(platform, queue="mine")
    assert slurm.node_size(PilotDescription(cores=65), platform) == (33, 8, 0)


@pytest.mark.parametrize(("runtime", "seconds"), [(2, 30), (10, 60), (60, 180), (24 * 60, 600), (0.2, 5)])
def test_how_early_a_job_is_told(runtime: float, seconds: int) -> None:
    assert slurm.warning(runtime) == seconds
    assert f"--signal=B:TERM@{seconds}" in _options(runtime=runtime)


def test_equal_pilots_are_an_array_whose_indices_are_their_numbers() -> None:
    job = _job(PilotDescription(resource="slurm", nodes=1), 3, 4, 7)
    options = slurm.options(job)
    assert "--array=3-4,7" in options
    assert "--output=/home/a/p/%a/logs/batch.log" in options
    assert "folder=/home/a/p/$SLURM_ARRAY_TASK_ID\n" in slurm.script(job)
    assert slurm.command(job) == ["sbatch", "--parsable", "/home/a/p/3/batch.sh"]


def test_paths_that_slurm_or_a_shell_would_read_otherwise() -> None:
    job = _job(PilotDescription(resource="slurm", nodes=1), folder="/home/a b/100%/p")
    assert '--output="/home/a b/100%%/p/3/logs/batch.log"' in slurm.options(job)
    text = slurm.script(job)
    assert "folder='/home/a b/100%/p'/3\n" in text
    assert "--output='/home/a b/100%%/p/3/logs/node-%n.log'" in text


def test_modules_and_lines_come_first_and_end_the_job_when_they_fail() -> None:
    description = PilotDescription(resource="slurm", nodes=1, modules=["gcc/12", "a b"], pre_launch=["source /x/env"])
    text = slurm.script(_job(description))
    assert "module load gcc/12 || exit 1\nmodule load 'a b' || exit 1\nsource /x/env || exit 1\n" in text
    assert text.index("source /x/env") < text.index("srun --nodes")


def test_the_script_is_a_shell_script_and_runs_one_step(tmp_path: Path) -> None:
    (tmp_path / "p/3/logs").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    said = tmp_path / "said"
    fake = f'#!/bin/sh\nfor word in "$@"; do echo "$word"; done >>{said}\nexit 3\n'
    (tmp_path / "bin/srun").write_text(fake)
    (tmp_path / "bin/srun").chmod(0o755)
    path = tmp_path / "batch.sh"
    path.write_text(slurm.script(_job(PilotDescription(resource="slurm", nodes=2), folder=str(tmp_path / "p"))))
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "2"}
    ended = subprocess.run(["bash", str(path)], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (3, "")
    words = said.read_text().splitlines()
    assert words[:3] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert words[-5:] == ["/usr/bin/python3", "-I", "-S", "/lib/spawner.py", f"{tmp_path}/p/3/config.json"]
    assert (tmp_path / "p/3/job").read_text() == "42 0\n"


def test_a_warning_reaches_the_agent_that_is_on_this_node_and_the_job_goes_on(tmp_path: Path) -> None:
    (tmp_path / "p/3/logs").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    # The step stands for the agent as well: it tells the batch script's pid of the warning, and sees its own signal.
    fake = f"""#!/bin/bash
trap 'echo warned >>{tmp_path}/said; exit 0' USR1
printf '%s %s' $$ "$(hostname)" >{tmp_path}/p/3/agent.pid
kill -TERM $PPID
for _ in $(seq 100); do sleep 0.1; done
"""
    (tmp_path / "bin/srun").write_text(fake)
    (tmp_path / "bin/srun").chmod(0o755)
    path = tmp_path / "batch.sh"
    path.write_text(slurm.script(_job(PilotDescription(resource="slurm", nodes=1), folder=str(tmp_path / "p"))))
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "1"}
    ended = subprocess.run(["bash", str(path)], env=environment, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "said").read_text() == "warned\n"


def test_what_leaks_from_the_client() -> None:
    client = {
        "PATH": "/bin",
        "HOME": "/home/a",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_JOB_ID": "1",
        "SLURM_MEM_PER_NODE": "1",
        "SECRET": "x",
        "SBATCH_ACCOUNT": "mine",
        "SBATCH_PARTITION": "mine",
        "SBATCH_EXPORT": "NONE",
    }
    assert slurm.environment(client, PilotDescription(resource="slurm", queue="main")) == {
        "PATH": "/bin",
        "HOME": "/home/a",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_ACCOUNT": "mine",
    }


def test_what_cannot_be_submitted_there() -> None:
    asked = PilotDescription(resource="x")
    assert "pbspro" in slurm.refusal(asked, Platform(name="x", system="pbspro"))
    assert "wants project" in slurm.refusal(asked, Platform(name="x", requires=["project"]))
    assert slurm.refusal(PilotDescription(resource="x", project="p"), Platform(name="x", requires=["project"])) == ""


@pytest.mark.parametrize(
    "asked",
    [
        {"queue": "a\n#SBATCH --x"},
        {"system_args": ["licenses=x"]},
        {"modules": "gcc"},
        {"pre_launch": ["a\nb"]},
        {"lease": 0},
        {"runtime": 1e9},
    ],
)
def test_descriptions_that_cannot_be_meant(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(asked))):
        PilotDescription(resource="slurm", **asked).verify()


def test_a_job_of_another_session_is_not_ours() -> None:
    assert slurm.is_ours(slurm.comment("abc/study", 3, 1), "abc/study")
    assert not slurm.is_ours(slurm.comment("abc/study2", 3, 1), "abc/study")
    assert slurm.is_ours("somebody's own words", "abc/study")


@pytest.mark.parametrize(
    ("job", "comment", "owner"),
    [
        ("42", slurm.comment("abc/study", 3, 2), (3, 2)),
        ("42_7", slurm.comment("abc/study", 3, 1), (7, 1)),
        ("42", slurm.comment("abc/study2", 3, 1), None),
        ("42", slurm.comment("abc/study", 3, 1) + "x", None),
        ("42", "pilot-hitl:abc/study/3", None),
        ("42", "somebody's own words", None),
    ],
)
def test_whose_job_it_is(job: str, comment: str, owner: tuple[int, int] | None) -> None:
    assert slurm.owner(job, comment, "abc/study") == owner


@pytest.mark.parametrize(("written", "starts"), [(None, True), ("2", True), ("3", False), ("1", False), ("", True)])
def test_a_job_of_a_try_that_was_given_up_ends_at_once(tmp_path: Path, written: str | None, starts: bool) -> None:
    (tmp_path / "3").mkdir()
    if written is not None:
        (tmp_path / "3" / slurm.TRY_FILE).write_text(f"{written}\n")
    text = slurm.script(
        msgspec.structs.replace(_job(PilotDescription(resource="slurm"), folder=str(tmp_path)), number=2)
    )
    text = text.partition("unset SLURM_CPU_BIND")[0]  # what follows starts the pilot
    done = subprocess.run(
        ["bash", "-c", text], env={"SLURM_JOB_ID": "9", "PATH": "/bin:/usr/bin"}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "3" / slurm.JOB_FILE).exists() == starts
