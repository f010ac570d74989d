"""The user's side of a replica: load the handler, call it, and say what went wrong in it."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import AsyncGeneratorType, GeneratorType
from typing import Any, NamedTuple

from pilot_hitl.model.handlers import REMEDY, check_handler, is_async, streams
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.modulefinder import use
from pilot_hitl.wire.raised import attempt, attempt_await, traceback_of
from pilot_hitl.wire.replicas import KeptBroadcast
from pilot_hitl.wire.scriptmodule import BARE, Loading, publish
from pilot_hitl.wire.services import (
    Buffer,
    ReplicaConfig,
    Status,
    decode_said,
    encode_said,
    pack,
    unpack,
)
from pilot_hitl.wire.values import loads
from pilot_hitl_services.looping import Loops

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
    """The handler returned something that is not the answer to what it was given."""


class Overdue(Exception):
    """An awaited call took longer than ``request_timeout``, and was ended."""


class Stopped(Exception):
    """Carries a StopIteration."""

    def __init__(self, error: BaseException) -> None:
        """Keep it."""
        super().__init__(error)
        self.error = error


class Unusable(Exception):
    """What was described as a handler is none."""


class Handler:
    """A handler that is set up.

    Attributes:
        concurrent: whether its calls are awaited, several at a time, on an event loop that runs (:mod:`.looping`).
            Otherwise one call follows the other, and what one gives to be awaited is awaited at once.
    """

    def __init__(
        self,
        target: Any,
        name: str,
        *,
        batched: bool,
        idempotent: bool,
        loops: Loops | None = None,
        bound: float = 0.0,
    ) -> None:
        """Wrap the user's object; ``bound`` are the seconds that an awaited call may take, 0 for any."""
        self._target = target
        self._name = name
        self._loops = loops or Loops()
        self._batched = batched
        self._idempotent = idempotent
        self._bound = bound
        self.concurrent = is_async(target)

    def serve(self, works: list[Work]) -> list[Packed]:
        """Answer a batch; one answer a request, in order. Never raises."""
        # Outside of a running loop nothing in there suspends, so no loop is needed for it.
        served = self.serve_on_loop(works)
        try:
            served.send(None)
        except StopIteration as ended:
            answers: list[Packed] = ended.value
            return answers
        raise AssertionError("a call of the handler was suspended outside of its loop")

    async def serve_on_loop(self, works: list[Work]) -> list[Packed]:
        """Answer a batch as :meth:`serve` does, where a loop runs and others may go on meanwhile.

        Raises:
            Overdue: a batch of several took too long; each of them should be tried alone.
        """
        items: list[Any] = []
        answers: list[Packed | None] = []
        for work in works:
            item, error = attempt(partial(unpack, work.body, work.buffers), BaseException)
            answers.append(None if error is None else failure(error))
            if error is None:
                items.append(item)
        results = iter(await self._run(works[0].method, items))
        return [answer if answer is not None else next(results) for answer in answers]

    async def _run(self, method: str, items: list[Any]) -> list[Packed]:
        if not items:
            return []
        packed, error = await attempt_await(self._call(method, items), BaseException)
        if packed is not None:
            return packed
        assert error is not None  # one of the two is there
        if isinstance(error, Stopped):
            error = error.error
        if len(items) > 1 and self._idempotent and isinstance(error, Overdue):
            raise error
        if len(items) > 1 and self._idempotent and not isinstance(error, WrongReply):
            # One bad item must not spoil its neighbours: each gets its own end.
            return [each for item in items for each in await self._run(method, [item])]
        return [failure(error)] * len(items)

    async def _call(self, method: str, items: list[Any]) -> list[Packed]:
        single = bool(method) or not self._batched
        function = getattr(self._target, method) if method else self._target
        given: Any
        given, error = attempt(partial(function, items[0] if single else items), BaseException)
        if error is not None:
            # As itself it would not come out of a coroutine.
            raise Stopped(error) if isinstance(error, StopIteration) else error
        if hasattr(type(given), "__await__"):
            given = await self._bounded(given) if self._loops.running else self._loops.wait(given)
        if isinstance(given, GeneratorType | AsyncGeneratorType):
            what = f"{self._name}.{method}" if method else self._name
            raise WrongReply(f"{what} returned {_kind_of(given)}, which cannot travel: {REMEDY}")
        return [_packed(given)] if single else self._packed_batch(given, len(items))

    async def _bounded(self, given: Awaitable[Any]) -> Any:
        if not self._bound:
            return await given
        from asyncio import timeout  # a loop runs, so it is loaded

        scope = timeout(self._bound)
        try:
            async with scope:
                return await given
        except TimeoutError:
            if not scope.expired():  # the handler's own
                raise
            raise Overdue(f"{self._name} did not return within request_timeout={self._bound:g} s") from None

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

    def refuses(self, method: str) -> str:
        """Return why requests may not call this method; empty when they may."""
        found = getattr(self._target, method, None)
        if method.startswith("_") or not callable(found):
            return f"{self._name} has no public method {method!r}"
        kind = streams(found)
        return f"{self._name}.{method} is {kind}: {REMEDY}" if kind else ""


def _kind_of(given: object) -> str:
    return "an async generator" if isinstance(given, AsyncGeneratorType) else "a generator"


def _packed(value: object) -> Packed:
    body, buffers = pack(value)
    return Packed(Status.OK, body, buffers)


def failure(error: BaseException) -> Packed:
    """Return an exception of the user's code ready to travel: itself where it pickles, or what it says."""
    if isinstance(error, WrongReply):
        return Packed(Status.FAILED, encode_said("BadReply", str(error)))
    if isinstance(error, Overdue):
        return Packed(Status.FAILED, encode_said("ServiceTimeout", str(error)))
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


def load(config: ReplicaConfig, loops: Loops) -> Handler:
    """Import or unpickle the handler, make it, and set it up; what is to be awaited is awaited on its loop.

    Raises:
        Unusable: it can never be one; another replica would find the same.
        Whatever the user's code raises.
    """
    for folder in reversed(config.path):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    blobs = BlobStore(Path(config.home) / "sessions" / config.session / "blobs")
    use(blobs).install(config.modules)
    Loading.module = BARE
    target: Any = loads(config.code, blobs) if config.code else _named(config.handler)
    if Loading.module is not BARE:
        publish(Loading.module)
    kwargs: dict[str, Any] = pickle.loads(config.kwargs) if config.kwargs else {}
    if not callable(target):
        raise Unusable(f"{config.handler} cannot be called: give its class a __call__(self, item)")
    try:
        check_handler(target, config.handler)
    except ValueError as error:
        raise Unusable(str(error)) from None
    if isinstance(target, type):
        target = target(**kwargs)
        if (setup := getattr(target, "setup", None)) is not None and hasattr(type(given := setup()), "__await__"):
            loops.wait(given)
    elif kwargs:
        raise Unusable(f"kwargs are for classes, and {config.handler} is none")
    return Handler(
        target,
        config.handler,
        batched=config.max_batch > 1,
        idempotent=config.idempotent,
        loops=loops,
        bound=config.request_timeout,
    )


def _named(handler: str) -> Any:
    """Return what ``module:Class`` names.

    Raises:
        Unusable: the module has nothing of this name.
        Whatever importing raises.
    """
    module, _, name = handler.partition(":")
    target: Any = importlib.import_module(module)
    for part in name.split("."):
        try:
            target = getattr(target, part)
        except AttributeError as error:
            raise Unusable(f"{handler}: {error}") from None
    return target


def replay(
    handler: Handler, broadcasts: Iterable[KeptBroadcast], serve: Callable[[Work], Packed], blobs: BlobStore
) -> None:
    """Let a handler take in broadcasts that were kept, in order; ``serve`` calls it.

    Raises:
        What a method raised, or that it has none of this name; OSError when a value is gone.
    """
    for broadcast in broadcasts:
        if broadcast.method and (why := handler.refuses(broadcast.method)):
            raise WrongReply(why)
        content = memoryview(blobs.get(broadcast.blob))
        frames: list[memoryview] = []
        at = 0
        for size in broadcast.sizes:
            frames.append(content[at : at + size])
            at += size
        answer = serve(Work(broadcast.method, bytes(frames[0]), frames[1:]))
        if answer.status is Status.RAISED:
            raised: BaseException = pickle.loads(answer.body)
            raise raised
        if answer.status is Status.FAILED:
            raise WrongReply(decode_said(answer.body)[1])
