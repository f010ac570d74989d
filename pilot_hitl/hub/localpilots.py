"""Pilots on the hub's own machine: a tree of processes below one root, watched through pidfds."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from typing import TYPE_CHECKING

import msgspec

from pilot_hitl.hub import books
from pilot_hitl.hub.live import LiveSession, PilotRecord
from pilot_hitl.launch import local
from pilot_hitl.model.states import PilotState
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.clock import steady
from pilot_hitl.wire.pilotconfig import PilotConfig

if TYPE_CHECKING:
    from pilot_hitl.hub.pilots import PilotKeeper
    from pilot_hitl.hub.server import Hub

_log = logging.getLogger(__name__)
RESTARTS = 3
"""A local pilot that dies is started again, this often within RESTART_WINDOW seconds."""
RESTART_WINDOW = 60.0
HUB_TIMEOUT = 60.0
"""Seconds a local pilot goes on without a hub."""


class LocalPilots:
    """Starts, watches and ends local pilots; see :class:`~pilot_hitl.hub.pilots.Launcher`."""

    patience = 15.0

    def __init__(self, hub: Hub, keeper: PilotKeeper) -> None:
        """Start without pilots; ends are told to the keeper."""
        self._hub = hub
        self._keeper = keeper
        self._leases = local.CoreLeases()
        self._roots: set[int] = set()
        """Process ids of roots that are watched; a session that is forgotten may have a namesake before its end."""
        self._orphans: set[tuple[str, int]] = set()
        """Pilots that died while their script was away: started again when it comes back."""
        self._swept: set[tuple[str, int]] = set()
        """Pilots whose root is gone, while what it left is ended."""
        self._left: set[tuple[str, int]] = set()
        """Pilots whose agent said good-bye: nothing of theirs runs any more."""

    def start(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Start a pilot's root."""
        pilot.starts.append(steady())
        self._left.discard(_key(session, pilot))
        description = pilot.description
        cpus, pinned = self._leases.take(_key(session, pilot), 0 if description.noop else description.cores)
        config = PilotConfig(
            home=str(self._hub.home),
            session=session.name,
            pilot=pilot.number,
            folder=str(session.places.pilot(pilot.number)),
            session_folder=str(session.places.folder),
            endpoint=self._hub.endpoint,
            keys=str(self._hub.home / "hub" / "keys.json"),
            nodes=local.inventory(description, self._hub.host, cpus, pinned=pinned),
            environment=pilot.environment,
            cwd=pilot.cwd,
            sys_path=pilot.sys_path,
            flags=pilot.flags,
            umask=pilot.umask,
            runtime=description.runtime,
            noop=description.noop,
            hub_timeout=HUB_TIMEOUT,
            mark=local.pilot_mark(session.places, pilot.number),
        )
        try:
            with self._hub.descriptors.as_given():
                pilot.pid = local.start(config)
        except OSError as error:
            why = f"it cannot be started on {self._hub.host}: {error}"
            self._keeper.ended(session, pilot, PilotState.FAILED, why)
            return
        pilot.state = PilotState.PENDING
        self._watch_root(session, pilot)
        session.save_pilot(pilot)

    def arrived(self, session: LiveSession, pilot: PilotRecord, hello: m.AgentHello) -> None:
        """Watch the root of a pilot that an earlier hub started."""
        if not pilot.pid and hello.host == self._hub.host:
            pilot.pid = local.root_of(session.places.pilot(pilot.number))
            if pilot.pid:
                self._orphans.discard(_key(session, pilot))
                self._watch_root(session, pilot)

    def left(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Take note that its agent ended everything; the end of its root follows."""
        self._left.add(_key(session, pilot))

    def end(self, session: LiveSession, pilot: PilotRecord, *, at_once: bool) -> bool:
        """Tell a pilot's root to end, or kill it; return whether there is one."""
        if pilot.pid:
            _log.debug("pilot %d of session %s is told to end", pilot.number, session.name)
            _signal(pilot.pid, signal.SIGKILL if at_once else signal.SIGTERM)
        return bool(pilot.pid) or _key(session, pilot) in self._swept

    def recall(self, session: LiveSession, pilot: PilotRecord) -> bool:
        """Know a pilot again that an earlier hub started, or note that it ended; return whether it may be running.

        One that died meanwhile is started again when its script comes back, as it would have been with a hub.
        """
        folder = session.places.pilot(pilot.number)
        with contextlib.suppress(OSError, msgspec.MsgspecError):  # without it, it cannot be started again
            config = msgspec.json.decode((folder / "config.json").read_bytes(), type=PilotConfig)
            pilot.environment, pilot.cwd, pilot.sys_path = config.environment, config.cwd, config.sys_path
            pilot.flags, pilot.umask = config.flags, config.umask
        root = local.root_of(folder)
        if not root:
            # Before anybody says hello, for whom its tasks would be bound anew: the one end that is waited for here.
            local.wait(self._sweeper(session, pilot))
        if not root and (pilot.keep or not self._may_restart(pilot)):
            last = books.last_word(session.store, pilot.number)
            self._keeper.ended(session, pilot, PilotState.FAILED, "it ended while no hub ran", last)
            return False
        if not pilot.keep:
            self._keeper.await_owner(session, pilot)
        if root:
            pilot.pid = root
            self._watch_root(session, pilot)
        else:
            self._orphans.add(_key(session, pilot))
        return bool(root)

    def owner_came(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Start a pilot again that died while its script was away."""
        key = _key(session, pilot)
        if key in self._orphans:
            self._orphans.discard(key)
            self._all_ended(session, pilot)

    def forget(self, session: LiveSession, pilot: PilotRecord) -> None:
        """End a pilot whose session is forgotten."""
        self.end(session, pilot, at_once=False)
        self.let_go(session, pilot)

    def let_go(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Give back what a pilot used that has ended."""
        self._leases.give_back(_key(session, pilot))
        self._orphans.discard(_key(session, pilot))
        self._left.discard(_key(session, pilot))

    def _watch_root(self, session: LiveSession, pilot: PilotRecord) -> None:
        root = pilot.pid
        if root in self._roots:
            return
        self._roots.add(root)
        if self._hub.watch.add(root, lambda: self._root_ended(session, pilot, root)) < 0:
            self._root_ended(session, pilot, root)

    def _root_ended(self, session: LiveSession, pilot: PilotRecord, root: int) -> None:
        """The spawner is gone, and with it everything of the pilot, unless it was killed."""
        self._roots.discard(root)
        if not self._is_present(session, pilot):
            return
        pilot.pid = 0
        if _key(session, pilot) in self._left:
            self._root_gone(session, pilot)
        else:
            self._sweep(session, pilot)

    def _is_present(self, session: LiveSession, pilot: PilotRecord) -> bool:
        """Return whether this is still the pilot of that name, and has not ended."""
        return self._hub.sessions.get(session.name) is session and not pilot.state.final

    def _sweep(self, session: LiveSession, pilot: PilotRecord) -> None:
        """End what a killed root left, also its agent, and go on when it is gone: only then may its tasks run again."""
        key = _key(session, pilot)
        self._swept.add(key)

        def swept() -> None:
            self._swept.discard(key)
            if self._is_present(session, pilot):
                self._root_gone(session, pilot)

        sweeper = self._sweeper(session, pilot)
        if not sweeper or self._hub.watch.add(sweeper, swept) < 0:
            swept()

    @staticmethod
    def _sweeper(session: LiveSession, pilot: PilotRecord) -> int:
        """Start the process that ends what is left of a pilot; return its number, 0 when it cannot be started."""
        try:
            return local.sweep(local.pilot_mark(session.places, pilot.number))
        except OSError as error:
            _log.error("what is left of pilot %d of session %s cannot be ended: %s", pilot.number, session.name, error)
            return 0

    def _root_gone(self, session: LiveSession, pilot: PilotRecord) -> None:
        self._keeper.agent_gone(session, pilot.number)
        self._all_ended(session, pilot)

    def _all_ended(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Start a pilot again that died, or note its end."""
        if not self._is_present(session, pilot):
            return
        now = steady()
        pilot.starts = [moment for moment in pilot.starts if moment > now - RESTART_WINDOW]
        walltime = now >= pilot.began + pilot.description.runtime * 60
        if pilot.stopping or walltime:
            state = PilotState.CANCELED if pilot.canceled else PilotState.DONE
            message = pilot.message or ("walltime reached" if walltime else "stopped")
            self._keeper.ended(session, pilot, state, message)
        elif session.owners and self._may_restart(pilot):
            _log.warning("pilot %d of session %s died and is started again", pilot.number, session.name)
            self.start(session, pilot)
        elif self._keeper.awaits_owner(session, pilot) and self._may_restart(pilot):
            self._orphans.add(_key(session, pilot))
        else:
            log = session.places.pilot(pilot.number) / "logs" / "pilot.log"
            why = f"it died on {self._hub.host}; see {log}{local.last_words(log)}"
            self._keeper.ended(session, pilot, PilotState.FAILED, why)

    @staticmethod
    def _may_restart(pilot: PilotRecord) -> bool:
        return len(pilot.starts) <= RESTARTS and bool(pilot.cwd)


def _key(session: LiveSession, pilot: PilotRecord) -> tuple[str, int]:
    return session.name, pilot.number


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
