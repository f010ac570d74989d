"""Clusters as fixtures, one of each kind a test process, each at ports that no other run on this machine uses."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.configuration import Mode

FIRST_PORT = int(os.environ.get("PILOT_HITL_SLURM_PORT", "20000"))
PLACES, PORTS = 20, 50
"""How many clusters of all runs fit beside each other, and how many ports each has."""
TOP = Path(tempfile.gettempdir()).resolve()


def _base(port: int) -> Path:
    # By port, not by run: what a killed run left is found by the next.
    return TOP / f"phslurm-{os.getuid()}-{port}"


@contextlib.contextmanager
def _place() -> Iterator[int]:
    """Hold a first port that no other run holds; places of runs that were killed are cleaned on the way."""
    taken: tuple[int, IO[bytes]] | None = None
    for port in range(FIRST_PORT, FIRST_PORT + PLACES * PORTS, PORTS):
        file = (TOP / f"{_base(port).name}.lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        if _base(port).exists():
            _clean(port)
        if taken is None:
            taken = port, file
        else:
            file.close()
    if taken is None:
        pytest.fail(f"all {PLACES} places for Slurm clusters from port {FIRST_PORT} are taken", pytrace=False)
    with taken[1]:
        yield taken[0]


def _clean(port: int) -> None:
    """End what is left of a run that was killed; whichever mode it had."""
    modes: tuple[Mode, ...] = ("netns", "local") if os.geteuid() == 0 else ("local",)
    for mode in modes:
        Cluster(_base(port), port, nodes=16, mode=mode).stop()


@contextlib.contextmanager
def cluster(
    *, nodes: int = 4, mode: Mode = "local", cpus: int = 4, enforce_accounts: bool = False
) -> Iterator[Cluster]:
    """A cluster of a test's own."""
    with (
        _place() as port,
        Cluster(_base(port), port, nodes=nodes, mode=mode, cpus=cpus, enforce_accounts=enforce_accounts) as made,
    ):
        yield made


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """Four nodes of four cores and two GPUs that are all this host; needs the part ``slurm``, and no root."""
    with cluster() as made:
        yield made


@pytest.fixture(scope="session")
def slurm_nodes() -> Iterator[Cluster]:
    """Four nodes that are hosts of their own; needs the parts ``slurm`` and ``netns``. Mend what you break."""
    with cluster(mode="netns") as made:
        yield made


@pytest.fixture(scope="session")
def slurm_accounts() -> Iterator[Cluster]:
    """One node, and jobs only for accounts that are in the database; needs the parts ``slurm`` and ``slurmdbd``."""
    with cluster(nodes=1, enforce_accounts=True) as made:
        yield made
