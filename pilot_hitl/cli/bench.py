"""``pilot-hitl bench``: what the runtime costs on this machine, each figure beside a limit from the same run."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from pilot_hitl.cli._home import JsonOption
from pilot_hitl.cli._show import note, put, put_json, put_rows

app = typer.Typer(add_completion=False)
NAMES = ("spawn", "calls", "latency", "startup", "noop", "core", "hitl", "answers", "services")
ELSEWHERE = ("slurm", "soak")
"""Those that need more than this machine or much time, and run only when they are named."""


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
            help=f"Any of: {', '.join(NAMES)}; all when none is named. Only when named: {', '.join(ELSEWHERE)}.",
            callback=_known,
        ),
    ] = None,
    *,
    tasks: Annotated[int, typer.Option(min=0, help="Tasks of a measurement; 0: each benchmark's own.")] = 0,
    pairs: Annotated[int, typer.Option(min=1, help="Measurements of ours and the limit, one after the other.")] = 7,
    cores: Annotated[int, typer.Option(min=1, help="Cores of the pilot, and processes of the limit.")] = 2,
    seeds: Annotated[int, typer.Option(min=0, help="Repetitions of hitl; 0: its own 30.")] = 0,
    keep: Annotated[str, typer.Option(help="Folder for the home of soak, which then stays.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Measure, in a home of its own that is removed afterwards."""
    from pilot_hitl_benchmarks.reports import Sizes, machine

    sizes = Sizes(tasks, pairs, cores, seeds)
    facts: dict[str, Any] = dict(machine())
    found: dict[str, Any] = {}
    for name in names or NAMES:
        note(f"bench: {name} …")
        entries = [_soak(sizes, keep)] if name == "soak" else _run(name, sizes)
        for entry in entries:
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


def _soak(sizes: Any, keep: str) -> dict[str, Any]:
    from pilot_hitl_benchmarks import soak

    return soak.run(soak.sized(sizes, keep))


def _show_soak(entry: dict[str, Any]) -> None:
    """Write the parts and the looks of a long session as tables."""
    parts = entry["parts"]
    put()
    put_rows(
        [
            {"part": at + 1, **_figures(part["rates"], "/s"), **_figures(part["memory_mb"], " MB")}
            for at, part in enumerate(parts)
        ],
        (),
        "",
    )
    for when in ("looks_while_open", "looks_when_closed"):
        put()
        put_rows([{"look": name, **_figures(took, "")} for name, took in entry[when].items()], (), "")


def _figures(values: dict[str, float], unit: str) -> dict[str, str]:
    return {f"{name}{unit}": _figure(value) for name, value in values.items()}


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
        if "parts" in entry:
            _show_soak(entry)
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
