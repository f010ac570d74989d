"""mosec's worker: a class of a module of its own, because mosec's processes find it by name."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
from typing import Any

VARIABLE = "PILOT_HITL_BENCH_MOSEC"
"""Model and largest batch, separated by a blank."""


def _base() -> Any:
    return importlib.import_module("mosec").Worker if importlib.util.find_spec("mosec") else object


def _prepare(self: Any) -> None:
    from pilot_hitl_benchmarks.peers import handler

    _base().__init__(self)
    model, batch = os.environ[VARIABLE].split()
    self.run, self.batched = handler(model), int(batch) > 1


def _forward(self: Any, data: Any) -> Any:
    return self.run(data) if self.batched else self.run([data])[0]


Worker: Any = type(
    "Worker",
    (_base(),),
    {
        "__module__": __name__,
        "__init__": _prepare,
        "forward": _forward,
        "deserialize": lambda _self, data: pickle.loads(data),
        "serialize": lambda _self, data: pickle.dumps(data, 5),
    },
)
