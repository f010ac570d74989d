"""A real Slurm cluster on this machine: its own munge, controller, nodes, ports and files, and nothing of the system's.

with Cluster(Path("/tmp/one"), 20000) as cluster:
subprocess.run(["srun", "-N2", "hostname"], env=cluster.environment)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.slurm.accounting import Accounting
from tests.slurm.configuration import MPI_CONF, Mode, Shape, gres_conf, hosts, slurm_conf
from tests.slurm.daemons import PATH, ClusterError, Daemon, kill, of_cluster, processes, until
from tests.slurm.network import Host, Network

READY = {"idle", "mixed", "allocated", "completing"}


class Cluster:
    """One cluster. Everything of it lies in ``base``; ``port`` and the 49 after it are its.

    Attributes:
        shape: what it looks like.
        conf: value of ``SLURM_CONF`` for whoever uses it.
        environment: this process's, with that.
        names: of its nodes.
        account: that exists, with ``enforce_accounts``.
    """

    account = Accounting.account

    def __init__(
        self,
        base: Path,
        port: int,
        *,
        nodes: int = 4,
        mode: Mode = "local",
        cpus: int = 4,
        gpus: int = 2,
        enforce_accounts: bool = False,
        extra: str = "",
    ) -> None:
        base = base.resolve()
        self.shape = Shape(base, port, nodes, mode, cpus, gpus, enforce_accounts, extra)
        self.conf = base / "etc" / "slurm.conf"
        self.names = self.shape.names
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        self.environment = {**clean, "PATH": PATH, "SLURM_CONF": str(self.conf)}
        self._base = base
        self._network = Network(self.shape)
        self._hosts: dict[str, Host] = {}
        self._slurmd: dict[str, Daemon] = {}
        self._controller = self._daemon("slurmctld", ["slurmctld", "-D"])
        self._munge = self._daemon(
            "munged",
            [
                *("munged", "--foreground", f"--key-file={base}/munge/key", f"--socket={self.shape.munge_socket}"),
                *(f"--pid-file={base}/munge/pid", f"--log-file={base}/munge/log", f"--seed-file={base}/munge/seed"),
            ],
        )
        self._accounting = Accounting(self.shape, self.environment) if enforce_accounts else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # --- whole --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring it up, all nodes idle; what a killed run left in ``base`` and at its addresses is ended first.

        Raises:
            ClusterError: it does not come up.
        """
        self.stop()
        try:
            self._write()
            self._munge.start()
            ask = ("munge", "-n", "-S", str(self.shape.munge_socket))
            until(lambda: self._works(*ask), "munged answers", why=self._munge.said)
            if self._accounting is not None:
                self._accounting.start()
            if self.shape.mode == "netns":
                self._network.build()
            self.start_slurmctld()
            for node in self.names:
                self._boot(node)
            until(self._all_ready, "all nodes are up", 60, self._why)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything that runs for it, jobs and clients included, and remove its files. Twice is once."""
        kill(self._base)
        for host in self._hosts.values():
            host.crash()
        if self._accounting is not None:
            self._accounting.stop()
        for daemon in (*self._slurmd.values(), self._controller, self._munge):
            daemon.end()
        self._hosts.clear()
        self._slurmd.clear()
        if self.shape.mode == "netns":
            self._network.remove()
        shutil.rmtree(self._base, ignore_errors=True)

    def run(self, *command: str, timeout: float = 30.0) -> str:
        """Run a command of Slurm on this host and return what it printed.

        Raises:
            ClusterError: it fails.
        """
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=self.environment
        )
        if done.returncode:
            raise ClusterError(f"{' '.join(command)} exits with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def jobs(self) -> list[str]:
        """Return the jobs that wait, run or end, as ``ID STATE NAME``."""
        return self.run("squeue", "--noheader", "--array", "--format=%i %T %j").splitlines()

    def states(self) -> dict[str, str]:
        """Return each node's state as ``sinfo`` writes it: ``idle``, and so on."""
        lines = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def wait_idle(self, timeout: float = 60.0) -> None:
        """Wait until no job is there and every node is idle.

        Raises:
            ClusterError: not within ``timeout`` seconds.
        """
        until(
            lambda: not self.jobs() and set(self.states().values()) == {"idle"},
            "no jobs, and all nodes idle",
            timeout,
            lambda: f"{self.jobs()} {self.states()}",
        )

    def cancel_all(self) -> None:
        """Cancel every job; returns at once."""
        if ids := {job.split()[0] for job in self.jobs()}:
            self.run("scancel", *sorted(ids))

    # --- the controller -----------------------------------------------------------------------------------------

    def stop_slurmctld(self) -> None:
        """End the controller; it keeps its state. Jobs run on, and nobody answers."""
        self._controller.end(signal.SIGTERM)

    def start_slurmctld(self) -> None:
        """Start the controller and wait until it answers."""
        self._controller.start()
        until(lambda: self._works("scontrol", "ping"), "slurmctld answers", why=self._controller.said)

    def pause_slurmctld(self) -> None:
        """Let the controller stand still: connections are taken, and nobody answers."""
        os.kill(self._controller.pid, signal.SIGSTOP)

    def resume_slurmctld(self) -> None:
        """Let it go on, with all that reached it meanwhile."""
        os.kill(self._controller.pid, signal.SIGCONT)
        until(lambda: self._works("scontrol", "ping"), "slurmctld answers", why=self._controller.said)

    # --- nodes --------------------------------------------------------------------------------------------------

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's daemon; the node and what runs on it live on."""
        self._daemon_of(node).kill()
        self._slurmd[node].end()

    def start_slurmd(self, node: str) -> None:
        """Start a node's daemon, after a crash the node as well, and wait until Slurm has the node back."""
        self._boot(node)
        until(lambda: self.states()[node] in READY, f"{node} is back", 60, self._why)

    def crash(self, node: str) -> None:
        """End a node's daemon and everything that runs there, like a power failure; start_slurmd starts it again."""
        if self.shape.mode == "netns":
            self._hosts[node].crash()
        self._slurmd[node].end()
        while left := [process for process in of_cluster(self._base) if self._is_on(node, process)]:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=1.0)

    def cut(self, node: str) -> None:
        """Take a node's network away (netns); what runs there goes on."""
        self._only_netns("cut")
        self._network.set(node, "down")

    def heal(self, node: str) -> None:
        """Give a node its network back (netns). Returns at once; Slurm hears of it soon."""
        self._only_netns("heal")
        self._network.set(node, "up")
        if self._slurmd[node].alive:
            # It registers at once then; by itself the controller asks a node that is down once in 100 s.
            self._daemon_of(node).send_signal(signal.SIGHUP)

    def mend(self) -> None:
        """Bring back all that was broken, and wait until no job is there and all nodes are idle."""
        self.start_slurmctld()
        for node in self.names:
            if self.shape.mode == "netns":
                self.heal(node)
            self._boot(node)
        self.cancel_all()
        until(lambda: not self.jobs(), "no jobs", 120, lambda: f"{self.jobs()}")
        for node, state in self.states().items():
            if state.startswith("drain"):  # what a step could not kill in time, Slurm takes for a fault of the node
                self.run("scontrol", "update", f"nodename={node}", "state=resume")
        self.wait_idle(120)

    def run_in(self, node: str, command: Sequence[str], timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command on a node without Slurm's knowledge (in mode local: on this host, as all nodes are)."""
        words = self._hosts[node].enter(command) if self.shape.mode == "netns" else [*command]
        environment = {**self.environment, "SLURMD_NODENAME": node}
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False, env=environment)

    def processes_on(self, node: str, mark: str = "") -> list[psutil.Process]:
        """Return what runs on a node for pilots: processes whose PILOT_HITL_MARK begins with ``mark``."""
        found = []
        for process, environment in processes():
            marked = environment.get("PILOT_HITL_MARK", "")
            if marked.startswith(mark) and marked and self._is_on(node, process, environment):
                found.append(process)
        return found

    # --- inside -------------------------------------------------------------------------------------------------

    def _daemon(self, name: str, command: Sequence[str]) -> Daemon:
        return Daemon(name, command, self._base / "log" / f"{name}.out", self.environment)

    def _write(self) -> None:
        """Write all files."""
        base, shape = self._base, self.shape
        own = [f"{top}/{node}" for node in self.names for top in ("spool", "tmp")]
        for name in ("etc", "run", "log", "munge", "state", "dev", *own):
            (base / name).mkdir(parents=True)
        base.chmod(0o755)  # munged and mariadbd look for themselves
        key = base / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        self.conf.write_text(slurm_conf(shape))
        (base / "etc" / "gres.conf").write_text(gres_conf(shape, self._devices()))
        (base / "etc" / "mpi.conf").write_text(MPI_CONF)
        (base / "etc" / "cgroup.conf").touch()
        (base / "etc" / "hosts").write_text(hosts(shape))

    def _devices(self) -> list[Path]:
        """Make stand-ins for GPUs: Slurm wants device nodes, and only root may make them."""
        devices = [self._base / "dev" / f"nvidia{number}" for number in range(self.shape.gpus)]
        try:
            for device in devices:
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            return []
        return devices

    def _boot(self, node: str) -> None:
        """Start a node's daemon, and the node before it."""
        command = ["slurmd", "-D", "-N", node]
        if self.shape.mode == "netns":
            if node not in self._hosts:
                self._hosts[node] = Host(node, self._network, self._base, self.environment)
            if not self._hosts[node].alive:
                self._hosts[node].start()
                self._slurmd.pop(node, None)
            command = self._hosts[node].enter(command)
        if node not in self._slurmd:
            self._slurmd[node] = self._daemon(f"slurmd.{node}", command)
        self._slurmd[node].start()

    def _daemon_of(self, node: str) -> psutil.Process:
        """Return slurmd's process: in mode netns a child of the one that entered the node."""
        process = psutil.Process(self._slurmd[node].pid)
        if self.shape.mode == "local":
            return process
        until(process.children, f"slurmd of {node} has started", why=self._slurmd[node].said)
        return process.children()[0]

    def _is_on(self, node: str, process: psutil.Process, environment: Mapping[str, str] | None = None) -> bool:
        if self.shape.mode == "netns":
            return self._hosts[node].has(process)
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() == "slurmstepd":
                log = str(self._base / "log" / f"slurmd.{node}.log")
                return any(file.path == log for file in process.open_files())
            return (environment or process.environ()).get("SLURMD_NODENAME") == node
        return False

    def _only_netns(self, what: str) -> None:
        if self.shape.mode != "netns":
            raise ClusterError(f"{what}: only nodes of mode netns have a network of their own")

    def _all_ready(self) -> bool:
        return set(self.states().values()) == {"idle"} and len(self.states()) == self.shape.nodes

    def _why(self) -> str:
        return "\n".join(
            [str(self.states()), *(daemon.said() for daemon in (self._controller, *self._slurmd.values()))]
        )

    def _works(self, *command: str) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, check=False, timeout=5, env=self.environment)
            return done.returncode == 0
        return False
