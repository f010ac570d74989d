"""Packed functions: a pickle that carries the import path of the script it comes from.

A function of an importable module travels by reference, so whoever loads it must find that module where the script
found it. The packed form of a function is therefore a packed value (:mod:`pilot_hitl.wire.values`) whose loading first
puts the script's own folders on ``sys.path`` and sees to the versions of the script's modules; a worker needs to know
nothing about it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from pilot_hitl.wire.classes import State
from pilot_hitl.wire.modulefinder import install
from pilot_hitl.wire.scriptmodule import load


class ScriptFunction:
    """Stands for a function when it is pickled; what is loaded is the function itself.

    Attributes:
        path: folders that the script imports from, in order; they come first on the loader's ``sys.path`` too.
        pickled: the pickled function.
        modules: packed manifest of the script's modules.
        turns: see :class:`pilot_hitl.wire.classes.State`.
        needs: modules that the script has imported, and that put something into what the function uses.
        life: tells the runs of a script from each other, where that makes it another function for workers.
    """

    def __init__(
        self,
        path: tuple[str, ...],
        pickled: bytes,
        modules: bytes,
        turns: bool = False,
        needs: tuple[str, ...] = (),
        life: bytes = b"",
    ) -> None:
        """Keep all of it."""
        self.path = path
        self.pickled = pickled
        self.modules = modules
        self.turns = turns
        self.needs = needs
        self.life = life

    def __reduce__(self) -> tuple[Any, ...]:
        """Load as the function."""
        return restore, (self.path, self.pickled, self.modules, self.turns, self.needs, self.life)


def restore(
    path: tuple[str, ...], pickled: bytes, modules: bytes, turns: bool, needs: tuple[str, ...], _life: bytes
) -> Any:
    """Return the function, importable from ``path``, with these versions of modules.

    Raises:
        OtherVersion: this process has others.
        Whatever unpickling raises.
    """
    for folder in reversed(path):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    install(modules)
    State.turns |= turns
    found = load(pickled)  # part of a value that this session's own owner packed
    for name in needs:
        # After what the function names: what that imports comes in the order that its author knows.
        importlib.import_module(name)
    return found
