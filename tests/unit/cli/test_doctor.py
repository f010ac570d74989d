from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot_hitl.cli import doctor
from tests.unit.cli.conftest import Cli


def test_this_machine_is_well(cli: Cli) -> None:
    said = cli("doctor", "--json")
    found = json.loads(said.stdout)
    assert (said.exit_code, found["ok"]) == (0, True)
    checks = {check["name"]: check for check in found["checks"]}
    assert {"python", "home", "home file system", "socket path", "cores", "slurm", "mpi launcher"} <= set(checks)
    assert "package pyzmq" in checks
    assert "package torch" not in checks
    assert "python" in cli("doctor").stdout


def test_an_open_home_is_broken(cli: Cli, home: Path) -> None:
    home.chmod(0o755)
    said = cli("doctor", "--json")
    assert said.exit_code == 1
    (check,) = [check for check in json.loads(said.stdout)["checks"] if check["name"] == "home"]
    assert check["state"] == "broken"
    assert "chmod 700" in check["remedy"]


def test_what_goes_wrong_in_a_part_is_a_finding(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlucky() -> Iterator[doctor.Check]:
        yield doctor.Check("first", doctor.OK, "")
        raise RuntimeError("no /proc")

    monkeypatch.setattr(doctor, "CHECKS", (unlucky,))
    said = cli("doctor", "--json")
    assert said.exit_code == 1
    assert [check["found"] for check in json.loads(said.stdout)["checks"]] == ["", "RuntimeError: no /proc"]


def test_a_warning_is_no_failure(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([doctor.Check("x", doctor.WARN, "little")]),))
    assert cli("doctor").exit_code == 0
