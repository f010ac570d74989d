"""A node is cut off under a service: nothing is lost. Its pilot is of no use to others afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pilot_hitl as ph
from tests.behaviour.services import handlers
from tests.slurm.cluster import Cluster
from tests.slurm.site import LIMIT, study_on

pytestmark = pytest.mark.requires("slurm", "netns")


@pytest.fixture
def session(slurm_nodes: Cluster) -> Iterator[ph.Session]:
    with study_on(slurm_nodes, 4) as (opened, _):
        yield opened


def test_a_node_that_is_cut_off_loses_nothing(session: ph.Session, slurm_nodes: Cluster) -> None:
    slow = ph.ServiceDescription(name="slow", handler=handlers.Slow, kwargs={"wait": 0.05}, replicas=6, max_batch=4)
    service = session.start_service(slow).wait_ready(LIMIT, replicas=6)
    hosts = {replica["host"] for replica in service.info()["replicas"]}
    agent = next(process for process in session._client.query("status", {})["processes"] if process["kind"] == "agent")
    victim = next(host for host in sorted(hosts) if host != agent["host"])
    futures = service.requests(range(1500))
    assert futures[10].result(LIMIT)[0] == 10
    slurm_nodes.cut(victim)
    try:
        assert [future.result(LIMIT)[0] for future in futures] == list(range(1500))
    finally:
        slurm_nodes.mend()
