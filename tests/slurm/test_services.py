"""A service on nodes that are hosts of their own: asked from the script's host, and from every node."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

import pilot_hitl as ph
from tests.behaviour.services import handlers
from tests.behaviour.studies import wait_for
from tests.slurm.cluster import Cluster
from tests.slurm.site import study_on

pytestmark = pytest.mark.requires("slurm", "netns")
MB = 1 << 20
LIMIT = 60
REPLICAS = 2


@pytest.fixture(scope="module")
def session(slurm_nodes: Cluster) -> Iterator[ph.Session]:
    """A session with one pilot of four nodes, for all tests of this file."""
    with study_on(slurm_nodes, 4) as (opened, _):
        yield opened


@pytest.fixture(scope="module")
def service(session: ph.Session) -> ph.Service:
    description = ph.ServiceDescription(
        name="it", handler=handlers.Double, replicas=REPLICAS, max_batch=32, backoff=0.05, restarts=20
    )
    return session.start_service(description).wait_ready(LIMIT, replicas=REPLICAS)


def ways(service: ph.Service) -> set[str]:
    return {lane.way.kind.value for lane in service._channel._lanes.values()}


def replicas() -> list[psutil.Process]:
    """Processes of replicas: the nodes' are this machine's too."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "pilot_hitl_services" in words and words[-1].startswith(os.environ["PILOT_HITL_HOME"]):
            found.append(process)
    return found


def test_a_script_outside_is_relayed(service: ph.Service) -> None:
    assert service.map(range(2000)) == [2 * item for item in range(2000)]
    assert ways(service) == {"relay"}
    hosts = {replica["host"] for replica in service.info()["replicas"]}
    assert socket.gethostname() not in hosts
    assert all(replica["tcp"].startswith("tcp://10.") for replica in service.info()["replicas"])


def test_64_large_ones_are_under_way_through_the_relay(service: ph.Service) -> None:
    arrays = [np.full(MB // 8, item, dtype=np.float64) for item in range(64)]
    futures = [service.request(array) for array in arrays]
    assert [future.result(LIMIT)[-1] for future in futures] == [2 * item for item in range(64)]
    metrics = [replica["metrics"] for replica in service.info()["replicas"]]
    assert sum(each["relayed"]["count"] for each in metrics) > 0


def test_tasks_of_every_node_go_straight(session: ph.Session, service: ph.Service) -> None:
    hosts = {replica["replica"]: replica["host"] for replica in service.info()["replicas"]}

    def ask(item: int) -> tuple[str, dict[int, str], object]:
        found = ph.service("it")
        value = found.request(item).result(30)
        time.sleep(1.5)  # so that all nodes are in use
        lanes = found._channel._lanes.values()
        return socket.gethostname(), {lane.number: lane.way.kind.value for lane in lanes}, value

    answers = [future.result(LIMIT) for future in session.options(cores=2).map(ask, range(8))]
    assert [value for _host, _ways, value in answers] == [2 * item for item in range(8)]
    for host, seen, _value in answers:
        assert seen == {number: "host" if where == host else "node" for number, where in hosts.items()}
    assert {host for host, _ways, _value in answers} == {"n1", "n2", "n3", "n4"}


def test_kill_of_a_replica_under_load_loses_nothing(service: ph.Service) -> None:
    futures = service.requests([item] * 1000 for item in range(4000))
    assert futures[10].result(LIMIT) == [10] * 2000
    before = replicas()
    assert len(before) == REPLICAS
    before[0].send_signal(signal.SIGKILL)
    assert [future.result(LIMIT)[0] for future in futures] == list(range(4000))
    wait_for(lambda: service.info()["ready"] == REPLICAS, "it is started again", LIMIT)


def test_the_hub_may_die_under_load(service: ph.Service) -> None:
    futures = service.requests([item] * 1000 for item in range(4000))
    assert futures[10].result(LIMIT) == [10] * 2000
    hub = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "pilot_hitl.hub" in (process.info["cmdline"] or ())
        and os.environ["PILOT_HITL_HOME"] in process.info["cmdline"]
    ]
    hub[0].send_signal(signal.SIGKILL)
    assert [future.result(LIMIT)[0] for future in futures] == list(range(4000))
    wait_for(lambda: service.info()["ready"] == REPLICAS, "replicas are known again", LIMIT)
    pids = {replica.pid for replica in replicas()}
    assert len(pids) == REPLICAS
