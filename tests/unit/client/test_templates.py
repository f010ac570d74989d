from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import cast

import msgspec
import pytest

from pilot_hitl import _templates
from pilot_hitl.errors import DescriptionError
from pilot_hitl.model.descriptions import CallOptions, TaskDescription, shape_of
from pilot_hitl.model.templates import ExecutableBody, ExecutableTemplate


def test_options_take_short_names_and_keep_the_rest() -> None:
    first = _templates.call_options(CallOptions(), {"cores": 2, "retries": 1})
    second = _templates.call_options(first, {"gpus": 0.5, "memory": 100})
    assert (second.cores_per_rank, second.retries, second.gpus_per_rank, second.mem_per_rank) == (2, 1, 0.5, 100)
    assert first.gpus_per_rank == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"core": 1}, "did you mean 'cores'"),
        ({"cores": 0}, "cores_per_rank"),
        ({"cores": "2"}, "cores_per_rank"),
        ({"on_preempt": "explode"}, "on_preempt"),
        ({"zzz": 1}, "it has cores, gpus"),
        ({"tags": 3}, "tags: 3 is not a mapping"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, object], said: str) -> None:
    with pytest.raises(DescriptionError, match=said):
        _templates.call_options(CallOptions(), options)


def test_an_executable_is_split_into_what_is_shared_and_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    one = TaskDescription(executable="/bin/echo", arguments=["1"], sandbox="run/1", environment={"A": "b"})
    two = TaskDescription(executable="/bin/echo", arguments=["2"], environment={"A": "b"})
    assert _templates.executable_template(one) == _templates.executable_template(two)
    template = msgspec.msgpack.decode(_templates.executable_template(one), type=ExecutableTemplate)
    assert (template.name, template.environment) == ("echo", {"A": "b"})
    body = msgspec.msgpack.decode(_templates.executable_body(one), type=ExecutableBody)
    assert body == ExecutableBody(["1"], os.fspath(tmp_path / "run/1"))
    assert msgspec.msgpack.decode(_templates.executable_body(two), type=ExecutableBody).sandbox == ""


@pytest.mark.parametrize("launcher", ["", "fork", "srun", "srun:pmix", "mpirun", "mpiexec", "prte", "flux"])
def test_a_launcher_travels_with_the_template(launcher: str) -> None:
    task = _templates.verified(TaskDescription(executable="/bin/true", ranks=2, launcher=launcher))
    template = msgspec.msgpack.decode(_templates.executable_template(task), type=ExecutableTemplate)
    assert template.launcher == launcher
    # What may take a launcher of the site is counted, and nothing else.
    assert shape_of(task).launcher is (launcher != "fork")
    assert not shape_of(TaskDescription(executable="/bin/true", launcher=launcher)).launcher
    assert not shape_of(CallOptions(ranks=2)).launcher


@pytest.mark.parametrize("launcher", ["ssh", "mpirun:pmix", "srun pmix", ":pmix"])
def test_a_launcher_that_cannot_be_meant(launcher: str) -> None:
    with pytest.raises(DescriptionError, match="srun:pmix"):
        _templates.verified(TaskDescription(executable="/bin/true", ranks=2, launcher=launcher))


def test_staging_starts_from_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    task = TaskDescription(executable="cat", input_staging=["in.dat"], output_staging=["out.dat > results/"])
    inward, outward = _templates.staging_of(task)
    assert (inward[0].root, inward[0].source) == (os.fspath(tmp_path), "in.dat")
    assert (outward[0].into, outward[0].target, outward[0].folder) == (os.fspath(tmp_path), "results/", True)
    template = msgspec.msgpack.decode(_templates.executable_template(task), type=ExecutableTemplate)
    assert (template.input_staging, template.output_staging) == (inward, outward)


def test_staging_that_cannot_be_read() -> None:
    with pytest.raises(DescriptionError, match=r"output_staging\[0\].*teleport"):
        _templates.staging_of(TaskDescription(executable="cat", output_staging=[{"source": "a", "action": "teleport"}]))


def test_wrong_descriptions_are_named() -> None:
    with pytest.raises(DescriptionError, match="executable"):
        _templates.verified(TaskDescription())
    with pytest.raises(DescriptionError, match="functions go to call"):
        _templates.verified(cast("TaskDescription", len))
    with pytest.raises(DescriptionError, match="ranks"):
        _templates.verified(TaskDescription(executable="x", ranks=0))


def test_content_tells_descriptions_apart() -> None:
    content = _templates.content_of
    assert content(TaskDescription(executable="a")) == content(TaskDescription(executable="a"))
    assert content(TaskDescription(executable="a")) != content(TaskDescription(executable="a", arguments=["1"]))
    assert content(TaskDescription(executable="a", environment={"A": "1", "B": "2"})) == content(
        TaskDescription(executable="a", environment={"B": "2", "A": "1"})
    )
    assert content(TaskDescription(executable="a\udc80"))


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("8h", 28800), ("1h 30m", 5400), ("90 min", 5400), ("2d", 172800), (5, 5), (0.5, 0.5), (None, 0)],
)
def test_durations(duration: str | float | None, seconds: float) -> None:
    assert _templates.seconds(duration) == seconds
    assert _templates.seconds(timedelta(minutes=1)) == 60


@pytest.mark.parametrize("duration", ["soon", "8", "8x", -1, "h8"])
def test_durations_that_cannot_be_read(duration: str | float) -> None:
    with pytest.raises(DescriptionError):
        _templates.seconds(duration)
