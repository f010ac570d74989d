"""Services: endpoints that stay loaded, requested from scripts and from inside tasks."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from pilot_hitl import _offers, errors
from pilot_hitl._channel import Channel
from pilot_hitl._functions import script_path
from pilot_hitl._lanes import Lanes
from pilot_hitl._requestfuture import ServiceFuture
from pilot_hitl._templates import checked
from pilot_hitl.model import checks
from pilot_hitl.model.services import ReplicaState, ServiceDescription, ServiceState
from pilot_hitl.model.states import Truth
from pilot_hitl.wire import messages as m
from pilot_hitl.wire import pickling
from pilot_hitl.wire import servicing as sv
from pilot_hitl.wire.current import CurrentAttempt, current_attempt, current_place
from pilot_hitl.wire.raised import attempt
from pilot_hitl.wire.replicas import KeptBroadcast
from pilot_hitl.wire.services import pack

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._silence import Wanted
    from pilot_hitl.wire.servicing import ReplicaView, ServiceUpdate

_encode = msgspec.msgpack.Encoder().encode


class Service:
    """A service of a session. Safe to use from several threads.

    Requests go straight to a replica, the less busy of two; while none is ready they wait here. A request whose replica
    dies is sent to another one, unless the service is described with ``idempotent=False``.

    Attributes:
        name: of the service.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._in_task = current_attempt() is not None
        lanes = Lanes(client.name, name, client.keyring(), client.services.here, client.hub_endpoint)
        self._channel = Channel(name, lanes, client, self._want)
        self._changed = threading.Condition()
        self._update: ServiceUpdate | None = None
        self._error: BaseException | None = None
        self._description = b""
        self._generation = 0

    # --- requests -----------------------------------------------------------------------------------------------

    def request(self, item: Any, *, method: str = "", timeout: float | None = None) -> ServiceFuture:
        """Send one item to the handler; return the future of its result.

        The item's present value counts: arrays may be changed again after return. Arrays of numpy and tensors of torch
        above 16 kB are not pickled but travel as they are.

        Args:
            item: what the handler gets.
            method: of the handler, called with the item alone; default the handler itself, which may get more items of
                other requests at the same time.
            timeout: seconds after which the future raises :class:`ServiceTimeout`; default none.

        Raises:
            PayloadError: it cannot be pickled.

        The future raises what the handler raised, :class:`Overloaded` when too many requests wait at the replica, and
        other errors below :class:`ServiceError`.
        """
        body, buffers = self._packed(item)
        policy, condition = self._speculation()
        return self._channel.send(
            body, buffers, method=method, timeout=timeout, speculative=policy, condition=condition
        )

    def requests(self, items: Iterable[Any], *, timeout: float | None = None) -> list[ServiceFuture]:
        """Send many items; return their futures, in order. Only as many are under way as the replicas have use for.

        Raises:
            PayloadError: one cannot be pickled; those before it are sent.
        """
        futures: list[ServiceFuture] = []
        policy, condition = self._speculation()
        try:
            for item in items:
                body, buffers = self._packed(item)
                futures.append(
                    self._channel.send(
                        body, buffers, timeout=timeout, gather=True, speculative=policy, condition=condition
                    )
                )
                if len(futures) % 256 == 0:
                    self._channel.push()
        finally:
            self._channel.push()
            if futures:
                # Somebody must go on sending when the first are answered, whatever the caller looks at first.
                futures[-1].watch()
        return futures

    def map(self, items: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        """Send many items and return their results, in order.

        Raises:
            As ``result()`` of the first one that ended badly.
        """
        return [future.result() for future in self.requests(items, timeout=timeout)]

    def broadcast(
        self, item: Any, *, method: str = "", timeout: float | None = None, keep: bool | str = False
    ) -> list[ServiceFuture]:
        """Send one item to every replica; return their futures, by number of the replica.

        A replica that is not ready yet gets it when it is. One that is started again later gets only what was kept.

        Args:
            item: what the handlers get.
            method: of them, as of :meth:`request`.
            timeout: of each request.
            keep: remember it on disk, and let every replica that starts, or starts again, take it in before it answers
                anybody; in the order in which they were kept. ``True`` puts it in the place of the last one that was
                kept for this method, a text in that of the last one of this name, such as ``keep="weights"``.

        Raises:
            PayloadError: it cannot be pickled.
            ServiceStopped: with ``keep``: the service was described anew.
            OSError: with ``keep``: the session's folder takes nothing more.
        """
        body, buffers = self._packed(item)
        if keep:
            self._keep(keep if isinstance(keep, str) else f"{method}()", method, body, buffers)
        update = self._known()
        numbers = [r.number for r in update.replicas if r.state is not ReplicaState.STOPPED]
        return [self._channel.send(body, buffers, method=method, timeout=timeout, replica=number) for number in numbers]

    def call(self, method: str, item: Any = None, *, timeout: float | None = None) -> Any:
        """Call a method of one replica's handler and return its result; as ``request(…, method=…).result()``."""
        return self.request(item, method=method, timeout=timeout).result()

    def _keep(self, key: str, method: str, body: bytes, buffers: list[bytes]) -> None:
        self._known()
        client, frames = self._client, [body, *buffers]
        blob, _size = client.blobs.put(frames)
        broadcast = KeptBroadcast(key, method, blob, tuple(map(len, frames)))
        client.request(lambda token: sv.KeepBroadcast(token, self.name, self._generation, broadcast))

    def _speculation(self) -> tuple[str, int]:
        """Return ``(policy, condition)`` when the running task speculates; else an empty policy.

        Raises:
            ServiceError: the service refuses requests of tasks that speculate.
        """
        condition = self._client.services.condition_here() if self._in_task else 0
        if not condition:
            return "", 0
        policy = self._known().speculation
        if policy == "refuse" and self._client.services.condition_here(again=True):
            error = errors.ServiceError(
                f"service {self.name!r} refuses requests of tasks that speculate: make them in a task that is needed, "
                "or describe it with speculative='defer'"
            )
            error.service = self.name
            raise error
        return ("", 0) if policy == "refuse" else (policy, condition)

    def _packed(self, item: Any) -> tuple[bytes, list[bytes]]:
        packed, error = attempt(partial(pack, item))
        if packed is None:
            raise errors.PayloadError(
                f"a request to service {self.name!r} cannot be pickled: {type(error).__name__}: {error}"
            ) from error
        body, buffers = packed
        return body, [bytes(buffer) for buffer in buffers] if buffers else []

    # --- life ---------------------------------------------------------------------------------------------------

    def wait_ready(self, timeout: float | None = None, *, replicas: int = 1) -> Service:
        """Wait until so many replicas are ready, and return the service.

        Raises:
            TimeoutError: not within ``timeout`` seconds.
            PilotFailed: no pilot is left on which one could be.
            ServiceFailed, ServiceStopped, ServiceError: it never will be.
        """

        def reached() -> bool:
            return self._error is not None or (
                self._update is not None
                and (self._update.state.final or sum(1 for r in self._update.replicas if r.endpoint) >= replicas)
            )

        there = self._client.pilots_left.wait(None, self._changed, reached, timeout, self._want)
        with self._changed:
            if not there:
                said = "; ".join(f"replica {r.number}: {r.message}" for r in self.replicas if r.message)
                raise TimeoutError(
                    f"service {self.name!r} had not {replicas} replicas ready within {timeout} s: it is "
                    f"{self.state.name}{f' ({said})' if said else ''}; is there a pilot with free cores?"
                )
            if self._error is not None:
                raise errors.fresh(self._error)
            update = self._update
        if update is not None and update.state.final:
            kind = errors.ServiceFailed if update.state is ServiceState.FAILED else errors.ServiceStopped
            error = kind(f"service {self.name!r} is {update.state.name}: {update.message}")
            error.service, error.detail = self.name, update.detail
            raise error
        return self

    def stop(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """End the service and wait for that; requests that wait are answered first, with ``drain``.

        New requests end with :class:`ServiceStopped`. Harmless when it has stopped.

        Raises:
            TimeoutError: it did not stop within ``timeout`` seconds.
        """
        if self.state.final or self._error is not None:
            return
        end = None if timeout is None else time.monotonic() + timeout
        with self._client.silence.waiting(self._want_end):
            self._stop(end, timeout, drain=drain)

    def _stop(self, end: float | None, timeout: float | None, *, drain: bool) -> None:
        if drain:
            self._channel.settle(timeout)
        self._client.request(lambda token: sv.StopService(token, self.name, drain, "it was stopped by the script"))
        with self._changed:
            left = None if end is None else max(0.0, end - time.monotonic())
            ended = self._changed.wait_for(lambda: self.state.final or self._error is not None, left)
        if not ended:
            raise TimeoutError(f"service {self.name!r} did not stop within {timeout} s")

    @property
    def state(self) -> ServiceState:
        """Its state, as last heard."""
        return self._update.state if self._update is not None else ServiceState.STARTING

    @property
    def replicas(self) -> list[ReplicaView]:
        """Its replicas, as last heard: ``number``, ``state``, ``endpoint``, ``message``, ``starts``, and more.

        ``failures`` are in a row, and ``loss`` says why the last one of this number serves no more.
        """
        return list(self._update.replicas) if self._update is not None else []

    @property
    def pending(self) -> int:
        """How many requests of this process are not answered yet."""
        return self._channel.pending

    def info(self) -> dict[str, Any]:
        """Return what the hub knows of it, with the replicas' metrics; as ``pilot-hitl service show --json``."""
        found: dict[str, Any] = self._client.query("service", {"session": self._client.name, "name": self.name})
        return found

    def _known(self) -> ServiceUpdate:
        with self._changed:
            self._changed.wait_for(lambda: self._update is not None or self._error is not None, 60.0)
            if self._error is not None:
                raise errors.fresh(self._error)
            if self._update is None:
                raise errors.HubUnreachable(f"the hub says nothing of service {self.name!r}")
            return self._update

    def _want(self, wanted: Wanted) -> None:
        """Say what requests wait for that no replica has, see :class:`Wanted`."""
        update = self._update
        if update is None:
            return
        starting = [replica for replica in update.replicas if not replica.endpoint]
        wanted.moves = wanted.moves or len(starting) < len(update.replicas)
        wanted.tasks += [(replica.task, 1) for replica in starting if replica.task]
        for why in {replica.message for replica in starting if replica.message} or {update.message}:
            if why and len(starting) == len(update.replicas):
                wanted.said[f"service {self.name} {why}"] = f"service {self.name!r} is {update.state.name}: {why}"
        begun = [replica for replica in starting if replica.host and not replica.message]
        if begun and len(starting) == len(update.replicas) and not self._client.pilots_left.why:
            text = f"replica {begun[0].number} runs on {begun[0].host}, and its handler is not set up yet"
            wanted.said[f"service {self.name} setup"] = f"service {self.name!r} is {update.state.name}: {text}"

    def _want_end(self, wanted: Wanted) -> None:
        """Say what stopping waits for, see :class:`Wanted`."""
        left = self.pending
        waits = f"it stops when {left} request{'s are' if left > 1 else ' is'} answered" if left else "its replicas end"
        wanted.said[f"service {self.name} ends"] = f"service {self.name!r} is {self.state.name}: {waits}"

    # --- what the client does -----------------------------------------------------------------------------------

    def on_update(self, update: ServiceUpdate) -> None:
        """Take in what the hub says; in the I/O thread."""
        with self._changed:
            before, self._update, self._error = self._update, update, None
            self._generation = update.generation
            # Within the lock: whoever is woken finds the replicas, whose request ends the state, that it is told of.
            self._channel.update(update)
            self._changed.notify_all()
        if before is not None and self._description and not self._in_task:
            _tell_restarts(self.name, before, update)

    @property
    def follows(self) -> bool:
        """Whether it is of whatever description the name stands for, as the script that gave none has it."""
        return not self._description

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the name: inside a task it is the session's service again."""
        return _service_here, (self.name,)

    def fail(self, error: BaseException) -> None:
        """End everything: the hub refused it, or the session ended."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
        self._channel.close(error)

    def __repr__(self) -> str:
        ready = sum(1 for replica in self.replicas if replica.endpoint)
        return f"<Service {self.name!r} {self.state.name}, {ready} of {len(self.replicas)} replicas ready>"


class Services:
    """The services that a client uses, by name.

    Attributes:
        here: where this process runs.
    """

    def __init__(self, client: Client) -> None:
        """Start without any."""
        self.here = current_place()
        self._client = client
        self._lock = threading.Lock()
        self._by_name: dict[str, Service] = {}
        self._all: list[Service] = []
        self._asked: dict[int, tuple[Service, m.Message]] = {}
        self._place: tuple[CurrentAttempt | None, int] = (None, 0)

    def start(self, description: ServiceDescription) -> Service:
        """Start a service; see :meth:`Session.start_service`."""
        if not isinstance(description, ServiceDescription):
            raise errors.DescriptionError(
                f"start_service() takes a ServiceDescription, not {type(description).__name__}"
            )
        description = checked(description, "start_service")
        client = self._client
        handler = description.handler
        reached: set[str] = set()
        kwargs = _packed_kwargs(description, reached)
        if isinstance(handler, str):
            reached.add(handler.partition(":")[0])
        packer = client.packer
        packer.manifest.reach(reached)
        code = b"" if isinstance(handler, str) else packer.pack(handler).code
        modules, fingerprint = packer.manifest.current(), client.keys.service(handler, description.kwargs)
        pilot = _offers.pilot_number(client, description.pilot, "")
        settings, label, path = description.settings, description.label, script_path()
        described = sv.StartService(
            0, settings, label, code, kwargs, path, pilot, modules=modules, fingerprint=fingerprint
        )
        return self._ask(
            description.name,
            lambda token: msgspec.structs.replace(described, token=token),
            hashlib.blake2b(_encode(described.meaning())).digest(),
        )

    def find(self, name: str) -> Service:
        """Return the service of this name, whoever started it; see :meth:`Session.service`."""
        if not isinstance(name, str):
            raise errors.DescriptionError(f"service: {checks.shown(name)} is no name; write session.service('name')")
        with self._lock:
            known = self._by_name.get(name)
        if known is not None and known._error is None:
            return known
        service = self._ask(name, lambda token: sv.FindService(token, name))
        service._known()
        return service

    def condition_here(self, *, again: bool = False) -> int:
        """Return the undecided condition of the task that this code runs in, 0 when it is needed.

        Asks the hub once an attempt, and with ``again`` whether it is still undecided.
        """
        attempt = current_attempt()
        if attempt is None:
            return 0
        known, condition = self._place
        if known != attempt or (again and condition):
            facts = self._client.query("task", {"session": self._client.name, "task": attempt.name})
            undecided = facts["condition_truth"] == Truth.UNDECIDED.name
            condition = int(facts["condition"]) if undecided else 0
            self._place = attempt, condition
        return condition

    def _ask(self, name: str, make: Callable[[int], m.Message], description: bytes = b"") -> Service:
        """Return the service of this name; with a ``description`` only one that is started with the same."""
        client = self._client
        with self._lock:
            service = self._by_name.get(name)
            stale = service is None or service._error is not None
            if service is not None and description:
                service._channel.push()  # what it was asked before may still be answered, if it is described anew
            if (
                service is None
                or stale
                or (description and (service.state.final or service._description != description))
            ):
                service = self._by_name[name] = Service(client, name)
                service._description = description
                self._all.append(service)
            token = client.new_token()
            message = make(token)
            self._asked[token] = (service, message)
        client.tell(message)
        return service

    # --- in the I/O thread --------------------------------------------------------------------------------------

    def on_update(self, update: ServiceUpdate) -> None:
        """Take in what the hub says."""
        asked = self._asked.pop(update.token, None) if update.token else None
        if asked is not None:
            asked[0].on_update(update)
            return
        generation = update.generation
        for service in [each for each in self._all if each.name == update.name and each._error is None]:
            # What the script described itself stays what it is; what it found is whatever the name stands for.
            if service._generation == generation or (service.follows and 0 < service._generation < generation):
                service.on_update(update)

    def refused(self, token: int, error: BaseException) -> bool:
        """Take in that the hub refuses; return whether it was about a service."""
        asked = self._asked.pop(token, None)
        if asked is None:
            return False
        refused = asked[0]
        refused.fail(error)
        with self._lock:
            others = [each for each in self._all if each.name == refused.name and each._error is None]
            if others and self._by_name.get(refused.name) is refused:
                self._by_name[refused.name] = others[-1]  # it goes on as it was
        return True

    def reopened(self) -> None:
        """A new hub answers: ask again for what is used."""
        waiting = {id(service) for service, _ in self._asked.values()}
        for _, message in list(self._asked.values()):
            self._client.tell(message)
        for service in list(self._all):
            if service._error is None and id(service) not in waiting and not service.state.final:
                token = self._client.new_token()
                message = sv.FindService(token, service.name, 0 if service.follows else service._generation)
                self._asked[token] = (service, message)
                self._client.tell(message)

    def abandon(self, reason: BaseException) -> None:
        """Give up in a forked child."""
        for service in self._all:
            service._error = reason
            service._channel.abandon(reason)

    def close(self, reason: BaseException) -> None:
        """The session ended."""
        for service in list(self._all):
            service.fail(reason)


def _service_here(name: str) -> Service:
    from pilot_hitl.session import service  # it imports this module

    return service(name)


def _tell_restarts(name: str, before: ServiceUpdate, update: ServiceUpdate) -> None:
    """Say on standard error that a replica is started again: what it knew is gone, and nothing else shows it."""
    known = {replica.number: replica for replica in before.replicas}
    for replica in update.replicas:
        old = known.get(replica.number)
        if old is None or not 0 < old.starts < replica.starts:
            continue
        why = old.message or (replica.loss.message if replica.loss is not None else "") or "it ended"
        line = (
            f"pilot-hitl: replica {replica.number} of service {name!r} is started again ({why}); of what it was told "
            "it knows only what broadcast(…, keep=True) kept\n"
        )
        with suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            sys.stderr.write(line)


def _packed_kwargs(description: ServiceDescription, reached: set[str]) -> bytes:
    if not description.kwargs:
        return b""
    packed, error = attempt(partial(pickling.dumps, description.kwargs, reached))
    if packed is None:
        raise errors.PayloadError(
            f"kwargs of service {description.name!r} cannot be pickled: {type(error).__name__}: {error}"
        ) from error
    return packed
