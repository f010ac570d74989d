"""How the ranks of an MPI group are started: by the same launchers and the same rank shim as MPI programs."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from importlib.machinery import PathFinder

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.templates import ExecutableTemplate
from pilot_hitl.wire.current import ATTEMPT_VARIABLE
from pilot_hitl.wire.node import Launch
from pilot_hitl_agent.node import launchers, mpiworker, presence
from pilot_hitl_agent.node.gangs import Gangs, Job, Part, first_to_fail, told_by_shim
from pilot_hitl_agent.node.launchers import Found, NoLauncherError, flavour_of
from pilot_hitl_agent.node.link import Exit, Unspawned
from pilot_hitl_agent.node.probing import CUT_SHORT, Probes
from pilot_hitl_agent.node.rankframes import GROUP_VARIABLE, shared_memory
from pilot_hitl_agent.node.settings import NodeSettings
from pilot_hitl_agent.node.spawners import Spawners, Unwatch, Watch

_AT_ONCE = {f"{prefix}_MCA_odls_base_sigkill_timeout": "0" for prefix in ("OMPI", "PRTE")}
"""Open MPI waits a second for each rank that it kills. Ours have had their grace by then."""

_YIELD = "OMPI_MCA_mpi_yield_when_idle"


class StartError(Exception):
    """A group cannot be started here; the message names what is missing and the remedy."""


class Start(msgspec.Struct):
    """A launcher that is to run, or runs.

    Attributes:
        what: its name for people.
        argv, more: its command line, and the variables of this group alone.
        cpus: where it may run.
        secret: starts a line in which the shim says why it never became a rank.
    """

    what: str
    argv: list[str]
    more: dict[str, str]
    cpus: tuple[int, ...]
    part: Part
    secret: str


class Launcher:
    """Prepares launchers of groups."""

    def __init__(self, settings: NodeSettings, spawners: Spawners, watch: Watch, unwatch: Unwatch) -> None:
        """Know nothing of the node's launchers yet."""
        self._settings = settings
        self._spawners = spawners
        self._gangs = Gangs(settings, presence.Watch(watch, unwatch))
        self._probes = Probes(spawners, "launchers-mpi")

    def knows(self, environment: int) -> bool:
        """Return whether it is known what there is in an environment; else :meth:`ask`."""
        return self._probes.known(self._path(environment)) is not None

    def ask(self, environment: int) -> None:
        """Find out which launchers there are; :meth:`answered` takes the answer."""
        self._probes.ask(self._path(environment), environment)

    def answered(self, news: Exit | Unspawned) -> bool:
        """Take an answer; False when the news is of something else."""
        if news.token not in self._probes:
            return False
        path = self._probes.answered(news)
        if path is not None and (found := self._probes.known(path)) is not None:
            self._gangs.learn(found)
        return True

    def served(self, environment: int) -> None:
        """Everybody who waited for an answer has used it."""
        self._probes.forget(self._path(environment))

    def prepare(self, token: str, key: str, launch: Launch, environment: int) -> Start:
        """Return how to start a group for a call; ``launch.layout`` says where.

        Raises:
            StartError: nothing here can.
        """
        settings, variables = self._settings, self._spawners.variables(environment)
        path = [entry for entry in sys.path if entry]
        if PathFinder.find_spec("mpi4py", [*settings.path, *path]) is None:
            raise StartError(
                f"functions with ranks > 1 need mpi4py, which {sys.executable} on {settings.inventory.name} does not "
                f"have: {mpiworker.EXTRA}"
            )
        flavour = flavour_of(sys.executable, [mpiworker.__file__], variables, "/")
        part = Part(f"mpi:{token}", f"{settings.pilot_folder}/gangs/mpi.{token}", leads=True, flavour=flavour)
        template = ExecutableTemplate(executable=sys.executable, name="mpi")
        secret = f"pilot-hitl-{secrets.token_hex(8)}"
        threads = "OMP_NUM_THREADS" not in variables
        argv = mpiworker.command(path, settings.flags)
        job = Job(f"mpi.{launch.ranks}", template, argv, settings.work, secret, variables, with_threads=threads)
        found = self._probes.known(self._path(environment)) or Found(complete=False)
        try:
            choice = self._choose(part, launch, found)
            command = self._gangs.write(part, launch, job)
        except NoLauncherError as error:
            more_words = "" if found.complete else CUT_SHORT
            raise StartError(f"functions with ranks > 1 need an MPI launcher: {error}{more_words}") from None
        except OSError as error:
            raise StartError(f"the group's folder {part.folder} cannot be written: {error.strerror}") from None
        more = {
            GROUP_VARIABLE: f"{token} {key} {launch.ranks}",
            ATTEMPT_VARIABLE: part.attempt,
            **_AT_ONCE,
            # Daemon, hub and client may share these cores: who waits lets others go on.
            _YIELD: variables.get(_YIELD, "1"),
            **command.environment,
        }
        if len(launch.layout) == 1:
            # As for the ranks' memory: what a killed mpirun leaves behind is removed.
            folder = shared_memory(settings.mark, token)
            with contextlib.suppress(OSError):
                folder.mkdir(mode=0o700, exist_ok=True)
                more["OMPI_MCA_orte_tmpdir_base"] = str(folder)
        here = next((share.cpus for share in launch.layout if share.node == settings.node), ())
        cpus = tuple(sorted({cpu for numbers in here for cpu in numbers}))
        return Start(f"{choice.text} ({choice.tool.path})", command.argv, more, cpus, part, secret)

    def environment(self, environment: int) -> int:
        """Return the number of the environment that a launcher runs in."""
        return self._spawners.without_launchers(environment)

    def clean(self, start: Start) -> None:
        """Remove what a group has left behind."""
        self._gangs.close(start.part)

    def _choose(self, part: Part, launch: Launch, found: Found) -> launchers.Choice:
        if len(launch.layout) == 1:
            try:
                # A warm group may last as long as the pilot: it need not hold a step of the batch system.
                return self._gangs.choose(part, launch, "mpirun", found)
            except NoLauncherError:
                # The message of the other attempt says what there is.
                part.choice = None
        return self._gangs.choose(part, launch, "", found)

    def _path(self, environment: int) -> str:
        return self._spawners.variables(environment).get("PATH", os.defpath)


def why_unstarted(start: Start, stderr: bytes, host: str) -> Failure | None:
    """Return what a launcher or a shim says about a group that did not come up; None when they say nothing."""
    told = told_by_shim(start.secret, stderr)
    if told is None:
        return None
    _, sentence, rest = told
    return Failure(Cause.SETUP, f"its MPI group cannot be started: {sentence}", host, 0, rest.decode(errors="replace"))


__all__ = ["Launcher", "Start", "StartError", "first_to_fail", "why_unstarted"]
