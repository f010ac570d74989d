"""Submitting: what a session, a branch and an ``options(…)`` handle have in common."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, overload

import msgspec

from pilot_hitl import _templates, errors
from pilot_hitl._functions import PackedFunction
from pilot_hitl._maps import MapSequence
from pilot_hitl._outbox import BULK_BYTES, BULK_TASKS, Kind
from pilot_hitl.futures import Origin, TaskFuture
from pilot_hitl.model.conditions import Term
from pilot_hitl.model.descriptions import CallOptions, TaskDescription, shape_of
from pilot_hitl.wire import values

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl.wire.completed import Completed

P = ParamSpec("P")
R = TypeVar("R")
_NUMBERS = frozenset({int, float, bool, type(None)})


class Plan(NamedTuple):
    """What all calls of one function through one handle share; ``prefix`` is empty when they have no key."""

    kind: Kind
    origin: Origin
    prefix: bytes


class _Deps:
    """Collects the futures that are met while arguments are pickled."""

    __slots__ = ("_client", "found")

    def __init__(self, client: Client) -> None:
        self._client = client
        self.found: dict[int, TaskFuture[Any]] = {}

    def __call__(self, value: object) -> int | None:
        future = self._client.future_of(value)
        if future is None:
            return None
        identifier = future._id
        self.found[identifier] = future
        return identifier


class Submitter:
    """Submits tasks under some options and, in a branch, some assumed answers. Safe to use from several threads."""

    def __init__(self, client: Client, options: CallOptions, terms: frozenset[Term]) -> None:
        """Use the options for calls and the terms for everything."""
        self._client = client
        self._options = options
        self._terms = terms
        self._plans: dict[bytes, Plan] = {}

    # --- executables --------------------------------------------------------------------------------------------

    @overload
    def submit(self, tasks: TaskDescription) -> TaskFuture[Completed]: ...
    @overload
    def submit(self, tasks: Iterable[TaskDescription]) -> list[TaskFuture[Completed]]: ...
    def submit(
        self, tasks: TaskDescription | Iterable[TaskDescription]
    ) -> TaskFuture[Completed] | list[TaskFuture[Completed]]:
        """Submit an executable, or many as one bulk; return the future or futures of their :class:`Completed`.

        All of them are looked at before the first is submitted.

        Raises:
            DescriptionError: a description cannot be meant.
            CannotFit: no pilot of the session could ever hold it.
            SessionClosed, HubUnreachable: the session ended.
        """
        if isinstance(tasks, TaskDescription):
            return self._submit([tasks])[0]
        return self._submit(_templates.as_list(tasks))

    def _submit(self, tasks: Sequence[TaskDescription]) -> list[TaskFuture[Completed]]:
        for task in tasks:
            _templates.verified(task)
        return [self._submit_one(*planned) for planned in [(task, *self._plan_executable(task)) for task in tasks]]

    def _submit_one(self, task: TaskDescription, kind: Kind, body: bytes) -> TaskFuture[Completed]:
        keys = self._client.keys
        content = b"explicit " + task.key.encode() if task.key else _templates.content_of(task)
        origin = Origin(task.name or task.executable, executable=True, terms=self._terms)
        return self._client.submit(kind, origin, body, keys.content(b"executable", content))

    def _plan_executable(self, task: TaskDescription) -> tuple[Kind, bytes]:
        client, shape = self._client, shape_of(task)
        pilot = client.pilot_number(task.pilot, task.site)
        client.check_fits(shape, pilot)
        kind = Kind(
            template=client.template(_templates.executable_template(task)),
            shape=shape,
            priority=task.priority,
            backfill=task.backfill,
            pilot=pilot,
            retries=task.retries,
            effects_outside=task.effects == "outside",
            condition=client.condition(self._terms),
        )
        return kind, _templates.executable_body(task)

    # --- functions ----------------------------------------------------------------------------------------------

    def call(self, function: Callable[P, R], /, *args: Any, **kwargs: Any) -> TaskFuture[R]:
        """Run a function on the pilot; all keywords are its own. Futures as arguments are dependencies.

        The function and its arguments are packed before this returns, so later changes do not matter.

        Raises:
            PayloadError: the function or an argument cannot be pickled.
            CannotFit: no pilot of the session could ever hold it.
            ContradictoryCondition: its arguments come from branches that exclude each other.
            SessionClosed, HubUnreachable: the session ended.
        """
        client = self._client
        packed = client.packer.pack(function)
        plan = self._plans.get(packed.digest) or self._plan(packed)
        kind, origin, prefix = plan
        deps = _Deps(client)
        body = self._pack(packed.name, args, kwargs, deps)
        if deps.found:
            kind, origin = self._joined(plan, deps.found)
        if self._options.key:
            key = client.keys.explicit(prefix, 1)[0]
        else:
            key = client.keys.call(prefix, args, kwargs, packed.name) if prefix else b""
        return client.submit(kind, origin, body, key)

    def map(self, function: Callable[..., R], /, *iterables: Iterable[Any]) -> MapSequence[R]:
        """Run a function once for each element of the iterables, as :func:`map` would; return their lazy futures.

        Takes the iterables in until the shortest ends, while tasks already leave.

        Raises:
            As :meth:`call`; elements before the one at fault are submitted then, and run.
        """
        if not iterables:
            raise errors.DescriptionError("map: give at least one iterable, as in map(function, values)")
        client = self._client
        packed = client.packer.pack(function)
        plan = self._plans.get(packed.digest) or self._plan(packed)
        sequence: MapSequence[R] = MapSequence(client)
        try:
            if len(iterables) == 1:
                self._map_one(plan, packed.name, iter(iterables[0]), sequence)
            else:
                rows = zip(*iterables, strict=False)
                while chunk := list(itertools.islice(rows, BULK_TASKS)):
                    self._map_rows(plan, packed.name, chunk, sequence)
        finally:
            client.grown(sequence)
        return sequence

    def _map_one(self, plan: Plan, name: str, source: Iterator[Any], sequence: MapSequence[Any]) -> None:
        keys = self._client.keys
        while chunk := list(itertools.islice(source, BULK_TASKS)):
            if not _NUMBERS.issuperset(map(type, chunk)):
                self._map_rows(plan, name, [(value,) for value in chunk], sequence)
                continue
            bodies = [b"\0" + pickle.dumps(((value,), {}), 5) for value in chunk]
            if sum(map(len, bodies)) >= BULK_BYTES:  # very long integers
                self._map_rows(plan, name, [(value,) for value in chunk], sequence)
                continue
            if self._options.key:
                made = keys.explicit(plan.prefix, len(chunk))
            else:
                made = keys.atoms(plan.prefix, chunk) if plan.prefix else []
            self._client.submit_bulk(plan.kind, plan.origin, bodies, made, sequence)

    def _map_rows(self, plan: Plan, name: str, rows: list[tuple[Any, ...]], sequence: MapSequence[Any]) -> None:
        """Submit a chunk whose elements may be anything; neighbours without futures travel together."""
        client = self._client
        packed: list[tuple[bytes, dict[int, TaskFuture[Any]]]] = []
        for row in rows:
            deps = _Deps(client)
            packed.append((self._pack(name, row, {}, deps), deps.found))
        if self._options.key:
            keys = client.keys.explicit(plan.prefix, len(rows))
        else:
            keys = (client.keys.calls(plan.prefix, rows, name) if plan.prefix else None) or []
        start = 0
        while start < len(rows):
            found = packed[start][1]
            end, size = start, 0
            while end < len(rows) and packed[end][1].keys() == found.keys() and size < BULK_BYTES:
                size += len(packed[end][0])
                end += 1
            kind, origin = self._joined(plan, found) if found else (plan.kind, plan.origin)
            bodies = [body for body, _ in packed[start:end]]
            client.submit_bulk(kind, origin, bodies, keys[start:end], sequence)
            start = end

    def _pack(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], deps: _Deps) -> bytes:
        try:
            return values.dumps_call(args, kwargs, self._client.blobs, deps)
        except errors.PilotHitlError:
            raise
        except OSError as error:
            raise errors.PayloadError(f"the arguments of {name} cannot be stored: {error}") from error
        except Exception as error:  # boundary: pickling runs anybody's code
            raise errors.PayloadError(
                f"the arguments of {name} cannot be sent to a worker: {type(error).__name__}: {error}"
            ) from error

    def _plan(self, packed: PackedFunction) -> Plan:
        client, options = self._client, self._options
        shape, pilot = shape_of(options), client.pilot_number(options.pilot, options.site)
        client.check_fits(shape, pilot)
        kind = Kind(
            template=client.template(_templates.function_template(packed, options)),
            shape=shape,
            priority=options.priority,
            backfill=options.backfill,
            pilot=pilot,
            retries=options.retries,
            effects_outside=options.effects == "outside",
            condition=client.condition(self._terms),
        )
        origin = Origin(options.name or packed.name, terms=self._terms)
        plan = Plan(kind, origin, client.keys.prefix(packed.fingerprint, options.key))
        self._plans[packed.digest] = plan
        return plan

    def _joined(self, plan: Plan, found: dict[int, TaskFuture[Any]]) -> tuple[Kind, Origin]:
        """Return the kind and origin of a call that takes these futures."""
        deps = tuple(found.values())
        terms = self._terms.union(*(dep.condition for dep in deps))
        kind = msgspec.structs.replace(plan.kind, deps=tuple(found), condition=self._client.condition(terms))
        return kind, Origin(plan.origin.name, terms=terms, deps=deps)
