"""Short ways of saying what happens and what was told."""

from __future__ import annotations

from typing import Any

from pilot_hitl.model.resources import Shape, runtime_bucket
from pilot_hitl_agent.core import Bulk, Start
from tests.unit.agent.core.honest import Cluster


def bulk(first: int, count: int = 1, *, cores: int = 1, ranks: int = 1, **fields: Any) -> Bulk:
    shape = fields.pop("shape", None) or Shape(cores=cores, ranks=ranks)
    return Bulk(first, count, 1, 1, shape, **fields)


def timed(first: int, seconds: float) -> Bulk:
    return bulk(first, shape=Shape(runtime_bucket=runtime_bucket(seconds)), expected_runtime=seconds)


def told(made: Cluster, kind: type) -> list[Any]:
    return [one for one in made.log if isinstance(one, kind)]


def slots_of(made: Cluster, task: int) -> list[Any]:
    return [slot for start in told(made, Start) for one in start.placed if one.task == task for slot in one.slots]
