"""``pilot-hitl bench``: what the runtime costs on this machine, each figure beside a limit from the same run."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from pilot_hitl.cli._home import JsonOption
from pilot_hitl.cli._show import note, put, put_json, put_rows

app = typer.Typer(add_completion=False)
NAMES = ("spawn", "calls", "latency", "startup", "noop", "core", "hitl", "answers", "services")
ELSEWHERE = ("slurm",)
"""Those that need more than this machine, and run only when they are named."""


def _known(names: list[str] | None) -> list[str]:
    for name in names or []:
        if name not in NAMES + ELSEWHERE:
            raise typer.BadParameter(f"{name!r}: there are {', '.join(NAMES + ELSEWHERE)}")
    return list(dict.fromkeys(names or NAMES))


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"Any of: {', '.join(NAMES)}; all when none is named. On a cluster: {', '.join(ELSEWHERE)}.",
            callback=_known,
        ),
    ] = None,
    *,
    tasks: Annotated[int, typer.Option(min=0, help="Tasks of a measurement; 0: each benchmark's own.")] = 0,
    pairs: Annotated[int, typer.Option(min=1, help="Measurements of ours and the limit, one after the other.")] = 7,
    cores: Annotated[int, typer.Option(min=1, help="Cores of the pilot, and processes of the limit.")] = 2,
    seeds: Annotated[int, typer.Option(min=0, help="Repetitions of hitl; 0: its own 30.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure, in a home of its own that is removed afterwards."""
    from pilot_hitl_benchmarks.reports import Sizes, machine

    sizes = Sizes(tasks, pairs, cores, seeds)
    facts: dict[str, Any] = dict(machine())
    found: dict[str, Any] = {}
    for name in names or NAMES:
        note(f"bench: {name} …")
        for entry in _run(name, sizes):
            found[str(entry["name"])] = entry
    if as_json:
        put_json({"machine": facts, "benchmarks": found})
        return
    _show(facts, list(found.values()))


def _run(name: str, sizes: Any) -> list[dict[str, Any]]:
    module = importlib.import_module(f"pilot_hitl_benchmarks.{name}")
    if name == "core":
        return [module.run(completions=sizes.tasks_or(100_000), rounds=min(sizes.pairs, 3))]
    return [report.to_json() for report in module.run(sizes)]


def _show(facts: dict[str, Any], found: list[dict[str, Any]]) -> None:
    load = ", ".join(f"{value:g}" for value in facts["load_before"])
    put(f"{facts['processor']}, {facts['cpus']} CPUs, Python {facts['python']}, load before {load}")
    put_rows(
        [_row(entry) for entry in found if "pairs" in entry],
        ("benchmark", "unit", "ours", "limit", "ratio", "tasks", "pairs"),
        "",
    )
    put()
    put_rows([row for entry in found for row in _targets(entry)], ("what", "got", "need", "goal", "unit", "met"), "")
    for entry in found:
        if "peers" in entry:
            peers = ", ".join(f"{peer} {_figure(value)}" for peer, value in entry["peers"].items())
            put(f"{entry['name']}: {peers or 'no peer is installed'} {entry['unit']}; {entry['model']}")
            for line in entry["absent"]:
                put(f"{entry['name']}: {line}")
        used = entry.get("cpu_us_per_task")
        if used:
            parts = ", ".join(f"{kind} {value:.1f}" for kind, value in used.items() if value >= 0.05)
            put(f"{entry['name']}: CPU microseconds a task: {parts}")
        if "rates" in entry:
            rates = ", ".join(f"{one['nodes']} nodes {one['per_second']:,}/s" for one in entry["rates"])
            put(f"{entry['name']}: {rates}; 10,000 nodes to 10: {entry['ratio_10000_to_10']:.2f}")


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": entry["name"],
        "unit": entry["unit"],
        "ours": _figure(entry["ours"]),
        "limit": _figure(entry["limit"]),
        "ratio": f"{entry['ratio']:.3f}",
        "tasks": entry["sizes"]["tasks"],
        "pairs": len(entry["pairs"]),
    }


def _targets(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "what": f"{entry['name']}: {target['what']}",
            "got": _figure(target["got"]),
            "need": f"{target['sense']} {_figure(target['need'])}",
            "goal": _figure(target["goal"]),
            "unit": target["unit"],
            "met": "yes" if target["met"] else "NO",
        }
        for target in entry.get("targets", ())
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
