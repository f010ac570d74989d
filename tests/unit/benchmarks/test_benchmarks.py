"""Each benchmark at tiny size: what it promises to print is there and hangs together. No time is asserted."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pilot_hitl.cli.bench import NAMES, app
from pilot_hitl_benchmarks import calls, core, latency, noop, processes, services, soak, spawn, startup
from pilot_hitl_benchmarks.reports import HIGH, LOW, Report, Sizes, Target, measure_pairs

SMALL = Sizes(tasks=6, pairs=1, cores=1)
RUNS: dict[str, Callable[[Sizes], list[Report]]] = {
    "spawn": spawn.run,
    "calls": calls.run,
    "latency": latency.run,
    "startup": lambda sizes: startup.run(sizes, idle=0.2),
    "noop": noop.run,
    "service-noop": services.run,
}


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    left = [each.name for each in tmp_path.iterdir() if not each.name.startswith("pymp-")]  # The limit's, until we end.
    assert left == [], "everything is removed"
    assert processes.of_home(tmp_path) == {}, "and every process ended"


# These take longest, and their parts run in others.
SLOW = {"service-noop", "startup"}


@pytest.mark.parametrize("name", [pytest.param(each, marks=[pytest.mark.long] * (each in SLOW)) for each in RUNS])
def test_a_benchmark_reports_itself_beside_its_limit(name: str) -> None:
    reports = RUNS[name](SMALL)
    assert reports[0].name == name
    for report in reports:
        data: dict[str, Any] = json.loads(json.dumps(report.to_json()))
        assert data["ours"] > 0
        assert data["limit"] > 0
        assert data["against"]
        assert data["pairs"] == [[data["ours"], data["limit"]]]
        assert data["ratio"] == pytest.approx(data["ours"] / data["limit"])
        assert data["sizes"]["pairs"] == 1
        assert data["targets"]
        for target in data["targets"]:
            better = target["goal"] >= target["need"] if target["sense"] == HIGH else target["goal"] <= target["need"]
            assert better, "a goal asks for more than the promise"
            assert target["met"] is (
                target["got"] >= target["need"] if target["sense"] == HIGH else target["got"] <= target["need"]
            )
        assert all(used >= 0 for used in data["cpu_us_per_task"].values())


def test_latency_has_a_tail() -> None:
    (report,) = latency.run(SMALL)
    assert report.more["p99_ms"] >= report.ours


def test_idle_memory_is_the_sum_of_the_kinds() -> None:
    (report,) = startup.run(SMALL, idle=0.2)
    parts = [value for key, value in report.more.items() if key.startswith("idle_pss_mb_")]
    assert report.more["idle_pss_mb"] == pytest.approx(sum(parts), abs=0.5)
    assert report.more["idle_pss_mb_hub"] > 1
    assert report.more["idle_pss_mb_agent"] > 1
    assert report.more["without_interpreter_s"] <= report.ours


def test_noop_knows_the_peak_of_the_client() -> None:
    (report,) = noop.run(SMALL)
    assert report.more["client_peak_mb"] > 1
    assert report.sizes["nodes"] == 64


def test_cpu_time_is_counted_for_every_process_that_works() -> None:
    (report,) = noop.run(Sizes(tasks=2000, pairs=1, cores=1))
    assert report.cpu_us["client"] > 0
    assert report.cpu_us["hub"] > 0
    assert report.cpu_us["agent"] > 0


def test_core_alone() -> None:
    rate = core.rate(2, queued=1000, completions=100)
    assert int(rate["completions"]) >= 100
    assert int(rate["per_second"]) > 0


def test_pairs_alternate() -> None:
    order: list[str] = []

    def ours() -> float:
        order.append("ours")
        return 1.0

    def limit() -> float:
        order.append("limit")
        return 2.0

    assert measure_pairs(3, ours, limit) == [(1.0, 2.0)] * 3
    assert order == ["ours", "limit", "limit", "ours", "ours", "limit"]


def test_medians_are_of_pairs() -> None:
    report = Report("x", "y", "z", {}, [(1.0, 2.0), (3.0, 3.0), (10.0, 100.0)])
    assert (report.ours, report.limit, report.ratio) == (3.0, 3.0, 0.5)
    assert Target("", "", LOW, 1.0, 0.5, 0.9).met
    assert not Target("", "", HIGH, 1.0, 2.0, 0.9).met


def test_the_command_prints_json_and_tables() -> None:
    runner = CliRunner()
    sizes = ["--tasks", "5", "--pairs", "1", "--cores", "1"]
    done = runner.invoke(app, ["latency", *sizes, "--json"])
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    assert set(data["benchmarks"]) == {"latency"}
    assert {"cpus", "python", "load_before"} <= set(data["machine"])
    shown = runner.invoke(app, ["latency", *sizes])
    assert "latency" in shown.stdout
    assert "at most 1.2" in shown.stdout


@pytest.mark.long
def test_a_long_session_is_told_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "TIMES", 1)
    shown = CliRunner().invoke(app, ["soak", "--tasks", "150", "--cores", "1"])
    assert shown.exit_code == 0
    assert "memory of the client, last part to first" in shown.stdout
    for look in (*soak.LOOKS, "open", "run again"):
        assert look in shown.stdout


def test_an_unknown_benchmark_is_refused() -> None:
    done = CliRunner().invoke(app, ["speed"])
    assert done.exit_code == 2
    assert NAMES[0] in done.output
