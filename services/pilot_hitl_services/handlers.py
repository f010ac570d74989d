"""The user's side of a replica: load the handler, call it, and say what went wrong in it."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.raised import attempt, traceback_of
from pilot_hitl.wire.scriptmodule import BARE, Loading, publish
from pilot_hitl.wire.services import Buffer, ReplicaConfig, Status, encode_said, pack, unpack
from pilot_hitl.wire.values import loads

DETAIL_LIMIT = 20_000


class Packed(NamedTuple):
    """How one request ended, ready to travel."""

    status: Status
    body: bytes
    buffers: Sequence[Buffer] = ()


class Work(NamedTuple):
    """What a request asks for, as it arrived."""

    method: str
    body: bytes
    buffers: Sequence[Any]


class WrongReply(Exception):
    """The handler returned something else than a list with one result an item."""


class Handler:
    """A handler that is set up."""

    def __init__(self, target: Any, name: str, *, batched: bool, idempotent: bool) -> None:
        """Wrap the user's object."""
        self._target = target
        self._name = name
        self._batched = batched
        self._idempotent = idempotent

    def serve(self, works: list[Work]) -> list[Packed]:
        """Answer a batch; one answer a request, in order. Never raises."""
        items: list[Any] = []
        answers: list[Packed | None] = []
        for work in works:
            item, error = attempt(partial(unpack, work.body, work.buffers), BaseException)
            answers.append(None if error is None else failure(error))
            if error is None:
                items.append(item)
        results = iter(self._run(works[0].method, items))
        return [answer if answer is not None else next(results) for answer in answers]

    def _run(self, method: str, items: list[Any]) -> list[Packed]:
        if not items:
            return []
        packed, error = attempt(partial(self._call, method, items), BaseException)
        if packed is not None:
            return packed
        assert error is not None  # one of the two is there
        if len(items) > 1 and self._idempotent and not isinstance(error, WrongReply):
            # One bad item must not spoil its neighbours: each gets its own end.
            return [each for item in items for each in self._run(method, [item])]
        return [failure(error)] * len(items)

    def _call(self, method: str, items: list[Any]) -> list[Packed]:
        if method:
            return [_packed(getattr(self._target, method)(items[0]))]
        if not self._batched:
            return [_packed(self._target(items[0]))]
        return self._packed_batch(self._target(items), len(items))

    def _packed_batch(self, results: Any, count: int) -> list[Packed]:
        if not isinstance(results, list | tuple):
            kind = type(results).__name__
            raise WrongReply(
                f"{self._name} was given a list of {count} and returned {kind}: return a list with one result an item, "
                "such as list(results) for an array"
            )
        if len(results) != count:
            raise WrongReply(
                f"{self._name} was given {count} items and returned {len(results)} results: return one result an item"
            )
        return [_packed(result) for result in results]

    def has(self, method: str) -> bool:
        """Return whether requests may call this method."""
        return not method.startswith("_") and callable(getattr(self._target, method, None))


def _packed(value: object) -> Packed:
    body, buffers = pack(value)
    return Packed(Status.OK, body, buffers)


def failure(error: BaseException) -> Packed:
    """Return an exception of the user's code ready to travel: itself where it pickles, or what it says."""
    if isinstance(error, WrongReply):
        return Packed(Status.FAILED, encode_said("BadReply", str(error)))
    detail = trace_of(error)
    with contextlib.suppress(TypeError, AttributeError):
        error.add_note(f"It was raised in the handler of the service:\n{detail}")
    body, _why = attempt(partial(pickle.dumps, error, 5), BaseException)
    if body is not None and attempt(partial(pickle.loads, body), BaseException)[1] is None:
        return Packed(Status.RAISED, body)
    return Packed(Status.FAILED, encode_said("HandlerFailed", f"the handler raised {describe(error)}", detail))


def describe(error: BaseException) -> str:
    """Return an exception in one line, whatever its ``__str__`` does."""
    return "".join(traceback.format_exception_only(error)).strip()[:2000]


def trace_of(error: BaseException) -> str:
    """Return the traceback without our own frames."""
    return traceback_of(error, DETAIL_LIMIT)


def load(config: ReplicaConfig) -> Handler:
    """Import or unpickle the handler, make it, and set it up.

    Raises:
        Whatever the user's code raises.
    """
    for folder in reversed(config.path):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    blobs = BlobStore(Path(config.home) / "sessions" / config.session / "blobs")
    Loading.module = BARE
    target: Any = loads(config.code, blobs) if config.code else _named(config.handler)
    if Loading.module is not BARE:
        publish(Loading.module)
    kwargs: dict[str, Any] = pickle.loads(config.kwargs) if config.kwargs else {}
    if isinstance(target, type):
        target = target(**kwargs)
        setup = getattr(target, "setup", None)
        if setup is not None:
            setup()
    elif kwargs:
        raise TypeError(f"kwargs are for classes, and {config.handler} is none")
    if not callable(target):
        raise TypeError(f"{config.handler} cannot be called: give its class a __call__(self, batch)")
    return Handler(target, config.handler, batched=config.max_batch > 1, idempotent=config.idempotent)


def _named(handler: str) -> Any:
    """Return what ``module:Class`` names."""
    module, _, name = handler.partition(":")
    target: Any = importlib.import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    return target
