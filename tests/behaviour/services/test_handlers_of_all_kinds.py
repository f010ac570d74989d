"""What a function called here would give, a service gives too, or refuses by name: async, generators, control flow."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, further


def describe(handler: Any, name: str = "it", **more: Any) -> ph.ServiceDescription:
    return ph.ServiceDescription(**{"name": name, "handler": handler, "backoff": 0.05, **more})


class Async:
    """Everything is of one loop, the one that ``setup`` saw."""

    async def setup(self) -> None:
        await asyncio.sleep(0)
        self.loop = asyncio.get_running_loop()
        self.lock = asyncio.Lock()
        self.ticks: asyncio.Queue[int] = asyncio.Queue(1)
        self.ticking = asyncio.create_task(self.tick())

    async def tick(self) -> None:
        while True:
            await self.ticks.put(1)

    async def __call__(self, item: int) -> int:
        assert asyncio.get_running_loop() is self.loop
        async with self.lock:
            await self.ticks.get()
            await self.ticks.get()  # what setup started goes on
        return 2 * item

    def method(self, item: int) -> int:
        assert asyncio.get_running_loop() is self.loop
        return 2 * item


class AsyncBatch:
    async def __call__(self, batch: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return [2 * item for item in batch]


class AsyncSetup:
    factor = 0

    async def setup(self) -> None:
        self.factor = 2

    def __call__(self, item: int) -> int:
        return self.factor * item


class AsyncMethod:
    def __call__(self, item: int) -> int:
        return item

    async def method(self, item: int) -> int:
        await asyncio.sleep(0)
        return 2 * item


class RunsItsOwn:
    """A handler that is not async may run loops of its own."""

    async def twice(self, item: int) -> int:
        await asyncio.sleep(0)
        return 2 * item

    def __call__(self, item: int) -> int:
        return asyncio.run(self.twice(item))


class CallableObject:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    async def __call__(self, item: int) -> int:
        await asyncio.sleep(0)
        return self.factor * item


async def plain(item: int) -> int:
    await asyncio.sleep(0)
    return 2 * item


async def scaled(factor: int, item: int) -> int:
    return factor * item


KINDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "class": (Async, "", {}),
    "class with sync method": (Async, "method", {}),
    "batches": (AsyncBatch, "", {"max_batch": 8}),
    "setup alone": (AsyncSetup, "", {}),
    "method alone": (AsyncMethod, "method", {}),
    "loop of its own": (RunsItsOwn, "", {}),
    "function": (plain, "", {}),
    "partial": (functools.partial(scaled, 2), "", {}),
    "object": (CallableObject(2), "", {}),
    "hidden": (lambda item: scaled(2, item), "", {}),
    "one at a time": (plain, "", {"max_concurrency": 1}),
    "may not run again": (plain, "", {"idempotent": False}),
}


def test_what_is_to_be_awaited_is_awaited(study: Study) -> None:
    with study.session(cores=2) as session:
        for name, (handler, method, more) in KINDS.items():
            service = session.start_service(describe(handler, name.replace(" ", "-"), **more))
            futures = [service.request(item, method=method) for item in range(20)]
            assert [future.result(60) for future in futures] == [2 * item for item in range(20)], name
            service.stop(timeout=30)


class Meets:
    """Each request waits for another one."""

    def __init__(self) -> None:
        self.here: dict[int, asyncio.Event] = {}

    async def __call__(self, pair: tuple[int, int]) -> int:
        mine, other = pair
        self.here.setdefault(mine, asyncio.Event()).set()
        await self.here.setdefault(other, asyncio.Event()).wait()
        return mine


def test_async_requests_meet_in_the_handler(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(Meets))
        futures = [service.request((item, item ^ 1)) for item in range(20)]
        assert [future.result(60) for future in futures] == list(range(20))


class Sleeps:
    async def __call__(self, item: str) -> str:
        await asyncio.sleep(600 if item == "hang" else 0)
        return f"{item} {os.getpid()}"


def test_an_awaited_call_that_takes_too_long_ends_alone(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(Sleeps, request_timeout=1.0))
        before = service.request("a").result(60)
        slow, quick = service.request("hang"), service.request("a")
        assert quick.result(60) == before
        with pytest.raises(ph.ServiceTimeout, match="request_timeout"):
            slow.result(60)
        assert service.request("a").result(60) == before, "the replica was not ended for it"


class Yields:
    def __call__(self, item: int) -> Iterator[int]:
        yield item


class YieldsAsync:
    async def __call__(self, item: int) -> AsyncIterator[int]:
        yield item


class YieldsBatch:
    def __call__(self, batch: list[int]) -> Iterator[int]:
        yield from batch


class YieldsInSetup:
    def setup(self) -> Iterator[None]:
        yield

    def __call__(self, item: int) -> int:
        return item


class NoCall:
    pass


def yields(item: int) -> Iterator[int]:
    yield item


def yields_scaled(factor: int, item: int) -> Iterator[int]:
    yield factor * item


@pytest.mark.parametrize(
    ("handler", "named"),
    [
        (Yields, "Yields.__call__ is a generator"),
        (YieldsAsync, "YieldsAsync.__call__ is an async generator"),
        (YieldsBatch, "YieldsBatch.__call__ is a generator"),
        (YieldsInSetup, "YieldsInSetup.setup is a generator"),
        (Yields(), "Yields is a generator"),
        (yields, "yields is a generator"),
        (functools.partial(yields_scaled, 2), "yields_scaled is a generator"),
        (NoCall, "NoCall has no __call__"),
    ],
)
def test_what_cannot_answer_is_refused_by_name(handler: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        describe(handler).verify()


class Hidden:
    """Gives generators that nobody sees before it is called; a generator that it uses itself is its own affair."""

    def parts(self, item: int) -> Iterator[int]:
        yield item

    def wrapped(self, item: int) -> object:
        return self.parts(item)

    def __call__(self, item: int) -> list[int]:
        return list(self.parts(item))


def test_generators_that_show_later_are_told_by_name(study: Study) -> None:
    with study.session(cores=3) as session:
        service = session.start_service(describe(Hidden))
        assert service.request(3).result(60) == [3]
        with pytest.raises(ph.HandlerFailed, match=r"Hidden\.parts is a generator"):
            service.call("parts", 3, timeout=60)
        with pytest.raises(ph.BadReply, match=r"Hidden\.wrapped returned a generator"):
            service.call("wrapped", 3, timeout=60)
        named = session.start_service(
            describe("tests.behaviour.services.test_handlers_of_all_kinds:Yields", "named", restarts=50)
        )
        with pytest.raises(ph.ServiceFailed, match=r"Yields\.__call__ is a generator"):
            named.request(1).result(60)


def stop(_: object) -> None:
    raise StopIteration(5)


def stop_async(_: object) -> None:
    raise StopAsyncIteration


def leave(code: object) -> None:
    sys.exit(str(code))


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


def close(_: object) -> None:
    raise GeneratorExit


def cancel(_: object) -> None:
    raise asyncio.CancelledError


FLOWS: list[tuple[Callable[[object], None], type[BaseException]]] = [
    (stop, StopIteration),
    (stop_async, StopAsyncIteration),
    (leave, SystemExit),
    (interrupt, KeyboardInterrupt),
    (close, GeneratorExit),
    (cancel, asyncio.CancelledError),
]


class Flows:
    def __call__(self, number: int) -> int:
        FLOWS[number][0](number)
        return os.getpid()

    def pid(self, _: object) -> int:
        return os.getpid()


class AsyncFlows(Flows):
    async def __call__(self, number: int) -> int:  # type: ignore[override] # the same, but async
        await asyncio.sleep(0)
        FLOWS[number][0](number)
        return 0


@pytest.mark.parametrize("handler", further(1, ["AsyncFlows", "Flows"]))
def test_control_flow_of_a_handler_arrives_as_an_error_of_the_service(study: Study, handler: str) -> None:
    async def awaited(service: Any, number: int) -> object:
        return await asyncio.wait_for(service.request(number), 60)

    with study.session() as session:
        service = session.start_service(describe(f"{__name__}:{handler}"))
        pid = service.call("pid", timeout=60)
        for number, (_function, kind) in enumerate(FLOWS):
            if handler == "AsyncFlows" and kind is StopIteration:
                with pytest.raises(RuntimeError, match="raised StopIteration"):  # Python's own doing
                    asyncio.run(awaited(service, number))
                continue
            ends: list[BaseException | None] = [service.request(number).exception(60)]
            with pytest.raises(ph.HandlerFailed) as caught:
                service.request(number).result(60)
            ends.append(caught.value)
            with pytest.raises(ph.HandlerFailed) as caught:
                asyncio.run(awaited(service, number))
            ends.append(caught.value)
            for end in ends:
                assert isinstance(end, ph.HandlerFailed)
                assert isinstance(end.__cause__, kind)
                assert ("called sys.exit" if kind is SystemExit else kind.__name__) in str(end)
                assert (end.exit_code is None) == (kind is not SystemExit)
                assert isinstance(end, RuntimeError) == (kind in {StopIteration, StopAsyncIteration})
        assert service.call("pid", timeout=60) == pid, "it ended no replica"


class LeavesInSetup:
    def setup(self) -> None:
        sys.exit("no licence")

    def __call__(self, item: int) -> int:
        return item


def test_a_setup_that_leaves_is_named(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(LeavesInSetup, restarts=0))
        with pytest.raises(ph.ServiceFailed, match="SystemExit: no licence"):
            service.request(1).result(60)
