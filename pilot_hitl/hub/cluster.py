"""One Slurm cluster, as the hub talks to it: its commands, run beside the loop, and what they said."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence

from pilot_hitl.hub.commands import Commands, Finished
from pilot_hitl.launch import slurm, slurmwords
from pilot_hitl.launch.slurmwords import JobView

ADDRESS_VARIABLE = "PILOT_HITL_HUB_ADDRESS"
"""Address of this machine by which compute nodes reach the hub; without it, it is found out."""
Prepared = Callable[[str, bool], None]
"""Called with why nothing can be submitted (empty when it can), and whether that is only for want of an answer."""
MOST_IN_ARRAY = 1001
"""Slurm's own default of MaxArraySize."""
LOOPBACK = ("127.", "::1", "0.")


class Cluster:
    """Slurm as one ``SLURM_CONF`` names it.

    Attributes:
        environment: that its commands get.
        address: of this machine, for its nodes; empty until :meth:`prepare` succeeded.
        silent: why the last command got no answer, empty when it got one.
    """

    def __init__(self, commands: Commands, environment: Mapping[str, str], host: str, wanted: str = "") -> None:
        """Ask nothing yet. ``wanted`` is the address that the user wants the hub to have."""
        self.environment = dict(environment)
        self.address = ""
        self.silent = ""
        self._commands = commands
        self._host = host
        self._wanted = wanted
        self._config: dict[str, str] = {}
        self._waiting: list[Prepared] = []

    # --- before the first job -----------------------------------------------------------------------------------

    def prepare(self, done: Prepared) -> None:
        """Find out where the hub is to listen."""
        if shutil.which("sbatch", path=self.environment.get("PATH", os.defpath)) is None:
            done(
                f"there is no sbatch on {self._host} (looked in PATH): submit where Slurm's commands are, such as a "
                "login node, or load the module that brings them",
                False,
            )
        elif self.address:
            done("", False)
        else:
            self._waiting.append(done)
            if len(self._waiting) == 1:
                self._run(["scontrol", "show", "config"], self._configured)

    def _configured(self, finished: Finished) -> None:
        self._heard(finished)
        if finished.silent:
            self._prepared("", self.complaint("scontrol show config", finished), silent=True)
            return
        if finished.code == 0:
            self._config = slurmwords.parse_config(finished.out)
        if self._wanted:
            self._prepared(self._wanted, "")
            return
        if finished.code:
            self._prepared("", self.complaint("scontrol show config", finished))
            return
        address, written = slurmwords.controller(self._config)
        route = route_to(address)
        if route.startswith(LOOPBACK) and not written:
            # The controller runs here and its name leads to the loopback: nodes know another way.
            self._run(["sinfo", "--noheader", "--Node", "--format=%o"], lambda nodes: self._nodes(route, nodes))
        else:
            why = (
                f"no network of {self._host} leads to Slurm's controller {address!r}; set {ADDRESS_VARIABLE} to the "
                "address by which compute nodes reach this machine"
            )
            self._prepared(route, why)

    def _nodes(self, route: str, finished: Finished) -> None:
        self._heard(finished)
        if finished.silent:
            self._prepared("", self.complaint("sinfo", finished), silent=True)
            return
        routes = [route_to(line.strip()) for line in finished.out.splitlines()[:8]]
        self._prepared(next((each for each in routes if each and not each.startswith(LOOPBACK)), route), "")

    def _prepared(self, address: str, complaint: str, *, silent: bool = False) -> None:
        self.address = address
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done("" if address else complaint, silent)

    @property
    def most_in_array(self) -> int:
        """Above what number an array may have no index."""
        with contextlib.suppress(ValueError):
            return int(self._config.get("MaxArraySize", MOST_IN_ARRAY))
        return MOST_IN_ARRAY

    @property
    def accounts(self) -> bool:
        """Whether ended jobs can be looked up."""
        return "slurmdbd" in self._config.get("AccountingStorageType", "")

    # --- jobs -----------------------------------------------------------------------------------------------------

    def submit(self, job: slurm.Job, environment: Mapping[str, str], done: Callable[[Finished], None]) -> None:
        """Submit a job; ``done`` hears how sbatch ended."""
        self._commands.run(slurm.command(job), environment, done)

    def queue(self, done: Callable[[dict[str, JobView] | None], None]) -> None:
        """Look at all jobs of this user, those that ended lately among them; None when Slurm does not answer."""
        words = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}"]
        environment = {**self.environment, "SLURM_TIME_FORMAT": "%s"}

        def read(finished: Finished) -> None:
            self._heard(finished)
            done(slurmwords.parse_queue(finished.out) if finished.code == 0 else None)

        self._commands.run([*words, f"--format={slurmwords.FORMAT}"], environment, read)

    def accounting(self, jobs: Sequence[str], done: Callable[[dict[str, tuple[str, str]] | None], None]) -> None:
        """Look jobs up that squeue no longer knows; those that are not found are left out. None without an answer."""
        words = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs)}"]

        def read(finished: Finished) -> None:
            done(None if finished.code else slurmwords.parse_accounting(finished.out))

        self._run([*words, "--format=JobID,State,ExitCode"], read)

    def cancel(self, jobs: Sequence[str], done: Callable[[Finished], None]) -> None:
        """Cancel jobs."""

        def read(finished: Finished) -> None:
            self._heard(finished)
            done(finished)

        self._run(["scancel", *jobs], read)

    def cancel_and_forget(self, jobs: Sequence[str]) -> None:
        """Cancel jobs as the last thing that the hub does."""
        self._commands.forget(["scancel", *jobs], self.environment)

    def _run(self, words: Sequence[str], done: Callable[[Finished], None]) -> None:
        self._commands.run(words, self.environment, done)

    def _heard(self, finished: Finished) -> None:
        self.silent = finished.said if finished.silent else ""

    def complaint(self, what: str, finished: Finished) -> str:
        """Return in words that a command failed, or was not answered."""
        if finished.silent:
            return (
                f"Slurm's controller does not answer '{what}' on {self._host}: {slurmwords.quoted(finished.said)}; "
                "'scontrol ping' tells when it is back"
            )
        return f"{what} on {self._host} failed: {slurmwords.quoted(finished.said)}; see whether 'sinfo' works there"


def route_to(address: str) -> str:
    """Return this machine's own address on the way to another one, empty when there is no way."""
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 6817, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return ""
