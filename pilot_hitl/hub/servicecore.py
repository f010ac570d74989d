"""When replicas are started, given up, and started again: a state machine without clock, socket or file.

::

    STARTING ──ready──► READY ──no word, hung, process gone──► UNHEALTHY ──its attempt ended──► STARTING (after a pause)
        └──── not ready in time, its attempt ended ────────────────┘              └── too often ──► STOPPED

A service is READY while one replica is, FAILED when all replicas were given up, STOPPED when somebody wanted that.
"""

from __future__ import annotations

import msgspec

from pilot_hitl.model.services import LossCause, ReplicaState, ServiceSettings, ServiceState
from pilot_hitl.wire.replicas import Begun
from pilot_hitl.wire.servicing import ReplicaLoss

SILENCE = 20.0
"""Seconds without a word from a ready replica after which it is taken for lost."""
RECOVERY = 20.0
"""Seconds that a replica has to say hello to a hub that was started again."""
STEADY = 60.0
"""Seconds after which a replica that was ready begins to count restarts anew."""
LONGEST_PAUSE = 60.0


class Order(msgspec.Struct, frozen=True):
    """Root of what is to be done."""


class Launch(Order, frozen=True):
    """Submit a task for this replica, and tell :meth:`ServiceCore.launched` which."""

    number: int


class End(Order, frozen=True):
    """End the replica's attempt, by force if need be."""

    task: int
    reason: str


class Stop(Order, frozen=True):
    """Let the replica finish what waits, and end."""

    task: int


class Withdraw(Order, frozen=True):
    """The endpoint does not serve any more: forget it, and clean up after it."""

    endpoint: str


class Replica:
    """One replica.

    Attributes:
        number: from 1.
        task: its present one, 0 for none.
        state: of the replica.
        endpoint: where it serves, empty unless it is ready.
        message, detail: what went wrong the last time.
        failures: in a row.
        due: when something must have happened (ready, heard of, gone) or is to be done (started again); 0 for never.
        ready_since: when it became ready.
        starts: how often it was started.
        loss: how it came to serve no more, the last time.
        hopeless: another process would end like the present one.
    """

    def __init__(self, number: int) -> None:
        """Start without a task."""
        self.number = number
        self.task = 0
        self.state = ReplicaState.STARTING
        self.endpoint = ""
        self.message = ""
        self.detail = ""
        self.failures = 0
        self.due = 0.0
        self.ready_since = 0.0
        self.starts = 0
        self.ending = False
        self.loss: ReplicaLoss | None = None
        self.hopeless = False


class ServiceCore:
    """One service.

    Attributes:
        settings: as described.
        state, message, detail: of the service; ``message`` says why it is not well.
        replicas: by number.
        changed: whether what others see changed since they were told.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        """Know a service; :meth:`start` or :meth:`restore` comes next."""
        self.settings = settings
        self.state = ServiceState.STARTING
        self.message = ""
        self.detail = ""
        self.replicas = {number: Replica(number) for number in range(1, settings.replicas + 1)}
        self.changed = True
        self._until = 0.0

    # --- begin --------------------------------------------------------------------------------------------------------

    def start(self) -> list[Order]:
        """Start all replicas, at the same time."""
        return [Launch(number) for number in self.replicas]

    def launched(self, number: int, task: int) -> None:
        """Take note of a replica's task. Nothing is due before its process begins: it may wait for a pilot."""
        replica = self.replicas[number]
        replica.task, replica.state, replica.due = task, ReplicaState.STARTING, 0.0
        replica.starts += 1
        replica.message = replica.detail = ""
        replica.ending = replica.hopeless = False

    def restore(self, tasks: dict[int, int], now: float) -> None:
        """Take over from an earlier hub: those that still run have a while to say hello."""
        for number, task in tasks.items():
            if number in self.replicas:
                self.launched(number, task)
                self.replicas[number].due = now + RECOVERY

    def complete(self) -> list[Order]:
        """Start what is missing, when somebody wants a service that was restored."""
        replicas = self.replicas.values()
        return [Launch(r.number) for r in replicas if not r.task and not r.due and r.state is ReplicaState.STARTING]

    # --- what happens -------------------------------------------------------------------------------------------------

    def hello(self, task: int, endpoint: str, now: float) -> list[Order]:
        """A replica's process began (no endpoint), or is ready."""
        replica = self.find(task)
        if replica is None or self.state.final or replica.ending:
            return [End(task, "its service does not want it any more")]
        orders: list[Order] = []
        before = (replica.state, replica.endpoint)
        if replica.endpoint != endpoint:
            orders += self._withdraw(replica, LossCause.DIED, "it runs again elsewhere")
        replica.endpoint = endpoint
        if endpoint:
            replica.state, replica.due = ReplicaState.READY, now + SILENCE
            replica.ready_since = replica.ready_since or now
            replica.message = replica.detail = ""
        else:
            replica.state, replica.due = ReplicaState.STARTING, now + self.settings.start_timeout
            replica.ready_since = 0.0
        if self.state is ServiceState.DRAINING:
            orders.append(Stop(task))
        self._look(before != (replica.state, endpoint))
        return orders

    def beat(self, task: int, now: float) -> None:
        """A replica is alive."""
        replica = self.find(task)
        if replica is not None and replica.state is ReplicaState.READY:
            replica.due = now + SILENCE

    def unhealthy(
        self, task: int, reason: str, cause: LossCause = LossCause.HUNG, begun: Begun | None = None
    ) -> list[Order]:
        """A replica must be ended, and why; ``begun`` is what it had, if anybody knows."""
        replica = self.find(task)
        if replica is None or replica.ending:
            return []
        replica.message = replica.message or reason
        orders = self._withdraw(replica, cause, reason, begun)
        replica.state, replica.ending = ReplicaState.UNHEALTHY, True
        replica.due = 0.0
        self._look(True)
        return [*orders, End(task, reason)]

    def gone(self, task: int, now: float) -> list[Order]:
        """A replica's process ended; how is not known yet. Its attempt's end follows, or it runs again elsewhere."""
        replica = self.find(task)
        if replica is None:
            return []
        orders = self._withdraw(replica, LossCause.DIED, "its process ended")
        replica.state = ReplicaState.UNHEALTHY if replica.ending else ReplicaState.STARTING
        replica.due = 0.0 if replica.ending else now + RECOVERY
        self._look(True)
        return orders

    def failed(self, task: int, message: str, detail: str, *, hopeless: bool = False) -> None:
        """A replica said why it ends, ``hopeless``: and another one would; its attempt's end follows."""
        replica = self.find(task)
        if replica is not None and not replica.message:
            replica.message, replica.detail, replica.hopeless = message, detail, hopeless

    def ended(self, task: int, message: str, now: float, *, hopeless: bool = False) -> list[Order]:
        """A replica's task ended. ``hopeless``: another one would end like it."""
        replica = self.find(task)
        if replica is None:
            return []
        orders = self._withdraw(replica, LossCause.DIED, message)
        replica.task, replica.ending = 0, False
        replica.message = replica.message or message
        if replica.loss is not None and replica.loss.cause is LossCause.DIED:
            replica.loss = msgspec.structs.replace(replica.loss, message=replica.message)
        hopeless = hopeless or replica.hopeless
        if self.state in (ServiceState.DRAINING, ServiceState.STOPPED):
            replica.state, replica.due = ReplicaState.STOPPED, 0.0
        else:
            if replica.ready_since and now - replica.ready_since > STEADY:
                replica.failures = 0
            replica.failures += 1
            if hopeless or replica.failures > self.settings.restarts:
                replica.state, replica.due = ReplicaState.STOPPED, 0.0
            else:
                pause = min(LONGEST_PAUSE, self.settings.backoff * 2.0 ** (replica.failures - 1))
                replica.state, replica.due = ReplicaState.STARTING, now + pause
        replica.ready_since = 0.0
        self._look(True)
        return orders

    def stop(self, reason: str, now: float, *, drain: bool) -> list[Order]:
        """Somebody wants no more of it."""
        if self.state.final:
            return []
        self.message = reason
        orders: list[Order] = []
        self.state = ServiceState.DRAINING
        self._until = now + self.settings.drain_timeout
        for replica in self.replicas.values():
            if not replica.task:
                replica.state, replica.due = ReplicaState.STOPPED, 0.0
            elif drain and replica.state is ReplicaState.READY:
                orders.append(Stop(replica.task))
            elif not replica.ending:
                orders += self.unhealthy(replica.task, reason, LossCause.ENDED)
        self._look(True)
        return orders

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when :meth:`tick` is due, None when nothing waits for time."""
        if self.state.final:
            return None
        moments = [replica.due for replica in self.replicas.values() if replica.due]
        if self.state is ServiceState.DRAINING and self._until:
            moments.append(self._until)
        return min(moments, default=None)

    def tick(self, now: float, unbound: frozenset[int] = frozenset()) -> list[Order]:
        """Do what is due. What waits for a pilot (its task is in ``unbound``) may wait."""
        orders: list[Order] = []
        for replica in self.replicas.values():
            if replica.due and replica.due <= now:
                if replica.task in unbound:
                    replica.due = 0.0
                else:
                    orders += self._overdue(replica)
        if self.state is ServiceState.DRAINING and self._until and self._until <= now:
            self._until = 0.0
            for replica in self.replicas.values():
                if replica.task:
                    orders += self.unhealthy(replica.task, "it did not finish what waited in time", LossCause.ENDED)
        return orders

    def _overdue(self, replica: Replica) -> list[Order]:
        replica.due = 0.0
        if not replica.task:
            return [Launch(replica.number)]
        if replica.state is ReplicaState.READY:
            return self.unhealthy(replica.task, f"nothing was heard of it for {SILENCE:g} s", LossCause.SILENT)
        if replica.ready_since:
            return self.unhealthy(replica.task, "its process ended", LossCause.DIED)
        bound = self.settings.start_timeout
        return self.unhealthy(replica.task, f"it was not ready within {bound:g} s of its start")

    # --- inside -------------------------------------------------------------------------------------------------------

    def find(self, task: int) -> Replica | None:
        """Return the replica whose present task this is."""
        return next((replica for replica in self.replicas.values() if replica.task == task and task), None)

    def _withdraw(self, replica: Replica, cause: LossCause, message: str, begun: Begun | None = None) -> list[Order]:
        """Let nobody use it any more, and take note of why."""
        endpoint, replica.endpoint = replica.endpoint, ""
        if not endpoint:
            return []
        replica.loss = ReplicaLoss(replica.task, endpoint, cause, message, begun)
        return [Withdraw(endpoint)]

    def lost(self, endpoint: str) -> ReplicaLoss | None:
        """Return how this endpoint was withdrawn, while it is the latest of its replica."""
        losses = [replica.loss for replica in self.replicas.values()]
        return next((loss for loss in losses if loss is not None and loss.endpoint == endpoint), None)

    def learned(self, loss: ReplicaLoss, begun: Begun) -> None:
        """Take note of what a replica had begun that is lost."""
        for replica in self.replicas.values():
            if replica.loss == loss:
                replica.loss = msgspec.structs.replace(loss, begun=begun)
                self._look(True)

    def _look(self, changed: bool) -> None:
        """See what the replicas' states mean for the service."""
        self.changed = self.changed or changed
        states = [replica.state for replica in self.replicas.values()]
        if self.state.final:
            return
        if all(state is ReplicaState.STOPPED for state in states):
            if self.state is ServiceState.DRAINING:
                self.state = ServiceState.STOPPED
            else:
                self.state = ServiceState.FAILED
                worst = next((replica for replica in self.replicas.values() if replica.message), None)
                if worst is not None:
                    self.message, self.detail = f"replica {worst.number}: {worst.message}", worst.detail
            self.changed = True
        elif self.state is not ServiceState.DRAINING:
            self.state = ServiceState.READY if ReplicaState.READY in states else ServiceState.STARTING
