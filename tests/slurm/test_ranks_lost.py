"""A node is lost under a task of several ranks: its pilot is a node short afterwards, and so is of no use to others."""

from __future__ import annotations

import pytest

import pilot_hitl as ph
from tests.slurm.cluster import Cluster
from tests.slurm.site import LIMIT, NODES, Site, check_hello, study_on, until

pytestmark = pytest.mark.requires("slurm", "netns", "openmpi")


def test_a_lost_node_ends_the_ranks_on_the_others(slurm_nodes: Cluster) -> None:
    with study_on(slurm_nodes, NODES) as (session, folder):
        _lose_a_node(Site(slurm_nodes, session, folder))


def _lose_a_node(site: Site) -> None:
    up = site.fresh()
    task = site.submit(site.program("openmpi"), str(up), launcher="srun")
    until(lambda: up.exists() and len(up.read_text().splitlines()) == 6)
    victim = "n3"
    site.cluster.crash(victim)
    try:
        until(lambda: not site.ranks(), 60)
        # It was nobody's fault, so it is to run again, and waits for three nodes.
        assert not task.done()
        small = site.submit(site.program("openmpi"), ranks=4)
        check_hello(small.result(timeout=LIMIT).stdout, 4)
        task.cancel()
        with pytest.raises(ph.TaskCanceled):
            task.result(timeout=LIMIT)
    finally:
        site.cluster.start_slurmd(victim)
