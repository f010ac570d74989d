"""What a benchmark says: adjacent pairs of ours and the limit, their medians, targets, CPU by process."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from statistics import median

import msgspec

HIGH, LOW = "at least", "at most"


class Sizes(msgspec.Struct, frozen=True):
    """How large the benchmarks are. 0: each benchmark's own default.

    Attributes:
        tasks: of one measurement.
        pairs: measurements of ours and of the limit, one right after the other.
        cores: of the pilot, and processes of the limit.
        seeds: repetitions of what is drawn by chance.
    """

    tasks: int = 0
    pairs: int = 7
    cores: int = 2
    seeds: int = 0

    def tasks_or(self, default: int) -> int:
        """Return how many tasks, where a benchmark's own default is ``default``."""
        return self.tasks or default


class Target(msgspec.Struct, frozen=True):
    """A promise and what came out. ``need`` is promised, ``goal`` is hoped for; ``sense`` says which side is good."""

    what: str
    unit: str
    sense: str
    need: float
    goal: float
    got: float

    @property
    def met(self) -> bool:
        """Whether the promise holds in this run."""
        return self.got >= self.need if self.sense == HIGH else self.got <= self.need


class Report(msgspec.Struct):
    """One comparison.

    Attributes:
        name: of the benchmark.
        unit: of ``pairs``, ``ours`` and ``limit``.
        against: what the limit is.
        sizes: what was run.
        pairs: ``(ours, limit)``, measured one right after the other.
        targets: promises about it.
        cpu_us: user and system time by kind of process, in microseconds a task.
        more: other figures.
        facts: what else belongs to them, as plain data.
    """

    name: str
    unit: str
    against: str
    sizes: dict[str, int]
    pairs: list[tuple[float, float]]
    targets: list[Target] = []
    cpu_us: dict[str, float] = {}
    more: dict[str, float] = {}
    facts: dict[str, object] = {}

    @property
    def ours(self) -> float:
        """Median of ours."""
        return median(ours for ours, _ in self.pairs)

    @property
    def limit(self) -> float:
        """Median of the limit."""
        return median(limit for _, limit in self.pairs)

    @property
    def ratio(self) -> float:
        """Median of ours over the limit measured beside it."""
        return median(ours / limit for ours, limit in self.pairs)

    def to_json(self) -> dict[str, object]:
        """Return it as plain data."""
        return {
            "name": self.name,
            "unit": self.unit,
            "against": self.against,
            "sizes": dict(self.sizes),
            "ours": self.ours,
            "limit": self.limit,
            "ratio": self.ratio,
            "pairs": [list(pair) for pair in self.pairs],
            "targets": [{**msgspec.to_builtins(target), "met": target.met} for target in self.targets],
            "cpu_us_per_task": {kind: round(used, 2) for kind, used in self.cpu_us.items()},
            **self.more,
            **self.facts,
        }


def measure_pairs(count: int, ours: Callable[[], float], limit: Callable[[], float]) -> list[tuple[float, float]]:
    """Measure both so many times, alternately. The order alternates too, so that a drift favours neither."""
    pairs = []
    for number in range(max(1, count)):
        if number % 2:
            bound = limit()
            pairs.append((ours(), bound))
        else:
            mine = ours()
            pairs.append((mine, limit()))
    return pairs


def machine() -> dict[str, object]:
    """Return facts of this machine without which a figure means nothing, the load before the run among them."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processor": next(_processor(), platform.machine()),
        "load_before": [round(value, 2) for value in os.getloadavg()],
    }


def _processor() -> Iterator[str]:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # no Path for a pseudo file
        for line in file:
            if line.startswith("model name"):
                yield line.partition(":")[2].strip()
