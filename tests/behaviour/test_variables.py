"""What tasks find in their environment: their own facts, their pilot's job, and nothing of where the client runs."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study

OUTER = {
    "SLURM_JOB_ID": "987654", "SLURM_JOBID": "987654", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "7", "SLURM_PROCID": "3",
    "SLURMD_NODENAME": "login1", "PMI_RANK": "3", "PMI_FD": "9", "PMI2_RANK": "3", "PMIX_RANK": "3",
    "PMIX_NAMESPACE": "slurm.pmix.987654.0", "OMPI_COMM_WORLD_RANK": "3", "OMPI_UNIVERSE_SIZE": "7",
    "OMPI_MCA_ess_base_jobid": "1", "PRTE_LAUNCHED": "1", "PALS_RANKID": "3", "FLUX_TASK_RANK": "3",
    "PBS_NODEFILE": "/nowhere", "LSB_HOSTS": "login1", "HYDI_CONTROL_FD": "8",
}  # fmt: skip
KEPT = {"OMPI_MCA_btl": "^openib", "MY_SLURM": "mine", "LAB": "x"}
"""Settings of the user's, which are of no allocation."""


@pytest.fixture
def outer(study: Study, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A client that runs as a rank in an allocation of its own, and has been elsewhere."""
    for name, value in (OUTER | KEPT | {"PWD": "/nowhere", "OLDPWD": "/elsewhere"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(study.folder)
    return OUTER


def environment() -> tuple[dict[str, str], str]:
    return dict(os.environ), os.getcwd()


def shown(text: str) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if "=" in entry)


def test_nothing_of_an_outer_allocation(study: Study, outer: dict[str, str]) -> None:
    def task(**more: Any) -> ph.TaskDescription:
        return ph.TaskDescription(executable="env", arguments=["-0"], **more)

    with study.session() as session:
        forms: list[dict[str, Any]] = [{}, {"pre_exec": ["true"]}, {"input_staging": ["given"]}, {"sandbox": "box"}]
        (study.folder / "given").touch()
        programs = [session.submit(task(**more)) for more in forms]
        two = session.submit(task(ranks=2, stdout="out.txt"))
        seen = [shown(each.result(60).stdout) for each in programs]
        seen.append(shown((Path(two.result(60).sandbox) / "out.txt").read_text()))
        places = [each.result().sandbox for each in [*programs, two]]
        for call in (session.call(environment), session.options(sandbox="calls").call(environment)):
            found, where = call.result(60)
            seen.append(found)
            places.append(where)
        job = str(session.query("pilots")[0].get("job") or "")
        for variables, place in zip(seen, places, strict=True):
            left = {name: variables[name] for name, value in outer.items() if variables.get(name) == value}
            assert not left
            assert variables.get("SLURM_JOB_ID", "") == (job if study.backend == "slurm" else "")
            assert KEPT.items() <= variables.items()
            assert variables["PWD"] == place
            assert "OLDPWD" not in variables


def test_what_a_task_sets_itself_stays(study: Study, outer: dict[str, str]) -> None:
    assert outer
    with study.session() as session:
        asked = {"SLURM_CPU_BIND": "none", "PMI_DEBUG": "1"}
        task = ph.TaskDescription(executable="env", arguments=["-0"], environment=asked)
        assert asked.items() <= shown(session.submit(task).result(30).stdout).items()


def test_arguments_are_literal_in_every_form(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", "outer")
    words = ["$PILOT_HITL_TASK", "${GIVEN}/x", "a b", '"', "`id`", "$(id)", "~", "*"]
    with study.session() as session:
        for more in (
            {},
            {"pre_exec": ["true"]},
            {"post_exec": ["true"]},
            {"ranks": 2},
            {"output_staging": [f"*.txt > {study.folder}/kept/"]},
        ):
            task = ph.TaskDescription(executable="printf", arguments=["%s\\n", *words], stdout="$GIVEN.txt", **more)
            box = Path(session.submit(task).result(30).sandbox)
            assert (box / "$GIVEN.txt").read_text().splitlines() == words
    described = " ".join((inspect.getdoc(ph.TaskDescription) or "").split())
    assert "arguments: its arguments, as text. The program gets them as they are" in described
