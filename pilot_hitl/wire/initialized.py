"""Functions of an executor with an initializer, which runs once in each worker before the first of them."""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from functools import partial
from typing import Any

from pilot_hitl.wire.current import EXECUTOR_VARIABLE
from pilot_hitl.wire.raised import attempt, summary
from pilot_hitl.wire.scriptmodule import Loading


class InitializerFailed(BrokenExecutor):
    """The initializer of an executor raised in a worker, so that the executor is of no use."""


class _Ran:
    """What the initializer of this process's executor did."""

    executor = ""
    failure = ""
    changed: dict[str, Any]
    """Globals of the script that it bound; functions that were packed apart from it get them too."""
    spaces: list[dict[str, Any]]


class Initialized:
    """A function that is called after the initializer has run."""

    def __init__(self, func: Callable[..., Any], initializer: Callable[..., Any], initargs: tuple[Any, ...]) -> None:
        """Keep all three."""
        self.func = func
        self.initializer = initializer
        self.initargs = initargs
        # Whoever looks for parameters looks at the function.
        self.__wrapped__ = func

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function.

        Raises:
            InitializerFailed: the initializer raised, now or before.
            Whatever the function raises.
        """
        self._initialize()
        return self.func(*args, **kwargs)

    def _initialize(self) -> None:
        executor = os.environ.get(EXECUTOR_VARIABLE, "")
        space = _globals_of(self.initializer)
        if _Ran.executor != executor:
            before = dict(space)
            _Ran.executor, _Ran.failure = executor, ""
            _, error = attempt(partial(self.initializer, *self.initargs), BaseException)
            if error is not None:
                _Ran.failure = summary(error)
                raise InitializerFailed(f"the initializer of the executor failed: {_Ran.failure}") from error
            _Ran.changed = {name: value for name, value in space.items() if before.get(name, _NONE) is not value}
            _Ran.spaces = [space]
            Loading.kept()
        elif _Ran.failure:
            raise InitializerFailed(f"the initializer of the executor failed: {_Ran.failure}")
        elif not any(space is each for each in _Ran.spaces):
            space.update(_Ran.changed)
            _Ran.spaces.append(space)


_NONE = object()


def _globals_of(function: Any) -> dict[str, Any]:
    """Return the globals of what is called in the end; some that are nobody's when it is no function."""
    for name in ("func", "__func__", "__wrapped__"):
        function = getattr(function, name, function)
    if not isinstance(function, types.FunctionType):
        function = vars(type(function)).get("__call__")
    return function.__globals__ if isinstance(function, types.FunctionType) else {}
