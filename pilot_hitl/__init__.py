"""pilot-hitl: a pilot-job runtime in which a person's decision is a service endpoint and no core waits for it.

::

    import pilot_hitl as ph

    with ph.Session("mesh-study") as session:
        session.submit_pilot(ph.PilotDescription(resource="local", cores=8))
        print(session.call(pow, 2, 10).result())

Names are loaded when they are first used, so importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilot_hitl._ask import Prediction
    from pilot_hitl._comm import current_comm
    from pilot_hitl._keys import NotResumableWarning
    from pilot_hitl._lending import lend_resources
    from pilot_hitl._maps import MapSequence
    from pilot_hitl._modules import ModuleChangedWarning
    from pilot_hitl.bars import progress
    from pilot_hitl.bodies import Body
    from pilot_hitl.branches import Branch
    from pilot_hitl.endpoints import Service
    from pilot_hitl.errors import (
        AnswerRefused,
        BadReply,
        BranchDiscarded,
        CannotFit,
        CheckpointError,
        CheckpointExists,
        CheckpointExpired,
        CheckpointWithdrawn,
        ContradictoryCondition,
        DependencyFailed,
        DescriptionError,
        Discarded,
        HandlerFailed,
        HubUnreachable,
        IterationStopped,
        MissingExtra,
        OutOfMemory,
        Overloaded,
        PayloadError,
        PilotError,
        PilotFailed,
        PilotHitlError,
        ServiceError,
        ServiceFailed,
        ServiceStopped,
        ServiceTimeout,
        SessionBusy,
        SessionClosed,
        SessionError,
        TaskCanceled,
        TaskError,
        TaskFailed,
        TaskLost,
        TaskTimeout,
        Undecided,
        UnknownCheckpoint,
        UnknownPlatform,
        UnknownService,
        UnknownSession,
        WorkerDied,
    )
    from pilot_hitl.executor import PilotExecutor
    from pilot_hitl.futures import (
        ALL_COMPLETED,
        FIRST_COMPLETED,
        FIRST_EXCEPTION,
        TaskFuture,
        as_completed,
        wait,
    )
    from pilot_hitl.gates import Answer, Checkpoint
    from pilot_hitl.model.descriptions import CallOptions, PilotDescription, TaskDescription
    from pilot_hitl.model.files import File
    from pilot_hitl.model.resources import Resources
    from pilot_hitl.model.services import ReplicaState, ServiceDescription, ServiceState
    from pilot_hitl.model.states import CheckpointState, PilotState, State
    from pilot_hitl.pilots import Pilot
    from pilot_hitl.session import Session, checkpoint, current_session, service
    from pilot_hitl.wire.classes import ClassChangedWarning
    from pilot_hitl.wire.completed import Completed

__version__ = "0.1.0"

_HOMES = {
    "_ask": ("Prediction",),
    "_comm": ("current_comm",),
    "_lending": ("lend_resources",),
    "bars": ("progress",),
    "bodies": ("Body",),
    "branches": ("Branch",),
    "_keys": ("NotResumableWarning",),
    "_modules": ("ModuleChangedWarning",),
    "_maps": ("MapSequence",),
    "wire.classes": ("ClassChangedWarning",),
    "wire.completed": ("Completed",),
    "endpoints": ("Service",),
    "executor": ("PilotExecutor",),
    "futures": ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION", "TaskFuture", "as_completed", "wait"),
    "gates": ("Answer", "Checkpoint"),
    "model.descriptions": ("CallOptions", "PilotDescription", "TaskDescription"),
    "model.files": ("File",),
    "model.resources": ("Resources",),
    "model.services": ("ReplicaState", "ServiceDescription", "ServiceState"),
    "model.states": ("CheckpointState", "PilotState", "State"),
    "pilots": ("Pilot",),
    "session": ("Session", "checkpoint", "current_session", "service"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "Answer",
    "AnswerRefused",
    "BadReply",
    "Body",
    "Branch",
    "BranchDiscarded",
    "CallOptions",
    "CannotFit",
    "Checkpoint",
    "CheckpointError",
    "CheckpointExists",
    "CheckpointExpired",
    "CheckpointState",
    "CheckpointWithdrawn",
    "ClassChangedWarning",
    "Completed",
    "ContradictoryCondition",
    "DependencyFailed",
    "DescriptionError",
    "Discarded",
    "File",
    "HandlerFailed",
    "HubUnreachable",
    "IterationStopped",
    "MapSequence",
    "MissingExtra",
    "ModuleChangedWarning",
    "NotResumableWarning",
    "OutOfMemory",
    "Overloaded",
    "PayloadError",
    "Pilot",
    "PilotDescription",
    "PilotError",
    "PilotExecutor",
    "PilotFailed",
    "PilotHitlError",
    "PilotState",
    "Prediction",
    "ReplicaState",
    "Resources",
    "Service",
    "ServiceDescription",
    "ServiceError",
    "ServiceFailed",
    "ServiceState",
    "ServiceStopped",
    "ServiceTimeout",
    "Session",
    "SessionBusy",
    "SessionClosed",
    "SessionError",
    "State",
    "TaskCanceled",
    "TaskDescription",
    "TaskError",
    "TaskFailed",
    "TaskFuture",
    "TaskLost",
    "TaskTimeout",
    "Undecided",
    "UnknownCheckpoint",
    "UnknownPlatform",
    "UnknownService",
    "UnknownSession",
    "WorkerDied",
    "__version__",
    "as_completed",
    "checkpoint",
    "current_comm",
    "current_session",
    "lend_resources",
    "progress",
    "service",
    "wait",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'pilot_hitl' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"pilot_hitl.{_HOME_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
