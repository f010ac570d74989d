"""What can answer requests of a service: which callables are taken, and which are refused by name.

Looked at when a service is described, and again in its replica, which alone can see a handler that is named by text.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

REMEDY = "a request has one answer: return a list, or one item a request"


def is_async(handler: object) -> bool:
    """Return whether calls of a handler give something to await: an ``async def``, or what stands in for one."""
    return inspect.iscoroutinefunction(_code_of(handler))


def streams(function: object) -> str:
    """Return what kind of generator calls of a function give, empty when they give none."""
    code = _code_of(function)
    if inspect.isasyncgenfunction(code):
        return "an async generator"
    return "a generator" if inspect.isgeneratorfunction(code) else ""


def check_handler(handler: Callable[..., Any], label: str) -> None:
    """Check that a class, a function or another callable can answer requests; ``label`` is its name in messages.

    Raises:
        ValueError: it cannot; the message names it and the remedy.
    """
    kind = streams(handler)
    if not inspect.isclass(handler):
        if kind:
            raise ValueError(f"handler: {label} is {kind}: {REMEDY}")
        return
    if not any("__call__" in vars(each) for each in handler.__mro__):
        raise ValueError(f"handler: {label} has no __call__: give the class a __call__(self, item)")
    if kind:
        raise ValueError(f"handler: {label}.__call__ is {kind}: {REMEDY}")
    if kind := streams(getattr(handler, "setup", None)):
        raise ValueError(f"handler: {label}.setup is {kind}, so that nothing of it would run: leave the yield out")


def _code_of(handler: object) -> object:
    """Return the function that runs when a handler is called; of a class, when its objects are."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if inspect.isroutine(handler) or not callable(handler):
        return handler
    kind = handler if inspect.isclass(handler) else type(handler)
    found = next((vars(each)["__call__"] for each in kind.__mro__ if "__call__" in vars(each)), None)
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    return _code_of(found) if isinstance(found, functools.partial | functools.partialmethod) else found
