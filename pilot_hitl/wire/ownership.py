"""Which modules belong to the script itself, so that their code counts."""

from __future__ import annotations

import sys
import sysconfig
import types
from pathlib import Path

_OURS = frozenset({"pilot_hitl", "pilot_hitl_agent", "pilot_hitl_services"})
MAINS = frozenset({"__main__", "__mp_main__"})
"""Names of the script itself, which nobody else can import."""


class Script:
    """Tells the script's modules from all others.

    The script's are all that are neither the interpreter's nor of an installed package: ``__main__``, what lies beside
    it, and what the script finds through ``PYTHONPATH`` or an editable install. To count too much costs a run, to count
    too little would reuse what is stale.
    """

    def __init__(self) -> None:
        """Look at the interpreter's folders now."""
        self._installed = tuple(
            sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")
        )
        self._known: dict[str, tuple[object, bool]] = {}

    def owns(self, module: str) -> bool:
        """Return whether the code of the module of this name counts; False for one that is not loaded."""
        if module in MAINS or not module:
            return True
        loaded = sys.modules.get(module)
        if loaded is None:
            return False
        known = self._known.get(module)
        if known is None or known[0] is not loaded:
            known = self._known[module] = (loaded, self._look(module, loaded))
        return known[1]

    def owns_file(self, file: str) -> bool:
        """Return whether a file is the script's, and not the interpreter's or an installed package's."""
        return not file.startswith(self._installed) and not {"site-packages", "dist-packages"} & set(Path(file).parts)

    def _look(self, name: str, module: types.ModuleType) -> bool:
        if name.partition(".")[0] in _OURS or name in sys.builtin_module_names:
            return False
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            return self.owns_file(file)
        folders = getattr(module, "__path__", None)
        if folders is not None:
            # Without a file of its own: a namespace.
            return any(self.owns_file(f"{folder}/") for folder in folders)
        if getattr(module, "__spec__", None) is not None:
            return False
        # Made by code: it is whose that code is.
        parent = name.rpartition(".")[0]
        return self.owns(parent) if parent in sys.modules else name.partition(".")[0] not in sys.stdlib_module_names
