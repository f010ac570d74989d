"""Services whose callers are on other hosts: by TCP from another node of the pilot, through hub and agent else.

All processes are on this machine. What makes the difference is what a caller says of where it is, and that alone: what
travels, and by which sockets, is what travels between hosts.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import numpy as np
import pytest
import zmq

import pilot_hitl as ph
from pilot_hitl.wire.current import ADDRESS_VARIABLE, Here
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.sockets import dealer
from tests.behaviour.services import handlers
from tests.behaviour.studies import Study, further, wait_for

PLACES = {"node": Here("elsewhere", "study", 1), "relay": Here("elsewhere")}
MB = 1 << 20


@pytest.fixture(params=further(1, PLACES))
def start(request: pytest.FixtureRequest) -> Callable[..., ph.Service]:
    """Start a service that is reached from another host."""

    def made(session: ph.Session, handler: Any, **more: Any) -> ph.Service:
        session._client.services.here = PLACES[request.param]
        environment = {ADDRESS_VARIABLE: "127.0.0.1"} if request.param == "node" else {}
        more = {"name": "it", "backoff": 0.05, "environment": environment, **more}
        service = session.start_service(ph.ServiceDescription(handler=handler, **more))
        service.wait_ready(30, replicas=more.get("replicas", 1))
        # What the caller could take as well, it does not: there is one way, and no trying.
        wait_for(lambda: service.request([0]).result(30) is not None, "it answers")
        kinds = {lane.way.kind.value for lane in service._channel._lanes.values()}
        assert kinds == {request.param}
        return service

    return made


def _agent(study: Study) -> int:
    return next(int(process["pid"]) for process in study.processes() if process["kind"] == "agent")


def test_requests_arrays_and_errors_pass(study: Study, start: Callable[..., ph.Service]) -> None:
    with study.session() as session:
        service = start(session, handlers.Double, max_batch=16)
        assert service.map(range(1000)) == [2 * item for item in range(1000)]
        sent = np.arange(MB, dtype=np.float64)
        back = [future.result(60) for future in service.requests([sent] * 4)]
        assert all(np.array_equal(each, 2 * sent) for each in back)
        assert service.call("seen")[0] == 1
        with pytest.raises(ph.HandlerFailed, match="no public method"):
            service.call("nothing")
        with pytest.raises(TypeError):
            service.request(object()).result(30)


def test_64_large_ones_are_under_way_at_once(study: Study, start: Callable[..., ph.Service]) -> None:
    with study.session() as session:
        service = start(session, handlers.Double, max_batch=8)
        arrays = [np.full(MB // 8, item, dtype=np.float64) for item in range(64)]
        futures = [service.request(array) for array in arrays]
        assert [future.result(60)[0] for future in futures] == [2 * item for item in range(64)]


def test_deadlines_and_cancellation_hold(study: Study, start: Callable[..., ph.Service]) -> None:
    with study.session() as session:
        service = start(session, handlers.Slow, kwargs={"wait": 0.4})
        first = service.request([1])
        late = service.request([2], timeout=0.1)
        unwanted = service.request([3])
        assert unwanted.cancel()
        with pytest.raises(ph.ServiceTimeout):
            late.result(30)
        assert first.result(30)[0][0] == 1
        assert service.request([4]).result(30)[0][0] == 4
        metrics = service.info()["replicas"][0]["metrics"]
        assert metrics["requests"] <= 4, "what nobody waits for any more is not served, but for what was begun"


def test_a_full_queue_is_told(study: Study, start: Callable[..., ph.Service]) -> None:
    with study.session() as session:
        service = start(session, handlers.Slow, kwargs={"wait": 0.2}, max_queue=4, max_batch=2)
        ends = [future.exception(30) for future in [service.request(item) for item in range(40)]]
        assert {type(end) for end in ends if end is not None} == {ph.Overloaded}
        assert len(service.map(range(20))) == 20


def test_kill_of_a_replica_under_load_loses_nothing(study: Study, start: Callable[..., ph.Service]) -> None:
    with study.session(cores=3) as session:
        service = start(session, handlers.Slow, kwargs={"wait": 0.005}, replicas=2, max_batch=8)
        futures = service.requests(range(1000))
        for _ in range(2):
            pids = [replica["pid"] for replica in service.info()["replicas"] if replica["endpoint"]]
            os.kill(pids[0], signal.SIGKILL)
            wait_for(lambda: service.info()["ready"] == 2, "it is started again")
        assert [future.result(60)[0] for future in futures] == list(range(1000))


def test_what_may_not_run_twice_is_told(study: Study, start: Callable[..., ph.Service]) -> None:
    with study.session() as session:
        service = start(session, handlers.Odd, idempotent=False)
        with pytest.raises(ph.ServiceFailed, match="not idempotent"):
            service.request("die").result(60)
        assert service.request("next").result(60) == "next"


def test_the_hub_may_die_under_load(study: Study, start: Callable[..., ph.Service]) -> None:
    with study.session(cores=3) as session:
        service = start(session, handlers.Slow, kwargs={"wait": 0.01}, max_batch=4)
        futures = service.requests(range(400))
        assert futures[20].result(30)[0] == 20
        os.kill(next(int(p["pid"]) for p in study.processes() if p["kind"] == "hub"), signal.SIGKILL)
        assert [future.result(60)[0] for future in futures] == list(range(400))
        wait_for(lambda: service.info()["ready"] == 1, "it is known again")
        assert service.info()["replicas"][0]["starts"] == 1


def test_the_way_is_measured(study: Study, start: Callable[..., ph.Service], request: pytest.FixtureRequest) -> None:
    with study.session() as session:
        service = start(session, handlers.Double, max_batch=2)
        for item in range(20):
            service.request(item).result(30)
        metrics = service.info()["replicas"][0]["metrics"]
        relayed = "relay" in request.node.name
        assert (metrics["relayed"]["count"] > 0) is relayed
        assert (metrics["communication"]["count"] > 0) is not relayed
        measured = metrics["relayed" if relayed else "communication"]
        assert 0.01 < measured["p50_ms"] < 5000


# --- only the relay ---------------------------------------------------------------------------------------------------


def test_callers_of_one_relay_are_not_mixed_up(study: Study) -> None:
    with study.session() as session:
        session._client.services.here = PLACES["relay"]
        service = session.start_service(ph.ServiceDescription(name="it", handler=handlers.Double, max_batch=32))
        service.wait_ready(30)
        wrong: list[object] = []

        def ask(base: int) -> None:
            with ph.Session("study", role="observer", on_exit="detach") as seen:
                seen._client.services.here = PLACES["relay"]
                items = list(range(base, base + 500))
                answers = seen.service("it").map(items)
                wrong.extend(pair for pair in zip(items, answers, strict=True) if pair[1] != 2 * pair[0])

        threads = [threading.Thread(target=ask, args=(base,)) for base in (0, 10_000, 20_000)]
        for thread in threads:
            thread.start()
        assert service.map(range(30_000, 30_500)) == [2 * item for item in range(30_000, 30_500)]
        for thread in threads:
            thread.join(60)
        assert wrong == []


@pytest.mark.long
def test_an_agent_that_takes_nothing_makes_overloaded_and_goes_on(study: Study) -> None:
    with study.session() as session:
        session._client.services.here = PLACES["relay"]
        description = ph.ServiceDescription(name="it", handler=handlers.Double, max_batch=2)
        service = session.start_service(description).wait_ready(30)
        assert service.request(1).result(30) == 2
        agent = _agent(study)
        os.kill(agent, signal.SIGSTOP)
        try:
            futures = [service.request(np.zeros(5 * MB)) for _ in range(9)]
            wait_for(lambda: any(future.done() for future in futures), "one is refused", timeout=60)
        finally:
            os.kill(agent, signal.SIGCONT)
        ends = [future.exception(60) for future in futures]
        assert {type(end) for end in ends if end is not None} == {ph.Overloaded}
        assert sum(end is None for end in ends) >= 4, "what was on the way is answered"
        assert service.request(2).result(30) == 4


def test_the_agent_may_die_under_load(study: Study) -> None:
    with study.session() as session:
        session._client.services.here = PLACES["relay"]
        description = ph.ServiceDescription(name="it", handler=handlers.Slow, kwargs={"wait": 0.01}, max_batch=4)
        service = session.start_service(description).wait_ready(30)
        futures = service.requests(range(400))
        assert futures[20].result(30)[0] == 20
        os.kill(_agent(study), signal.SIGKILL)
        assert [future.result(60)[0] for future in futures] == list(range(400))


# --- who may come in --------------------------------------------------------------------------------------------------


def test_only_the_homes_key_comes_in_by_tcp(study: Study) -> None:
    with study.session() as session:
        session._client.services.here = PLACES["node"]
        description = ph.ServiceDescription(
            name="it", handler=handlers.Double, max_batch=2, environment={ADDRESS_VARIABLE: "127.0.0.1"}
        )
        service = session.start_service(description).wait_ready(30)
        tcp = service.replicas[0].tcp
        assert tcp.startswith("tcp://127.0.0.1:")
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stranger = dealer(context, keyring(study.folder / "another"), b"stranger")
        plain = context.socket(zmq.DEALER)
        for sock in (stranger, plain):
            sock.setsockopt(zmq.LINGER, 0)
            sock.connect(tcp)
            sock.send(b"\x01\x92\x02\x91\x01")
        time.sleep(0.2)
        assert not any(sock.poll(300) for sock in (stranger, plain))
        for sock in (stranger, plain):
            sock.close()
        context.term()
        assert service.request(4).result(30) == 8


@pytest.mark.parametrize("address", further(1, [str(IPv4Address(0)), "::", "192.0.2.1", "nonsense"]))
def test_an_address_that_is_none_of_ours_fails_the_service(study: Study, address: str) -> None:
    with study.session() as session:
        description = ph.ServiceDescription(
            name="it", handler=handlers.Double, environment={ADDRESS_VARIABLE: address}, restarts=0
        )
        with pytest.raises(ph.ServiceFailed, match=f"cannot listen.*{address}"):
            session.start_service(description).request(1).result(30)
