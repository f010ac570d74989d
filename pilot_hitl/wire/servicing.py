"""Messages about services between clients, the hub and replicas.

What clients and replicas say to each other is in :mod:`pilot_hitl.wire.services`.
"""

from __future__ import annotations

import msgspec

from pilot_hitl.model.services import ReplicaState, ServiceSettings, ServiceState
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.messages import Message, Number

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
    """

    token: Number
    settings: ServiceSettings
    handler: str
    code: bytes = b""
    kwargs: bytes = b""
    path: tuple[str, ...] = ()
    pilot: Number = 0


class StopService(Message, tag=21, frozen=True):
    """End a service; ``drain`` lets its replicas finish what waits. Answered by :class:`ServiceUpdate`."""

    token: Number
    name: str
    drain: bool = True
    reason: str = ""


class FindService(Message, tag=22, frozen=True):
    """Ask for a service by name; answered, and followed, by :class:`ServiceUpdate`."""

    token: Number
    name: str


# --- hub -> client ----------------------------------------------------------------------------------------------------


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


# --- replica -> hub ---------------------------------------------------------------------------------------------------


class ReplicaHello(Message, tag=58, frozen=True):
    """A replica's process began (``endpoint`` empty), or it is ready; again after a lost hub.

    Attributes:
        session, service, number, task: which.
        pid, started, host: of its process.
        endpoint: where it serves callers of its host.
        launch, init: seconds from being asked for to the process, and from there until its handler was set up.
        tcp: where it serves callers of other nodes; empty when its pilot has no others.
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


class ReplicaBeat(Message, tag=59, frozen=True):
    """A replica is alive. ``busy``: seconds that the present call of the handler has run; ``metrics`` is JSON."""

    busy: float = 0.0
    metrics: str = "{}"


class ReplicaUnhealthy(Message, tag=60, frozen=True):
    """The handler does not return within its bound: end this process."""

    reason: str


class ReplicaBye(Message, tag=61, frozen=True):
    """A replica ends: it was told to (``failed`` False), or its handler could not be set up."""

    session: str
    service: str
    number: Number
    task: Number
    failed: bool = False
    message: str = ""
    detail: str = ""


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


class ReplicaReport(Message, tag=66, frozen=True):
    """Send a beat with present metrics now."""


FromReplica = ReplicaHello | ReplicaBeat | ReplicaUnhealthy | ReplicaBye
ToReplica = ReplicaWelcome | ReplicaStop | ReplicaDecide | ReplicaReport | m.Refused | m.Reconnect
ToHub = m.ToHub | StartService | StopService | FindService | FromReplica
ToClient = m.ToClient | ServiceUpdate
