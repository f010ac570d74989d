"""What users describe of a service, and the states of services and replicas."""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable
from typing import Any, Literal, Self

import msgspec

from pilot_hitl.model import checks
from pilot_hitl.model.checks import Check, Described, Table
from pilot_hitl.model.descriptions import CallOptions, pilot_named, shape_of
from pilot_hitl.model.resources import Shape

SpeculativePolicy = Literal["", "allow", "defer", "refuse"]
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
_HANDLER = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
MAX_REPLICAS = 10_000


class ServiceState(enum.IntEnum):
    """State of a service."""

    STARTING = 0
    """No replica is ready yet, or none at the moment."""
    READY = 1
    DRAINING = 2
    """It takes nothing new and finishes what waits."""
    STOPPED = 3
    FAILED = 4

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self >= ServiceState.STOPPED


class ReplicaState(enum.IntEnum):
    """State of a replica; one that is started again is STARTING."""

    STARTING = 0
    READY = 1
    UNHEALTHY = 2
    """It does not answer; it is being ended."""
    STOPPED = 3


class LossCause(enum.IntEnum):
    """Why a replica serves no more."""

    ENDED = 0
    """It was told to, or had nothing in its handler."""
    DIED = 1
    """Its process ended by itself: a crash, a signal, the kernel's OOM killer."""
    HUNG = 2
    """Its handler did not return within ``request_timeout``."""
    SILENT = 3
    """Nothing was heard of it."""
    CUT = 4
    """The way to it was lost; it may live."""


class ServiceSettings(
    msgspec.Struct, metaclass=Described, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Everything that is said of a service but what it runs; attributes as in :class:`ServiceDescription`."""

    name: str = ""
    replicas: int = 1
    max_batch: int = 1
    max_wait: float = 0.0
    max_queue: int = 16384
    max_concurrency: int = 100
    cores: int = 1
    gpus: float = 0.0
    memory: int = 0
    environment: dict[str, str] = {}
    start_timeout: float = 300.0
    request_timeout: float = 0.0
    drain_timeout: float = 60.0
    restarts: int = 5
    backoff: float = 0.5
    idempotent: bool = True
    speculative: SpeculativePolicy = ""
    pilot: str = ""

    def verify(self) -> Self:
        """Return the settings with plain values: these, where all are already.

        Raises:
            ValueError: an attribute is missing or cannot be meant; the message names it and the remedy.
        """
        if isinstance(self.name, str) and not self.name:
            _service_name("name", "")
        return _SETTINGS.plain(self)

    def _options(self) -> CallOptions:
        return CallOptions(cores_per_rank=self.cores, gpus_per_rank=self.gpus, mem_per_rank=self.memory)

    @property
    def shape(self) -> Shape:
        """What each replica asks for."""
        return shape_of(self._options())

    @property
    def speculation(self) -> str:
        """What happens to speculative requests: ``allow``, ``defer`` or ``refuse``."""
        return self.speculative or ("allow" if self.idempotent else "defer")


class ServiceDescription(ServiceSettings, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A long-lived endpoint with a name: a Python handler that stays loaded.

    Attributes:
        name: by which tasks and scripts find it; letters, digits, ``.``, ``_``, ``-``.
        handler: ``"module:Class"``, or a class or function. A class is made once a replica, its ``setup()`` is called,
            and its ``__call__`` answers requests; a function answers them itself. Any of them may be ``async``: a
            replica has one event loop for as long as it lives. Generators are refused.
        kwargs: keyword arguments for the class.
        replicas: processes that serve it, started concurrently. Default 1.
        max_batch: how many requests one call may get. Above 1 the handler gets a list and returns a list with one
            result an item; with 1, the default, it gets and returns one item.
        max_wait: seconds that a lone request may be held for company. Default 0: never.
        max_queue: how many requests may wait at a replica; more are refused as ``Overloaded``. Default 16384.
        max_concurrency: how many requests an ``async`` handler may be in the middle of; with ``max_batch`` above 1 it
            is one batch. Other handlers answer one call after the other. Default 100.
        cores: of each replica. Default 1.
        gpus: of each replica. Default 0.
        memory: MB of each replica, 0 for "not counted"; one that uses more is ended and started again.
        environment: variables set for the replicas, over the pilot's own environment.
        start_timeout: seconds from the start of a replica's process until it must be ready. Default 300.
        request_timeout: seconds that one call of the handler may take; a replica that takes longer is ended and started
            again. 0, the default, for no bound.
        drain_timeout: seconds that ``stop()`` lets replicas finish what waits. Default 60.
        restarts: how often in a row a replica that died is started again. Default 5.
        backoff: seconds before the first restart, doubled with each further one. Default 0.5.
        idempotent: whether a request may run again when its replica died. Default True.
        speculative: what happens to requests of tasks that speculate: ``"allow"`` (behind all needed ones), ``"defer"``
            until their condition is true, or ``"refuse"``. Default: allow when idempotent, else defer.
        pilot: name or number of the pilot that must run it; default any.
    """

    handler: str | Callable[..., Any] = ""
    kwargs: dict[str, Any] = {}

    def verify(self) -> Self:
        """Return the description with plain values: itself, where all are already.

        Raises:
            ValueError: an attribute is missing or cannot be meant; the message names it and the remedy.
        """
        if isinstance(self.name, str) and not self.name:
            _service_name("name", "")
        if isinstance(self.handler, str) and not self.handler:
            _handler("handler", "")
        return _SERVICES.plain(self)

    @property
    def settings(self) -> ServiceSettings:
        """The part that travels as it is."""
        return ServiceSettings(**{name: getattr(self, name) for name in ServiceSettings.__struct_fields__})

    @property
    def label(self) -> str:
        """What people call the handler."""
        if isinstance(self.handler, str):
            return self.handler
        return _label(self.handler)


def _service_name(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.match(value):
        raise ValueError(
            f"{name}: {checks.shown(value)} cannot name a service: use 1 to 64 letters, digits, '.', '_' or '-'"
        )
    return checks.text(name, value)


def _handler(name: str, value: Any) -> Any:
    if isinstance(value, str):
        if not _HANDLER.match(value):
            raise ValueError(f"{name}: {checks.shown(value)} is not of the form 'module:Class'")
    elif not callable(value):
        raise ValueError(f"{name}: {checks.shown(value)} cannot be called: pass a class, a function, or 'module:Class'")
    else:
        from pilot_hitl.model.handlers import check_handler  # what it needs is not for every process to load

        check_handler(value, _label(value))
    return value


def _label(handler: Callable[..., Any]) -> str:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return str(getattr(handler, "__qualname__", type(handler).__qualname__))


def _kwargs(name: str, value: Any) -> dict[str, Any]:
    made = checks.mapping_of(name, value, "a mapping of keyword arguments")
    return value if type(value) is dict else made


_seconds = checks.number(0, checks.MAX_SECONDS, "seconds")
_CHECKS: dict[str, Check] = {
    "name": _service_name,
    "replicas": checks.whole(1, MAX_REPLICAS),
    "max_batch": checks.whole(1, 1 << 20),
    "max_wait": _seconds,
    "max_queue": checks.whole(1, 1 << 31),
    "max_concurrency": checks.whole(1, 1 << 16),
    "cores": checks.whole(1, 1 << 20),
    "gpus": checks.gpus,
    "memory": checks.whole(0, 1 << 40),
    "environment": checks.variables,
    "start_timeout": checks.number(0.001, checks.MAX_SECONDS, "seconds"),
    "request_timeout": _seconds,
    "drain_timeout": _seconds,
    "restarts": checks.whole(0, 1 << 20),
    "backoff": _seconds,
    "idempotent": checks.flag,
    "speculative": checks.one_of("", "allow", "defer", "refuse"),
    "pilot": pilot_named,
}
_SETTINGS = Table(ServiceSettings, _CHECKS)
_SERVICES = Table(ServiceDescription, _CHECKS | {"handler": _handler, "kwargs": _kwargs})
