"""The script's ``__main__``, in a process that runs a function of the script.

Functions of a script travel by value, so a worker never imports the script. What libraries expect of ``__main__`` holds
all the same:

* the globals of such functions are those of a module, so that ``pickle`` finds by name what they use: a
  ``multiprocessing`` pool inside a call takes them. The module holds what was packed with the function, no more;
* each packed function has a module of its own: two that were packed when a global had different values see these;
* what calls do to these globals stays in the process, as in a process pool; so do the caches of ``functools``;
* a process that ``multiprocessing`` starts anew (``spawn``, ``forkserver``) gets the same names from the packed
  function, as it would from the script, and the script itself is not run again.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import Any

import cloudpickle

from pilot_hitl.wire.pickling import CACHED
from pilot_hitl.wire.raised import attempt, summary

MAIN = "__main__"
by_value: Any = sys.modules["cloudpickle.cloudpickle"]
_DIGEST_BYTES = 20
_MOST = 1000
"""Packed functions whose globals are kept; of more, those that were not loaded for longest begin anew."""


class ScriptModule(types.ModuleType):
    """``__main__`` as the functions packed together see it; it has no attributes but theirs."""

    __slots__ = ("__pilot_hitl__",)

    def __init__(self, script: Script) -> None:
        """Belong to ``script``."""
        super().__init__(MAIN)
        self.__pilot_hitl__ = script

    def __getattr__(self, name: str) -> Any:
        """Find classes of the script that arrived with arguments, and not with a function."""
        if name == "__file__":
            return self.__pilot_hitl__.where()
        found = None if name.startswith("__") else _classes().get(name)
        if found is None:
            raise AttributeError(f"module {MAIN!r} of this call has no attribute {name!r}")
        return found


def _asked(module: ScriptModule) -> str:
    """Say to ``multiprocessing`` which file makes a child that is started anew know ``__main__``.

    Functions read their own ``__file__`` from their globals, where it is the script's.
    """
    return module.__pilot_hitl__.where()


type.__setattr__(ScriptModule, "__file__", property(_asked))


class Script:
    """What was packed together, and its module."""

    def __init__(self, pickled: bytes = b"") -> None:
        """Start with an empty module; ``pickled`` is where its content comes from."""
        self.module = ScriptModule(self)
        self.space = vars(self.module)
        self.loaded = False
        self._pickled = pickled
        self._last: Any = None
        self._stub: tuple[frozenset[str], str] | None = None

    @property
    def used(self) -> bool:
        """Whether functions of the script live here."""
        return "__builtins__" in self.space

    def load(self) -> Any:
        """Return what was packed, made anew; its functions share the globals of those that were loaded before.

        Raises:
            Whatever unpickling raises.
        """
        found = _Unpickler(io.BytesIO(self._pickled), self).load()
        self.loaded = True
        _name(self.space, found, self._last)
        self._last = found
        return found

    def where(self) -> str:
        """Return the path of a file whose execution defines the same names; it is there as long as this process.

        Raises:
            AttributeError: there is nothing to define.
        """
        classes = _classes()
        if not self.used and not classes:
            raise AttributeError("__file__")
        known = frozenset(classes)
        if self._stub is None or self._stub[0] != known:
            more = attempt(partial(cloudpickle.dumps, classes))[0] or cloudpickle.dumps({})
            text = f"from {__name__} import fill\nfill(globals(), {tuple(sys.path)!r}, {self._pickled!r}, {more!r})\n"
            fd = os.memfd_create("pilot-hitl-main.py", os.MFD_CLOEXEC)
            view, done = text.encode(), 0
            while done < len(view):
                done += os.write(fd, view[done:])
            self._stub = (known, f"/proc/{os.getpid()}/fd/{fd}")
        return self._stub[1]


_scripts: dict[bytes, Script] = {}
BARE = Script().module
"""``__main__`` where nothing is known of the script."""


class Loading:
    """What :func:`load` met last in this process, and what to do when something was changed that shall stay."""

    module: ScriptModule = BARE
    kept: Callable[[], None] = staticmethod(lambda: None)


class _Unpickler(pickle.Unpickler):
    """Puts functions of ``__main__`` into a module's namespace instead of one that is made for each load."""

    def __init__(self, file: io.BytesIO, script: Script) -> None:
        super().__init__(file)
        self._space = script.space
        self._again = script.loaded

    def find_class(self, module: str, name: str) -> Any:
        if module == by_value.__name__ and name == "_make_function":
            return self._make_function
        if module == by_value.__name__ and name == "_function_setstate" and self._again:
            return self._set_state
        return super().find_class(module, name)

    def _make_function(
        self, code: types.CodeType, known: dict[str, Any], name: str, defaults: Any, closure: Any
    ) -> types.FunctionType:
        space = known
        if known.get("__name__") == MAIN:
            space = self._space
            for key, value in known.items():
                space.setdefault(key, value)
        space["__builtins__"] = __builtins__
        return types.FunctionType(code, space, name, defaults, closure)

    def _set_state(self, function: types.FunctionType, state: Any) -> None:
        space = function.__globals__
        if space is self._space:
            # What is there may have been changed by calls; that stays.
            more = state[1]["__globals__"]
            state[1]["__globals__"] = {key: value for key, value in more.items() if key not in space}
        by_value._function_setstate(function, state)


def load(pickled: bytes) -> Any:
    """Return what was packed; :attr:`Loading.module` is then the ``__main__`` that it expects.

    Raises:
        Whatever unpickling raises.
    """
    digest = blake2b(pickled, digest_size=_DIGEST_BYTES).digest()
    script = _scripts.pop(digest, None) or Script(pickled)
    found = script.load()
    if script.used:
        _scripts[digest] = script
        if len(_scripts) > _MOST:
            del _scripts[next(iter(_scripts))]
    Loading.module = script.module if script.used else BARE
    return found


def publish(module: ScriptModule) -> None:
    """Let ``__main__`` be this module."""
    sys.modules[MAIN] = module


def fill(space: dict[str, Any], path: tuple[str, ...], pickled: bytes, classes: bytes) -> None:
    """Define in ``space`` what was packed: what the file of :meth:`ScriptModule.where` does."""
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
    script = Script(pickled)
    own = {"__name__", "__file__", "__builtins__", "__spec__", "__loader__", "__doc__", "__package__", "__cached__"}
    _, error = attempt(script.load) if pickled else (None, None)
    known, other = attempt(partial(pickle.loads, classes))  # made by the process that started this one
    space.update(known or {})
    if error or other:
        # Without these names it may still work.
        text = summary(error or other or Exception())
        sys.stderr.write(f"__main__ of the function that started this process is not complete here: {text}\n")
    space.update({name: value for name, value in script.space.items() if name not in own})


def _classes() -> dict[str, type]:
    """Return the classes of the script that came by value, by name; of several of a name the last."""
    known: Any = getattr(by_value, "_DYNAMIC_CLASS_TRACKER_BY_ID", {})
    return {each.__qualname__: each for each in list(known.values()) if getattr(each, "__module__", "") == MAIN}


def _name(space: dict[str, Any], found: Any, before: Any) -> None:
    """Let what was packed be found by its name too."""
    found = getattr(found, "__func__", getattr(found, "func", found))
    before = getattr(before, "__func__", getattr(before, "func", before))
    known: Any = found if isinstance(found, types.FunctionType | type | CACHED) else type(found)
    name = getattr(known, "__qualname__", "")
    if getattr(known, "__module__", "") != MAIN or not name.isidentifier():
        return
    if name not in space or space[name] is before:
        space[name] = known
