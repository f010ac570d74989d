"""Real Slurm clusters for tests.

A test asks for the cluster that it needs, and says which parts of the machine that takes::

    @pytest.mark.requires("slurm")
    def test_something(slurm: Cluster) -> None: ...          # four nodes that are all this host; no root

    @pytest.mark.requires("slurm", "netns")
    def test_loss(slurm_nodes: Cluster) -> None: ...         # four hosts of their own: cut, heal, crash, kill_slurmd

    @pytest.mark.requires("slurm", "slurmdbd")
    def test_account(slurm_accounts: Cluster) -> None: ...   # accounts are enforced, see Cluster.account

Each is one cluster a test process, at ports of its own; ``fixtures.cluster()`` is the context manager for another one.
Start what uses it with ``Cluster.environment``, or set ``SLURM_CONF`` to ``Cluster.conf``. Who breaks a node mends it.
PILOT_HITL_SLURM_PORT moves the ports (default 20000; up to 20 clusters of 50 ports).
"""

from tests.slurm.fixtures import slurm, slurm_accounts, slurm_nodes

__all__ = ["slurm", "slurm_accounts", "slurm_nodes"]
