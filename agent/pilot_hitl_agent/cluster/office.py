"""The office of the agent of a pilot of many nodes: its roster, its claim, its beat, and when the job ends."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import msgspec
import zmq

from pilot_hitl.wire import cluster as wc
from pilot_hitl.wire import node as wn
from pilot_hitl.wire.clock import on_steady, steady
from pilot_hitl.wire.codec import encode
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.messages import Message
from pilot_hitl.wire.pilotconfig import PilotConfig
from pilot_hitl_agent.cluster.claims import Claims
from pilot_hitl_agent.cluster.inventory import Whereabouts
from pilot_hitl_agent.cluster.returning import Returning
from pilot_hitl_agent.cluster.roster import FENCING, Answered, Joined, Lost, RemoteNode, Roster

_log = logging.getLogger(__name__)
BEATS = 5
"""Beats in one lease."""
SILENT = 0.5
"""Part of a lease for which the agent beats without a word of anybody."""
GATHERING = 20.0
"""Seconds that a new pilot's agent waits for its nodes before it begins with those that are there."""
LONGEST_GRACE = 10.0
LEAVING = 5.0
"""Seconds beyond the grace that the end of a pilot may take."""
LAST_WORDS = 3.0
"""Seconds beyond the grace that members get to say how their tasks ended."""
JOURNAL = "journal"


class EndsAt(msgspec.Struct, frozen=True):
    """The batch system says when the job ends; on the steady clock."""

    at: float


class Office:
    """What an agent has beside its own node, when the pilot is a batch job."""

    def __init__(self, config: PilotConfig, here: Whereabouts, claims: Claims, term: int, *, heir: bool) -> None:
        """Listen for members; the office is held once :meth:`claim` succeeds.

        ``heir``: an earlier life of this node's member held it last.
        """
        self._heir = heir
        self._config = config
        self._here = here
        self._claims = claims
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, 4096)
        self.term = term
        self.job = here.job
        self.node = here.node
        self.nodes = here.nodes
        self.inventory = here.inventory
        self.addresses: dict[int, str] = {here.node: here.address}
        self._roster = Roster(self.context, keyring(Path(config.home)), here.address, config.lease, term)
        self._roster.local(here.node, here.machine)
        path = Path(config.folder) / "config.json"
        self._returning = Returning(here.number, path, len(here.inventory.cores))
        self.cut_off = False
        self.lost_any = False
        """Whether a node was lost: then the batch system may wait for it for ever."""
        self.ends_at = on_steady(config.ends_at) if config.ends_at else steady() + config.runtime * 60
        self._began = time.monotonic()
        self._complete = False
        self._beats = 0
        self._beat_at = 0.0
        self._contact = time.monotonic()
        self._poller: zmq.Poller | None = None
        self._question: subprocess.Popen[bytes] | None = None
        self._question_fd = -1

    def claim(self) -> bool:
        """Take the office; False when somebody else has this term."""
        host = os.uname().nodename
        claim = wc.Claim(
            term=self.term,
            node=self.node,
            host=host,
            pid=os.getpid(),
            endpoint=self._roster.endpoint,
            job=self.job,
        )
        if not self._claims.claim(claim):
            self._roster.close()
            self.context.term()
            return False
        self._beat(time.monotonic())
        path = Path(self._config.folder) / "agent.pid"
        path.write_text(f"{os.getpid()} {host}\n", encoding="ascii")
        return True

    # --- the loop -----------------------------------------------------------------------------------------------------

    def attach(self, poller: zmq.Poller) -> None:
        """Let the agent's loop poll for members, and learn when the job ends."""
        self._poller = poller
        for socket in self._roster.sockets:
            poller.register(socket, zmq.POLLIN)
        if not self._config.ends_at:
            self.ask_for_end()

    def turn(self, now: float, *, hub_heard: float) -> list[Joined | Lost | Answered | EndsAt]:
        """Do what is due; return what happened. ``hub_heard`` is when the hub last said anything.

        The agent that hears neither the hub nor half of the other nodes may be the one that is cut off. It stops to
        beat before the first member's lease ends, so that no member takes it for alive, and gives up after a lease.
        """
        happened: list[Joined | Lost | Answered | EndsAt] = [*self._roster.take_in(now), *self._roster.expired(now)]
        for happening in happened:
            if isinstance(happening, Joined):
                self.addresses[happening.node] = happening.address
                self._returning.joined(happening.node)
            elif isinstance(happening, Lost):
                self.lost_any = True
                self._returning.lost(happening.node, happening.name, now)
        self._returning.turn(now)
        others = self._here.nodes - 1
        self._contact = max(self._contact, hub_heard, self._roster.contact(others) if others else now)
        self.cut_off = self._complete and now - self._contact >= self._config.lease
        if now >= self._beat_at and now - self._contact < SILENT * self._config.lease:
            self._beat(now)
        if self._question is not None and (ends := self._read_end()) is not None:
            happened.append(ends)
        return happened

    def next_deadline(self) -> float:
        """Return when :meth:`turn` is due, monotonic."""
        moments = [self._beat_at, self._contact + self._config.lease]
        moments += [due for each in (self._roster, self._returning) if (due := each.next_deadline()) is not None]
        if not self._complete:
            moments.append(self._patience())
        now = time.monotonic()
        return min((moment for moment in moments if moment > now), default=now + self._config.lease / BEATS)

    def complete(self, now: float) -> bool:
        """Return whether all nodes are there, or were waited for long enough."""
        if not self._complete:
            self._complete = len(self._roster.members) + 1 >= self._here.nodes or now >= self._patience()
        return self._complete

    def _patience(self) -> float:
        """Return until when nodes are waited for: those that do not come may run tasks of the agent before this one.

        Their leases end a lease after that one's last answer: which may have been right now, when it was an earlier
        life of this very process. Else it has not beaten for more than a lease, and had given up half a lease later.
        """
        if self.term == 1:
            return self._began + GATHERING
        return self._began + (1.0 if self._heir else 0.5) * self._config.lease + FENCING

    def _beat(self, now: float) -> None:
        self._beats += 1
        self._beat_at = now + self._config.lease / BEATS
        self._claims.beat(self.term, self._beats)

    # --- nodes --------------------------------------------------------------------------------------------------------

    def remote(self, node: int) -> RemoteNode:
        """Return a node of the roster as the agent sees nodes."""
        return RemoteNode(self._roster, node)

    def said(self) -> list[wn.FromNode]:
        """Return what members said of attempts since the last call."""
        found: list[wn.FromNode] = []
        for node in list(self._roster.fresh):
            found += self._roster.read(node)
        return found

    def ask(self, token: int, what: str) -> set[int]:
        """Ask every member; return who is to answer."""
        for node in self._roster.members:
            self._roster.send(node, [wc.MemberQuery(token, what)])
        return set(self._roster.members)

    # --- the end ------------------------------------------------------------------------------------------------------

    @property
    def margin(self) -> float:
        """Seconds before the end of the job at which the pilot ends by itself."""
        return min(LONGEST_GRACE, 0.1 * self._config.runtime * 60) + LEAVING

    def grace(self, ends_at: float) -> float:
        """Return the seconds that running tasks get now, so that everything is over before the job is."""
        return max(0.5, min(LONGEST_GRACE, ends_at - steady() - LEAVING))

    def dismiss(self, reason: str, grace: float) -> None:
        """Tell all members to end their tasks, and to go."""
        self._roster.dismiss(reason, grace)

    def last_words(self, grace: float) -> Iterator[tuple[int, wn.FromNode]]:
        """Yield what members say until the last has gone, or should have."""
        limit = time.monotonic() + grace + LAST_WORDS
        router = self._roster.sockets[0]
        while self._roster.members and (left := limit - time.monotonic()) > 0:
            router.poll(int(left * 1000))
            for happening in self._roster.take_in(time.monotonic()):
                if isinstance(happening, Lost):
                    yield from ((happening.node, message) for message in happening.said)
            for node in list(self._roster.fresh):
                yield from ((node, message) for message in self._roster.read(node))

    def journal(self, epoch: int, binding: int, messages: Sequence[Message]) -> None:
        """Leave what the hub did not acknowledge in the pilot's folder, where the next hub takes it in."""
        path = Path(self._config.folder) / JOURNAL
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            with partial.open("wb") as file:
                file.write(msgspec.msgpack.encode((epoch, binding, encode(messages))))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            _log.error("the last results cannot be left in %s: %s", path, error)

    def close(self) -> None:
        """Close everything."""
        self._returning.close()
        self._roster.close()

    def end_job(self) -> None:
        """End the job, where the batch system would not see by itself that the pilot is over."""
        if self.cut_off or (self._here.node == 0 and not self.lost_any):
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            # Only a job that runs: one that is requeued is being ended already, and is to run again.
            command = ["scancel", "--quiet", "--state=RUNNING", self._here.number]
            subprocess.run(command, timeout=30, check=False)

    def ask_for_end(self) -> None:
        """Ask the batch system when the job ends."""
        if self._question is not None:
            return
        command = ["squeue", "--noheader", f"--jobs={self._here.number}", "--format=%A %e"]
        try:
            self._question = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            _log.warning("squeue cannot be asked when the job ends: %s", error)
            return
        if self._poller is not None and self._question.stdout is not None:
            self._question_fd = self._question.stdout.fileno()
            self._poller.register(self._question_fd, zmq.POLLIN)

    def _read_end(self) -> EndsAt | None:
        question = self._question
        if question is None or question.poll() is None or question.stdout is None:
            return None
        text = question.stdout.read().decode(errors="replace")
        if self._poller is not None:
            self._poller.unregister(self._question_fd)
        question.stdout.close()
        self._question = None
        at = end_in(text, self._here.number)
        if at is None:
            _log.warning("squeue does not say when the job ends: %r", text)
            return None
        return EndsAt(on_steady(at))


def end_in(text: str, number: str) -> float | None:
    """Return when a job ends, by lines of ``NUMBER TIME``, in seconds since 1970.

    There are many where the job is the last of an array: its number is also that of the array.
    """
    for line in text.splitlines():
        name, _, moment = line.partition(" ")
        if name == number:
            try:
                return datetime.fromisoformat(moment.strip()).timestamp()
            except ValueError:
                return None
    return None
