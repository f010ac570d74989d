"""Requests to a service, beside a bare ZeroMQ server, mosec and FastAPI with the same model in the same run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import zmq

import pilot_hitl as ph
from pilot_hitl_benchmarks import models
from pilot_hitl_benchmarks.httpraw import Connection, in_flight
from pilot_hitl_benchmarks.places import session_with
from pilot_hitl_benchmarks.reports import HIGH, LOW, Report, Sizes, Target

ROUND_TRIPS = 300
PATIENCE = 60.0
HTTP = {"fastapi": ("fastapi", "uvicorn"), "mosec": ("mosec",), "mosec-batching": ("mosec",)}
INSTALL = "pip install 'pilot-hitl[bench]'"
Measure = Callable[["Endpoint", "Case"], float]


class Case(msgspec.Struct, frozen=True):
    """What is measured. ``depth`` 1: median milliseconds of a round trip; more: requests a second so many in flight."""

    name: str
    model: str
    depth: int
    size: int
    share: float
    need: float
    goal: float


CASES = (
    Case("service-noop", "same", 1, 1, 1.0, 0.25, 0.15),
    Case("service-mlp", "mlp", 1, 64, 1.0, 0.35, 0.25),
    Case("service-mlp-16", "mlp", 16, 64, 5.0, 6_500, 13_000),
    Case("service-mlp-64", "mlp", 64, 64, 20.0, 32_000, 48_000),
    Case("service-1mb", "same", 1, 1 << 18, 0.3, 1.0, 0.6),
)


class PeerError(RuntimeError):
    """A server of others does not start here."""


class Endpoint:
    """One server under test."""

    def lone(self, item: Any, count: int) -> float:
        """Return the median of so many round trips, in milliseconds."""
        took = []
        for _ in range(count):
            began = time.perf_counter()
            self.ask(item)
            took.append(time.perf_counter() - began)
        return median(took) * 1e3

    def ask(self, item: Any) -> Any:
        """Send one item and return the answer."""
        raise NotImplementedError

    def stream(self, item: Any, depth: int, count: int) -> float:
        """Return requests a second with ``depth`` in flight."""
        raise NotImplementedError


class Ours(Endpoint):
    """A service of this package."""

    def __init__(self, service: Any) -> None:
        """Ask this one."""
        self._service = service

    def ask(self, item: Any) -> Any:
        """As any user would."""
        return self._service.request(item).result(PATIENCE)

    def stream(self, item: Any, depth: int, count: int) -> float:
        """A window: the oldest is awaited, then the next is sent."""
        request = self._service.request
        began = time.perf_counter()
        window = deque(request(item) for _ in range(min(depth, count)))
        for _ in range(count - len(window)):
            window.popleft().result(PATIENCE)
            window.append(request(item))
        for future in window:
            future.result(PATIENCE)
        return count / (time.perf_counter() - began)


class Bare(Endpoint):
    """A socket and nothing else."""

    def __init__(self, place: str) -> None:
        """Connect."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE * 1000))
        self._socket.connect(place)

    def ask(self, item: Any) -> Any:
        """One message each way."""
        self._socket.send(pickle.dumps(item, 5))
        return pickle.loads(self._socket.recv())

    def stream(self, item: Any, depth: int, count: int) -> float:
        """A window over one socket."""
        began = time.perf_counter()
        sent = min(depth, count)
        for _ in range(sent):
            self._socket.send(pickle.dumps(item, 5))
        for _ in range(count):
            pickle.loads(self._socket.recv())
            if sent < count:
                sent += 1
                self._socket.send(pickle.dumps(item, 5))
        return count / (time.perf_counter() - began)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
        self._context.term()


class Http(Endpoint):
    """An HTTP server of others."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        """Connect once for lone requests."""
        self._address = address
        self._connection = Connection(address)

    def ask(self, item: Any) -> Any:
        """Over the kept connection; over a new one when the server closed it because it was idle."""
        body = pickle.dumps(item, 5)
        try:
            self._connection.send(body)
            return self._connection.receive()
        except ConnectionError:
            self._connection.close()
            self._connection = Connection(self._address)
            self._connection.send(body)
            return self._connection.receive()

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def stream(self, item: Any, depth: int, count: int) -> float:
        """A connection for each request in flight."""
        body = pickle.dumps(item, 5)
        began = time.perf_counter()
        in_flight(self._address, body, depth, count)
        return count / (time.perf_counter() - began)


def run(sizes: Sizes) -> list[Report]:
    """Measure all cases; ``sizes.tasks`` is the number of round trips of a round."""
    reports = []
    with session_with(ph.PilotDescription(resource="local", cores=2)) as (session, _home):
        for model in ("same", "mlp"):
            handler, batch = (models.Mlp, models.MAX_BATCH) if model == "mlp" else (models.Same, 1)
            described = ph.ServiceDescription(name=model, handler=handler, max_batch=batch)
            service = session.start_service(described).wait_ready(PATIENCE)
            with contextlib.ExitStack() as stack:
                bare = stack.enter_context(_bare(model))
                peers, absent = _peers(stack, model)
                reports += [
                    _report(case, sizes, Ours(service), bare, peers, absent) for case in CASES if case.model == model
                ]
            service.stop()
    return sorted(reports, key=lambda report: [case.name for case in CASES].index(report.name))


def _peers(stack: contextlib.ExitStack, model: str) -> tuple[dict[str, Http], list[str]]:
    """Start the servers of others; return those that came up, and why the rest is missing."""
    peers: dict[str, Http] = {}
    absent: list[str] = []
    for name, modules in HTTP.items():
        if any(importlib.util.find_spec(module) is None for module in modules):
            absent.append(f"{name} is not installed: {INSTALL}")
            continue
        try:
            peers[name] = stack.enter_context(_http(name, model))
        except PeerError as error:
            absent.append(str(error))
    return peers, absent


def _report(
    case: Case, sizes: Sizes, ours: Endpoint, bare: Endpoint, peers: dict[str, Http], absent: list[str]
) -> Report:
    count = max(4, int(sizes.tasks_or(ROUND_TRIPS) * case.share))
    item = np.ones(case.size, np.float32) if case.size > 1 else 1

    def measure(endpoint: Endpoint) -> float:
        return endpoint.lone(item, count) if case.depth == 1 else endpoint.stream(item, case.depth, count)

    everybody = [ours, bare, *peers.values()]
    for endpoint in everybody:
        endpoint.ask(item)
    rounds: list[list[float]] = []
    for number in range(max(1, sizes.pairs)):
        # The order turns, so that a drift favours nobody.
        order = everybody if number % 2 == 0 else everybody[::-1]
        found = {id(endpoint): measure(endpoint) for endpoint in order}
        rounds.append([found[id(endpoint)] for endpoint in everybody])
    figures = {name: median(each[at + 2] for each in rounds) for at, name in enumerate(peers)}
    report = Report(
        case.name,
        "ms" if case.depth == 1 else "requests/s",
        "a bare ZeroMQ server with greedy batching, same model, pickled arrays",
        {"tasks": count, "pairs": len(rounds), "in_flight": case.depth, "bytes": case.size * 4},
        [(each[0], each[1]) for each in rounds],
        facts={
            "model": f"MLP {'→'.join(map(str, models.WIDTHS))} in {models.library()}"
            if case.model == "mlp"
            else "none",
            "peers": figures,
            "ratio_to_peers": {name: report_ratio(rounds, at + 2) for at, name in enumerate(peers)},
            "absent": absent,
        },
    )
    report.targets = [_target(case, report.ours)]
    best = max((value for name, value in figures.items() if name.startswith("mosec")), default=0.0)
    if case.depth > 1 and best:
        report.targets.append(Target("ahead of mosec's better setting", "requests/s", HIGH, best, best, report.ours))
    return report


def report_ratio(rounds: list[list[float]], at: int) -> float:
    """Return the median of ours over one peer, round by round."""
    return median(each[0] / each[at] for each in rounds)


def _target(case: Case, got: float) -> Target:
    if case.depth == 1:
        return Target("one request at a time, median", "ms", LOW, case.need, case.goal, got)
    return Target(f"{case.depth} requests in flight", "requests/s", HIGH, case.need, case.goal, got)


# --- the servers ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(what: str, place: str, model: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as log:
        words = [sys.executable, "-m", "pilot_hitl_benchmarks.peers", what, place, model]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _bare(model: str) -> Iterator[Bare]:
    with tempfile.TemporaryDirectory(prefix="phb") as folder:
        place = f"ipc://{folder}/bare"
        with _server("bare", place, model), contextlib.closing(Bare(place)) as bare:
            yield bare


@contextlib.contextmanager
def _http(name: str, model: str) -> Iterator[Http]:
    with tempfile.TemporaryDirectory(prefix="phb") as folder:
        unix = name == "fastapi"
        port = 0 if unix else _free_port()
        place = f"{folder}/http" if unix else str(port)
        with (
            _server(name, place, model) as process,
            contextlib.closing(_connected(place if unix else ("127.0.0.1", port), process, name)) as endpoint,
        ):
            yield endpoint


def _connected(address: str | tuple[str, int], process: subprocess.Popen[bytes], name: str) -> Http:
    end = time.monotonic() + PATIENCE
    while (endpoint := _answers(address)) is None:
        if process.poll() is not None or time.monotonic() > end:
            raise PeerError(f"{name} did not come up (exit code {process.poll()}); try: {INSTALL}")
        time.sleep(0.05)
    return endpoint


def _answers(address: str | tuple[str, int]) -> Http | None:
    """Return a connection to a server that answers, None while it does not."""
    if isinstance(address, str) and not Path(address).exists():
        return None
    try:
        endpoint = Http(address)
    except OSError:
        return None
    try:
        endpoint.ask(np.ones(models.WIDTHS[0], np.float32))
    except OSError:
        endpoint.close()
        return None
    return endpoint


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
