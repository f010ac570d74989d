"""What tools/test-bounds installs at each end."""

from __future__ import annotations

import tomllib

import pytest

from tools.bounds import ROOT, BoundError, lowest, others


def test_every_run_time_dependency_has_a_lower_bound_to_test() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert len(lowest(dependencies)) == len(dependencies) > 5


def test_a_lower_bound_is_installed_as_it_is_written() -> None:
    assert lowest(["a>=1", "b-c >= 2.5, <3", "d[x,y]>=0.1.0"]) == ["a==1", "b-c==2.5", "d==0.1.0"]
    for without in ("a", "a<2", "a>1", "a==1"):
        with pytest.raises(BoundError, match="no lower bound"):
            lowest([without])


def test_tools_are_constrained_but_for_what_is_there() -> None:
    constraints = ["# said", "", "typing_extensions==4", "A.B==1", "pytest==9"]
    assert others(constraints, ["typing-extensions==3", "a-b==2"]) == ["pytest==9"]


def test_the_constraints_name_versions_and_nothing_else() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 and not set(" /@:") & set(line) for line in lines)
    assert {"mypy", "pytest", "ruff", "msgspec"} <= {line.partition("==")[0] for line in lines}
