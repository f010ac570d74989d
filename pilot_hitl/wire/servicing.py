"""Messages about services between clients, the hub and replicas.

What clients and replicas say to each other is in :mod:`pilot_hitl.wire.services`.
"""

from __future__ import annotations

import msgspec

from pilot_hitl.model.services import LossCause, ReplicaState, ServiceSettings, ServiceState
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.messages import Message, Number
from pilot_hitl.wire.replicas import Begun, KeptBroadcast
from pilot_hitl.wire.waits import Waits

# --- client -> hub ----------------------------------------------------------------------------------------------------


class StartService(Message, tag=20, frozen=True):
    """Start a service, or find the one that runs under this name and is described alike.

    Answered, and followed, by :class:`ServiceUpdate`.

    Attributes:
        settings: of the service.
        handler: ``module:Class``, or what people call the one in ``code``.
        code: the packed handler; empty when ``handler`` is to be imported.
        kwargs: pickled keyword arguments for the handler's class.
        path: folders that the script imports from.
        pilot: number of the pilot that must run it, 0 for any.
        generation: of the description, given by the hub: a later one under the same name has a higher one.
        modules: packed manifest of the script's modules.
        fingerprint: of the handler, its arguments and all code that they reach; empty when they are not known by their
            content.
    """

    token: Number
    settings: ServiceSettings
    handler: str
    code: bytes = b""
    kwargs: bytes = b""
    path: tuple[str, ...] = ()
    pilot: Number = 0
    generation: Number = 0
    modules: bytes = b""
    fingerprint: bytes = b""

    def meaning(self) -> StartService:
        """Return what is equal for equal services, whatever bytes say it."""
        plain = msgspec.structs.replace(self, token=0, generation=0)
        if not self.fingerprint:
            return plain
        return msgspec.structs.replace(plain, code=b"", kwargs=b"", path=(), modules=b"")


class StopService(Message, tag=21, frozen=True):
    """End a service; ``drain`` lets its replicas finish what waits. Answered by :class:`ServiceUpdate`."""

    token: Number
    name: str
    drain: bool = True
    reason: str = ""


class FindService(Message, tag=22, frozen=True):
    """Ask for a service by name; answered, and followed, by :class:`ServiceUpdate`.

    With a ``generation`` it is refused when the service was described anew since.
    """

    token: Number
    name: str
    generation: Number = 0


class KeepBroadcast(Message, tag=23, frozen=True):
    """Let every replica that starts from now on take a broadcast in before it is ready; answered by ``Reply``.

    Attributes:
        name, generation: of the service; it is refused when that was described anew since.
        broadcast: what is kept; its revision is the hub's to give.
    """

    token: Number
    name: str
    generation: Number
    broadcast: KeptBroadcast


# --- hub -> client ----------------------------------------------------------------------------------------------------


class ReplicaLoss(msgspec.Struct, frozen=True, array_like=True):
    """How a replica came to serve no more, the last time.

    Attributes:
        task: that it was.
        endpoint: at which it served callers of its host.
        cause: of a kind.
        message: the same for people.
        begun: which requests it had begun; None when nobody knows.
    """

    task: int
    endpoint: str
    cause: LossCause
    message: str
    begun: Begun | None = None


class ReplicaView(msgspec.Struct, frozen=True, array_like=True):
    """A replica as clients see it.

    Attributes:
        number, task, state: of the replica.
        endpoint: for callers on its host; empty unless it is READY.
        message: what went wrong.
        host: where it runs.
        pilot: its pilot.
        tcp: endpoint for callers on other nodes of the pilot; empty when it has none.
        link: number of the hub's connection to the pilot's agent, through which all others are relayed; 0 while there
            is none. A new number means that what was under way through the last one is lost.
        starts: how often it was started; its second life knows nothing of what the first one held in memory.
        failures: in a row.
        loss: how it came to serve no more, the last time; None when it never did.
    """

    number: int
    task: int
    state: ReplicaState
    endpoint: str = ""
    message: str = ""
    host: str = ""
    pilot: int = 0
    tcp: str = ""
    link: int = 0
    starts: int = 0
    failures: int = 0
    loss: ReplicaLoss | None = None


class ServiceUpdate(Message, tag=42, frozen=True):
    """State of a service, sent whenever it changes to whoever started or found it.

    Attributes:
        token: of the message that this answers; 0 otherwise.
        name: of the service.
        state: its state.
        message: why, when it did not go well; ``detail`` the traceback or the last words of a replica.
        replicas: those that exist.
        max_batch, max_queue, idempotent: as described.
        speculation: what happens to speculative requests.
        generation: of the description that it is of.
    """

    token: int
    name: str
    state: ServiceState
    message: str = ""
    detail: str = ""
    replicas: tuple[ReplicaView, ...] = ()
    max_batch: int = 1
    max_queue: int = 1
    idempotent: bool = True
    speculation: str = "allow"
    generation: int = 0


# --- replica -> hub ---------------------------------------------------------------------------------------------------


class ReplicaHello(Message, tag=58, frozen=True):
    """A replica's process began (``endpoint`` empty), or it is ready; again after a lost hub.

    Attributes:
        session, service, number, task: which.
        pid, started, host: of its process.
        endpoint: where it serves callers of its host.
        launch, init: seconds from being asked for to the process, and from there until its handler was set up.
        tcp: where it serves callers of other nodes; empty when its pilot has no others.
        kept: revision of the kept broadcasts that its handler took in.
    """

    session: str
    service: str
    number: Number
    task: Number
    pid: Number
    started: Number
    host: str
    endpoint: str = ""
    launch: float = 0.0
    init: float = 0.0
    tcp: str = ""
    kept: Number = 0


class ReplicaBeat(Message, tag=59, frozen=True):
    """A replica is alive. ``busy``: seconds that the present call of the handler has run; ``metrics`` is JSON."""

    busy: float = 0.0
    metrics: str = "{}"


class ReplicaUnhealthy(Message, tag=60, frozen=True):
    """The handler does not return within its bound: end this process. ``begun``: what it has."""

    reason: str
    begun: Begun | None = None


class ReplicaBye(Message, tag=61, frozen=True):
    """A replica ends: it was told to (``failed`` False), or its handler could not be set up.

    ``hopeless``: and no other one could be.
    """

    session: str
    service: str
    number: Number
    task: Number
    failed: bool = False
    message: str = ""
    detail: str = ""
    hopeless: bool = False


# --- hub -> replica ---------------------------------------------------------------------------------------------------


class ReplicaWelcome(Message, tag=63, frozen=True):
    """The hub knows the replica. ``hub_pid`` and ``hub_started`` as in ``Welcome``."""

    hub_pid: int
    hub_started: int


class ReplicaStop(Message, tag=64, frozen=True):
    """End. ``drain``: answer first what waits, and take nothing new."""

    drain: bool = True


class ReplicaDecide(Message, tag=65, frozen=True):
    """A condition that requests of this replica may assume was decided."""

    condition: int
    holds: bool


class ReplicaReplay(Message, tag=67, frozen=True):
    """These broadcasts were kept. Take in what is new of them and say hello again; ``known``: it comes by request."""

    broadcasts: tuple[KeptBroadcast, ...]
    known: bool = False


class ReplicaReport(Message, tag=66, frozen=True):
    """Send a beat with present metrics now."""


FromReplica = ReplicaHello | ReplicaBeat | ReplicaUnhealthy | ReplicaBye
ToReplica = ReplicaWelcome | ReplicaStop | ReplicaDecide | ReplicaReplay | ReplicaReport | m.Refused | m.Reconnect
ToHub = m.ToHub | StartService | StopService | FindService | KeepBroadcast | Waits | FromReplica
ToClient = m.ToClient | ServiceUpdate
