"""How the ranks of an MPI group are started."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping

import msgspec

from pilot_hitl.wire.current import ATTEMPT_VARIABLE
from pilot_hitl.wire.node import Share
from pilot_hitl_agent.node import mpiworker
from pilot_hitl_agent.node.rankframes import GROUP_VARIABLE
from pilot_hitl_agent.node.settings import NodeSettings


class StartError(Exception):
    """A group cannot be started here; the message names what is missing and the remedy."""


class Start(msgspec.Struct, frozen=True):
    """How to run a launcher: ``what`` names it for people."""

    what: str
    argv: list[str]
    more: dict[str, str]
    cpus: tuple[int, ...]


class Launcher:
    """Prepares launchers of groups."""

    def __init__(self, settings: NodeSettings) -> None:
        """Know nothing yet."""
        self._settings = settings

    def prepare(
        self, token: str, key: str, ranks: int, layout: tuple[Share, ...], variables: Mapping[str, str]
    ) -> Start:
        """Return how to start a group.

        Raises:
            StartError: nothing here can.
        """
        found = shutil.which("mpirun", path=variables.get("PATH", os.defpath))
        if found is None:
            raise StartError(
                f"functions with ranks > 1 need an MPI launcher, and there is no mpirun in PATH on "
                f"{self._settings.inventory.name}"
            )
        path = [entry for entry in sys.path if entry]
        argv = [found, "--np", str(ranks), "--oversubscribe", "--bind-to", "none", *mpiworker.command(path)]
        more = {
            GROUP_VARIABLE: f"{token} {key} {ranks}",
            ATTEMPT_VARIABLE: "",
            "LOCAL_WORLD_SIZE": str(ranks),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_mpi_yield_when_idle": "1",
        }
        cpus = tuple(sorted({cpu for numbers in layout[0].cpus for cpu in numbers}))
        return Start(found, argv, more, cpus)

    def clean(self, start: Start) -> None:
        """Remove what a group has left behind."""
