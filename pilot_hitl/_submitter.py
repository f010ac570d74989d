"""Submitting: what a session, a branch and an ``options(…)`` handle have in common."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, overload

import msgspec

from pilot_hitl import _offers, _templates, errors
from pilot_hitl._files import Look
from pilot_hitl._functions import PackedFunction
from pilot_hitl._maps import MapSequence
from pilot_hitl._outbox import BULK_BYTES, BULK_TASKS, UNMARKED, Kind, Marks
from pilot_hitl._places import Ground, Place, here
from pilot_hitl._staging import Staging
from pilot_hitl.futures import Origin, TaskFuture, Waitable, flatten
from pilot_hitl.model.conditions import Term
from pilot_hitl.model.descriptions import CallOptions, TaskDescription, shape_of
from pilot_hitl.model.files import File
from pilot_hitl.model.staging import Directive
from pilot_hitl.wire import values

if TYPE_CHECKING:
    from typing import Self

    from pilot_hitl._client import Client
    from pilot_hitl.wire.completed import Completed

P = ParamSpec("P")
R = TypeVar("R")
_NUMBERS = frozenset({int, float, bool, type(None)})


class Plan(NamedTuple):
    """What all calls of one function through one handle share.

    ``prefix`` is empty when they have no key. ``reads``: what they depend on beside their arguments.
    """

    kind: Kind
    origin: Origin
    prefix: bytes
    reads: tuple[str | File, ...] = ()


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


class _Sources:
    """Numbers the futures that are met as sources of one executable's staging."""

    __slots__ = ("_client", "found")

    def __init__(self, client: Client) -> None:
        self._client = client
        self.found: dict[int, TaskFuture[Any]] = {}

    def __call__(self, value: object) -> int:
        try:
            future = self._client.future_of(value)
        except errors.PayloadError as error:
            raise ValueError(str(error)) from None
        if future is None:
            raise ValueError(f"{value!r} is no future of this session's tasks; write (future, 'name in its sandbox')")
        if not future._origin.executable:
            raise ValueError(
                f"{future!r} is a function's call, which has no sandbox to take files from: let the function write "
                "where you say, name that path as the source, and submit with after=[future]"
            )
        self.found[future._id] = future
        return list(self.found).index(future._id) + 1


class _Executable(NamedTuple):
    """An executable that is about to be submitted.

    ``inward``: what it stages in; ``futures``: whether futures are among it.
    """

    kind: Kind
    origin: Origin
    body: bytes
    deps: dict[int, TaskFuture[Any]]
    inward: list[Directive]
    futures: bool


def _refuse_outside(inward: list[Directive]) -> None:
    """Refuse inputs of a speculative task that could not be undone.

    Raises:
        DescriptionError: there is one.
    """
    for each in inward:
        if each.outside:
            what = "moves its source away" if each.action == "move" else "has its target outside of the sandbox"
            raise errors.DescriptionError(
                f"{each.text}: it {what}, which cannot be undone when the branch is not chosen; copy into the sandbox, "
                "or say effects='outside' so that the task waits for the answer"
            )


class Submitter:
    """Submits tasks under some options and, in a branch, some assumed answers. Safe to use from several threads."""

    def __init__(
        self, client: Client, options: CallOptions, terms: frozenset[Term], ground: Ground | None = None
    ) -> None:
        """Use the options for calls and the terms for everything; ``ground`` says whose work it is."""
        self._client = client
        self._options = options
        self._terms = terms
        self._ground = client.ground if ground is None else ground
        self._place: Place | None = None
        self._plans: dict[bytes, Plan] = {}

    def _here(self) -> Self:
        """Return the handle that means the same where the calling code runs: in a block, a body, a task.

        Raises:
            BranchDiscarded: in a body whose branch was not chosen.
        """
        place = here(self._client)
        if place is None:
            return self
        known = place.scopes.get(id(self))
        if known is None:
            known = place.scopes[id(self)] = (self, self._moved(place))
        moved: Self = known[1]
        return moved

    @property
    def _staging(self) -> Staging | None:
        return None if self._place is None else self._place.staging

    def _moved(self, place: Place) -> Self:
        moved = copy.copy(self)
        moved._terms = self._terms | place.terms
        moved._ground = place.ground
        moved._place = place
        moved._plans = {}
        return moved

    # --- executables --------------------------------------------------------------------------------------------

    @overload
    def submit(self, tasks: TaskDescription, *, after: Waitable | Iterable[Waitable] = ()) -> TaskFuture[Completed]: ...
    @overload
    def submit(
        self, tasks: Iterable[TaskDescription], *, after: Waitable | Iterable[Waitable] = ()
    ) -> list[TaskFuture[Completed]]: ...
    def submit(
        self, tasks: TaskDescription | Iterable[TaskDescription], *, after: Waitable | Iterable[Waitable] = ()
    ) -> TaskFuture[Completed] | list[TaskFuture[Completed]]:
        """Submit an executable, or many as one bulk; return the future or futures of their :class:`Completed`.

        All of them are looked at before the first is submitted. They start when the tasks of the futures in ``after``
        have succeeded, and assume what those assume.

        Raises:
            DescriptionError: a description cannot be meant.
            CannotFit: no pilot of the session could ever hold it.
            ContradictoryCondition: ``after`` names futures of branches that exclude each other.
            SessionClosed, HubUnreachable: the session ended.
        """
        me = self._here()
        if isinstance(tasks, TaskDescription):
            return me._submit([_templates.verified(tasks)], after)[0]
        return me._submit(_templates.as_list(tasks), after)

    def _submit(
        self, tasks: Sequence[TaskDescription], after: Waitable | Iterable[Waitable]
    ) -> list[TaskFuture[Completed]]:
        deps = self._after(after)
        terms = self._terms.union(*(dep.condition for dep in deps.values()))
        planned: list[_Executable] = []
        for task in tasks:
            planned.append(self._plan_executable(task, deps, terms, planned[-1] if planned else None))
        look = self._ground.keys.look()
        return [self._submit_one(task, plan, look) for task, plan in zip(tasks, planned, strict=True)]

    def _after(self, after: Waitable | Iterable[Waitable]) -> dict[int, TaskFuture[Any]]:
        deps = _Deps(self._client)
        if isinstance(after, str | bytes):
            raise errors.DescriptionError(f"after: give futures of this session's tasks, not {type(after).__name__}")
        try:
            for future in flatten(after):
                if deps(future) is None:
                    raise errors.DescriptionError(f"after: {future!r} is no future of this session's tasks")
        except (TypeError, RecursionError) as error:
            raise errors.DescriptionError(f"after: give futures of this session's tasks: {error}") from error
        self._client.check_declared(deps.found, self._staging)
        return deps.found

    def _submit_one(self, task: TaskDescription, plan: _Executable, look: Look) -> TaskFuture[Completed]:
        key, note = self._key_of(task, plan, look)
        return self._client.submit(plan.kind, plan.origin, plan.body, key, note, self._staging)

    def _key_of(self, task: TaskDescription, plan: _Executable, look: Look) -> tuple[bytes, bytes]:
        """Return key and note of an executable: its description, its files, and the key of what it comes after."""
        keys = self._ground.keys
        if task.key:
            return keys.described(b"executable", b"explicit " + task.key.encode(), [])
        before = [dep._key for dep in plan.deps.values()]
        if not all(before):
            return b"", b""  # what it reads may be new on the next run
        content = _templates.content_of(task, plan.inward if plan.futures else None)
        files = look.of_task(task, plan.inward, _templates.absolute(task.sandbox))
        return keys.described(b"executable", b"".join([content, *before]), files)

    def _plan_executable(
        self,
        task: TaskDescription,
        deps: dict[int, TaskFuture[Any]],
        terms: frozenset[Term],
        before: _Executable | None,
    ) -> _Executable:
        client, shape = self._client, shape_of(task)
        sources = _Sources(client)
        staged = _templates.staging_of(task, sources)
        if sources.found:
            client.check_declared(sources.found, self._staging)
            deps = deps | sources.found
            terms = terms.union(*(dep.condition for dep in sources.found.values()))
        if terms and task.effects != "outside":
            _refuse_outside(staged[0])
        pilot = _offers.pilot_number(client, task.pilot, task.site)
        _offers.check_fits(client, shape, pilot, task.site)
        kind = Kind(
            template=client.template(_templates.executable_template(task, staged)),
            shape=shape,
            priority=task.priority,
            backfill=task.backfill,
            pilot=pilot,
            site=task.site,
            retries=task.retries,
            effects_outside=task.effects == "outside",
            deps=tuple(deps),
            condition=client.condition(terms, self._staging),
            parent=self._ground.parent,
            keeps_failures=self._keeps_failures(task),
        )
        body = _templates.executable_body(task, sources.found)
        name = task.name or task.executable
        origin = Origin(name, executable=True, program=task.executable, terms=terms, deps=tuple(deps.values()))
        inward = staged[0]
        if before is not None:
            # A list of thousands is mostly of one kind: then they share what is equal.
            kind = before.kind if kind == before.kind else kind
            origin = before.origin if origin.equals(before.origin) else origin
            inward = before.inward if inward == before.inward else inward
        return _Executable(kind, origin, body, deps, inward, bool(sources.found))

    def _keeps_failures(self, described: TaskDescription | CallOptions) -> bool:
        own = described.retry_failed
        return not (self._client.retry_failed if own is None else own)

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
        return self._here()._call(function, args, kwargs)

    def prepared(
        self, function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], TaskFuture[R]]:
        """Pack a call now and return what submits it, which may be called later and from another thread.

        Raises:
            As :meth:`call`; DescriptionError in a ``with`` block of a branch, which nothing may leave later.
        """
        me = self._here()
        if me._staging is not None:
            raise errors.DescriptionError(
                "calls of a branch are submitted when its with block ends, so nothing can hold some of them back: "
                "use an executor without max_workers and initializer there"
            )
        return functools.partial(me._client.submit, *me._packed(function, args, kwargs), None)

    def _call(self, function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskFuture[R]:
        return self._client.submit(*self._packed(function, args, kwargs), self._staging)

    def _packed(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Kind, Origin, bytes, bytes, bytes]:
        client, keys = self._client, self._ground.keys
        packed = client.packer.pack(function)
        deps = _Deps(client)
        body = self._pack(packed.name, args, kwargs, deps)
        packed = client.packer.present(packed)
        plan = self._plans.get(packed.digest) or self._plan(packed)
        kind, origin, prefix, reads = plan
        if deps.found:
            kind, origin = self._joined(plan, deps.found)
        if self._options.key:
            key, note = keys.explicit(prefix, 1)[0], b""
        else:
            key, note = keys.call(prefix, args, kwargs, packed.name, reads) if prefix else (b"", b"")
        return kind, origin, body, key, note

    def map(self, function: Callable[..., R], /, *iterables: Iterable[Any]) -> MapSequence[R]:
        """Run a function once for each element of the iterables, as :func:`map` would; return their lazy futures.

        Takes the iterables in until the shortest ends, while tasks already leave.

        Raises:
            As :meth:`call`; elements before the one at fault are submitted then, and run.
        """
        if not iterables:
            raise errors.DescriptionError("map: give at least one iterable, as in map(function, values)")
        return self._here()._map(function, iterables)

    def _map(self, function: Callable[..., R], iterables: tuple[Iterable[Any], ...]) -> MapSequence[R]:
        client = self._client
        packed = client.packer.pack(function)
        sequence: MapSequence[R] = MapSequence(client)
        try:
            if len(iterables) == 1:
                self._map_one(packed, iter(iterables[0]), sequence)
            else:
                rows = zip(*iterables, strict=False)
                while chunk := list(itertools.islice(rows, BULK_TASKS)):
                    self._map_rows(packed, chunk, sequence)
        finally:
            client.grown(sequence)
        return sequence

    def _map_one(self, function: PackedFunction, source: Iterator[Any], sequence: MapSequence[Any]) -> None:
        keys = self._ground.keys
        plan = self._plans.get(function.digest) or self._plan(function)
        while chunk := list(itertools.islice(source, BULK_TASKS)):
            if not _NUMBERS.issuperset(map(type, chunk)):
                self._map_rows(function, [(value,) for value in chunk], sequence)
                continue
            bodies = [b"\0" + pickle.dumps(((value,), {}), 5) for value in chunk]
            if sum(map(len, bodies)) >= BULK_BYTES:  # very long integers
                self._map_rows(function, [(value,) for value in chunk], sequence)
                continue
            if self._options.key:
                marks = Marks(keys.explicit(plan.prefix, len(chunk)), [])
            else:
                marks = Marks(*keys.atoms(plan.prefix, chunk, plan.reads)) if plan.prefix else UNMARKED
            self._client.submit_bulk(plan.kind, plan.origin, bodies, marks, sequence, self._staging)

    def _map_rows(self, function: PackedFunction, rows: list[tuple[Any, ...]], sequence: MapSequence[Any]) -> None:
        """Submit a chunk whose elements may be anything; neighbours without futures travel together."""
        client = self._client
        packed: list[tuple[bytes, dict[int, TaskFuture[Any]]]] = []
        for row in rows:
            deps = _Deps(client)
            packed.append((self._pack(function.name, row, {}, deps), deps.found))
        function = client.packer.present(function)
        plan = self._plans.get(function.digest) or self._plan(function)
        if self._options.key:
            marks = Marks(self._ground.keys.explicit(plan.prefix, len(rows)), [])
        else:
            keyed = self._ground.keys.calls(plan.prefix, rows, function.name, plan.reads) if plan.prefix else None
            marks = Marks(*keyed) if keyed else UNMARKED
        start = 0
        while start < len(rows):
            found = packed[start][1]
            end, size = start, 0
            while end < len(rows) and packed[end][1].keys() == found.keys() and size < BULK_BYTES:
                size += len(packed[end][0])
                end += 1
            kind, origin = self._joined(plan, found) if found else (plan.kind, plan.origin)
            bodies = [body for body, _ in packed[start:end]]
            theirs = Marks(marks.keys[start:end], marks.notes[start:end])
            client.submit_bulk(kind, origin, bodies, theirs, sequence, self._staging)
            start = end

    def _pack(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], deps: _Deps) -> bytes:
        reached: set[str] = set()
        try:
            body = values.dumps_call(args, kwargs, self._client.blobs, deps, reached)
            if reached:
                self._client.packer.manifest.reach(reached)
        except errors.PilotHitlError:
            raise
        except OSError as error:
            raise errors.PayloadError(f"the arguments of {name} cannot be stored: {error}") from error
        except Exception as error:  # boundary: pickling runs anybody's code
            raise errors.PayloadError(
                f"the arguments of {name} cannot be sent to a worker: {type(error).__name__}: {error}"
            ) from error
        return body

    def _plan(self, packed: PackedFunction) -> Plan:
        client, options, keys = self._client, self._options, self._ground.keys
        shape, pilot = shape_of(options), _offers.pilot_number(client, options.pilot, options.site)
        _offers.check_fits(client, shape, pilot, options.site)
        kind = Kind(
            template=client.template(
                _templates.function_template(packed, options, client.keys.parts(packed.fingerprint))
            ),
            shape=shape,
            priority=options.priority,
            backfill=options.backfill,
            pilot=pilot,
            site=options.site,
            retries=options.retries,
            effects_outside=options.effects == "outside",
            condition=client.condition(self._terms, self._staging),
            parent=self._ground.parent,
            keeps_failures=self._keeps_failures(options),
        )
        origin = Origin(options.name or packed.name, terms=self._terms)
        content = packed.fingerprint
        if content and not (options.key or options.reads or client.keys.is_sure(content, packed.name)):
            content = b""
        if content:
            content += _templates.counted_options(options)
        reads = (*options.reads, *client.keys.captured(packed.fingerprint))
        plan = Plan(kind, origin, keys.prefix(content, options.key), reads)
        self._plans[packed.digest] = plan
        return plan

    def _joined(self, plan: Plan, found: dict[int, TaskFuture[Any]]) -> tuple[Kind, Origin]:
        """Return the kind and origin of a call that takes these futures."""
        deps = tuple(found.values())
        self._client.check_declared(found, self._staging)
        terms = self._terms.union(*(dep.condition for dep in deps))
        condition = self._client.condition(terms, self._staging)
        kind = msgspec.structs.replace(plan.kind, deps=tuple(found), condition=condition)
        return kind, Origin(plan.origin.name, terms=terms, deps=deps)
