"""Checkpoints: asking people, and work under their likely answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec, TypedDict, TypeVar, Unpack, cast, overload

import msgspec

from pilot_hitl import _templates, errors
from pilot_hitl._maps import MapSequence
from pilot_hitl._shows import Shown
from pilot_hitl._submitter import Submitter
from pilot_hitl.futures import TaskFuture
from pilot_hitl.model.canonical import Json, canonical
from pilot_hitl.model.conditions import Term, equals, holds, matches, one_of
from pilot_hitl.model.descriptions import CallOptions
from pilot_hitl.model.resources import Resources
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.wire import messages as m

if TYPE_CHECKING:
    from pilot_hitl._client import Client

P = ParamSpec("P")
R = TypeVar("R")
Callback = Callable[[], None]


class CheckpointRequest(TypedDict, total=False):
    """What ``checkpoint(name, …)`` takes beside the name; all of it may be left out.

    Attributes:
        question: Markdown.
        choices: JSON values, one of which is the answer.
        form: JSON Schema of the answer, instead of choices; without both any text is an answer.
        iteration: tells apart checkpoints of one name, as in a loop.
        show: text (Markdown), dicts and lists (tables), ``pathlib.Path`` (image, file), matplotlib figures, futures.
        assignees: who may answer; anybody who may write to the session when left out.
        deadline: seconds, timedelta or text such as ``"8h"`` after it opens.
        default: the answer at the deadline.
        reserve: what the continuation will want.
        on_change: when an earlier run asked differently: ``"ask"`` again (default), ``"keep"`` the answer, ``"error"``.
        linger: seconds that the reservation outlives the answer. Default 5.
    """

    question: str
    choices: Sequence[Json]
    form: dict[str, Json]
    iteration: int | None
    show: Sequence[object]
    assignees: Sequence[str]
    deadline: str | float | timedelta | None
    default: Json
    reserve: Resources | None
    on_change: Literal["ask", "keep", "error"]
    linger: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The record of an answer.

    Attributes:
        value: what was answered.
        by: who.
        at: when, seconds since 1970.
        channel: how, such as ``cli``, ``web``, ``python``, ``system`` for a default.
        comment: what they said beside it.
        record: everything the hub recorded of it.
    """

    value: Json
    by: str
    at: float
    channel: str
    comment: str
    record: dict[str, Json] = {}


class Checkpoint:
    """A request to people. Safe to use from several threads.

    Attributes:
        name, iteration: what people see.
        state: as last heard.
        handle: the client's id of it.
    """

    def __init__(self, client: Client, name: str, iteration: int | None, ask: m.Ask) -> None:
        """Made by ``checkpoint(…)``."""
        self.name = name
        self.iteration = iteration
        self.state = CheckpointState.PENDING
        self.handle = ask.handle
        self._client = client
        self._ask = ask
        self._number = 0
        self._answer = ""
        self._record: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._condition = threading.Condition()
        self._listeners: list[Callback] = []
        self._parts: dict[Term, float] = {}
        self._terms: frozenset[Term] = frozenset()

    # --- the answer ---------------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> Json:
        """Return the answer's value; wait up to ``timeout`` seconds for it.

        Raises:
            TimeoutError: nobody answered in time.
            CheckpointExpired: nobody answered before the deadline, and there is no default.
            CheckpointWithdrawn: it was taken back.
        """
        return self.answer(timeout).value

    def answer(self, timeout: float | None = None) -> Answer:
        """Return the record of the answer; wait and raise as :meth:`result`."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._error is not None or self.state.closed, timeout):
                raise TimeoutError(
                    f"checkpoint {self.name!r} ({self.id or 'not open yet'}) was not answered within {timeout} s: "
                    "pilot-hitl inbox list shows what waits for whom"
                )
        self._check()
        record = self._record
        return Answer(
            value=json.loads(self._answer),
            by=str(record.get("by", "")),
            at=float(record.get("answered_at") or 0.0),
            channel=str(record.get("channel", "")),
            comment=str(record.get("comment", "")),
            record=record,
        )

    def done(self) -> bool:
        """Return whether no answer is taken any more."""
        return self.state.closed or self._error is not None

    @property
    def id(self) -> str:
        """``<session>/<n>``, as the command line names it; empty until the hub gave it a number."""
        return f"{self._client.name}/{self._number}" if self._number else ""

    def respond(self, value: Json, comment: str = "") -> None:
        """Answer it from here. After return the answer is on disk and counts.

        Raises:
            AnswerRefused: it does not count, and why.
        """
        number = self.wait_number()
        text = canonical(value)
        self._client.request(lambda token: m.Answer(token, number, text, comment, "python"))

    def wait_number(self, timeout: float | None = 60) -> int:
        """Wait until the hub numbered it, and return the number.

        Raises:
            TimeoutError: no word of the hub within ``timeout`` seconds.
            CheckpointError: it was refused.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._error is not None or self._number > 0, timeout):
                raise TimeoutError(f"checkpoint {self.name!r}: no word of the hub within {timeout} s")
        if self._error is not None:
            raise self._error
        return self._number

    def withdraw(self) -> None:
        """Take it back: nobody can answer it any more, and its branches are discarded."""
        self._client.tell(m.Withdraw(self.handle))

    def release(self) -> None:
        """End its reservation now."""
        self._client.tell(m.Withdraw(self.handle, reservation_only=True))

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self.state is CheckpointState.WITHDRAWN:
            raise errors.CheckpointWithdrawn(f"checkpoint {self.name!r} ({self.id}) was taken back before an answer")
        if not self._answer:
            raise errors.CheckpointExpired(
                f"nobody answered checkpoint {self.name!r} ({self.id}) before its deadline, and it has no default="
            )

    # --- branches -----------------------------------------------------------------------------------------------

    def branch(
        self,
        value: Json | set[Any] | frozenset[Any] = None,
        *,
        one_of: Sequence[Json] | None = None,
        schema: dict[str, Json] | None = None,
        probability: float | None = None,
    ) -> Branch:
        """Return the handle for work that assumes an answer: a value, one of some values, or what fits a schema.

        ``branch("accept")``, ``branch({"accept", "maybe"})``, ``branch(one_of=[…])``, ``branch(schema={…})``.
        ``probability``: how likely it is; without it earlier answers tell.

        Raises:
            DescriptionError: the form does not allow such an answer, or probabilities sum above 1.
            ContradictoryCondition: inside another branch of the same checkpoint.
        """
        term = self._term(value, one_of, schema)
        if probability is not None:
            self._expect(term, probability)
        return Branch(self, term, self._terms | {term})

    def _term(self, value: object, several: Sequence[Json] | None, schema: dict[str, Json] | None) -> Term:
        try:
            if schema is not None:
                return matches(self.handle, schema)
            if several is None and isinstance(value, set | frozenset):
                several = list(value)
            if several is not None:
                for each in several:
                    self._check_allowed(each)
                return one_of(self.handle, several)
            self._check_allowed(value)
            return equals(self.handle, cast("Json", value))  # what is not JSON is refused in there
        except (TypeError, ValueError) as error:
            if isinstance(error, errors.PilotHitlError):
                raise
            raise errors.DescriptionError(f"branch of {self.name!r}: an answer is a JSON value: {error}") from error

    def _check_allowed(self, value: Any) -> None:
        choices = self._ask.choices
        if choices and canonical(value) not in choices:
            raise errors.DescriptionError(
                f"branch of {self.name!r}: {value!r} can never be answered; the choices are {', '.join(choices)}"
            )

    def _expect(self, term: Term, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise errors.DescriptionError(f"branch of {self.name!r}: probability {probability} is not between 0 and 1")
        parts = {**self._parts, term: probability}
        if sum(parts.values()) > 1 + 1e-9:
            raise errors.DescriptionError(
                f"branches of {self.name!r}: their probabilities sum to {sum(parts.values()):g}, above 1"
            )
        self._parts = parts
        self._client.expect(term, probability)

    @overload
    def select(self, futures: Mapping[Any, TaskFuture[R]]) -> SelectedFuture[R]: ...
    @overload
    def select(self, futures: Mapping[Any, Sequence[TaskFuture[R]]]) -> SelectedSequence[R]: ...
    def select(
        self, futures: Mapping[Any, TaskFuture[R]] | Mapping[Any, Sequence[TaskFuture[R]]]
    ) -> SelectedFuture[R] | SelectedSequence[R]:
        """Return the future, or the sequence of futures, of whichever branch becomes real.

        Keys are the answers (or the branches). Does not wait: the future ends when the chosen one does, the sequence
        waits when it is looked into. Both raise :class:`Discarded` when the answer is none of the keys.
        """
        table: dict[Branch, Any] = {
            key if isinstance(key, Branch) else self.branch(key): value for key, value in futures.items()
        }
        if any(isinstance(value, TaskFuture) for value in table.values()):
            return SelectedFuture(self, table)  # a mix is refused by it
        return SelectedSequence(self, table)  # as above

    def choose(self, table: Mapping[Branch, R]) -> R:
        """Return what belongs to the answer, once it is given; waits for it."""
        answer = canonical(self.result())
        for branch, value in table.items():
            if holds(branch.term, answer, _schema_test):
                return value
        raise errors.Discarded(
            f"checkpoint {self.name!r} ({self.id}) was answered {answer}, which nothing was selected for"
        )

    # --- what the session does ----------------------------------------------------------------------------------

    def inside(self, terms: frozenset[Term]) -> None:
        """Say in which branch it is asked."""
        self._terms = terms

    def when_done(self, listener: Callback) -> None:
        """Call ``listener`` once no answer is taken any more, in the session's callback thread, or now."""
        with self._condition:
            if not self.done():
                self._listeners.append(listener)
                return
        listener()

    def update(self, update: m.CheckpointUpdate) -> Callback | None:
        """Take in what the hub says; return what to call back."""
        with self._condition:
            self._number = update.checkpoint
            self.state = update.state
            self._answer = update.answer
            self._record = json.loads(update.record)
            self._condition.notify_all()
        return self._listening() if self.state.closed else None

    def fail(self, error: BaseException) -> Callback | None:
        """Take in that it was refused or that the session ended; return what to call back."""
        with self._condition:
            if not self.state.closed:
                self._error = error
            self._condition.notify_all()
        return self._listening()

    def _listening(self) -> Callback | None:
        listeners, self._listeners = self._listeners, []
        if not listeners:
            return None

        def tell() -> None:
            for listener in listeners:
                listener()

        return tell

    def __repr__(self) -> str:
        return f"<Checkpoint {self.name!r} {self.id} {self.state.name}>"


class Scope(Submitter):
    """A handle to submit through, with options and assumed answers of its own."""

    def options(self, **options: Any) -> Scope:
        """Return a handle whose calls have these options: see :class:`CallOptions`, and ``cores, gpus, memory``.

        Raises:
            DescriptionError: an option is unknown or cannot be meant.
        """
        return OptionScope(self._client, _templates.call_options(self._options, options), self._terms)

    def checkpoint(self, name: str, **request: Unpack[CheckpointRequest]) -> Checkpoint:
        """Ask people; returns at once. See :class:`CheckpointRequest`.

        Raises:
            CheckpointExists: this script asked under this name before, without another ``iteration``.
            DescriptionError: the request cannot be meant.
        """
        return _ask(self._client, self._terms, name, request)


class Branch(Scope):
    """Work that assumes an answer: ``submit``, ``call``, ``map``, ``options``, ``checkpoint``.

    Attributes:
        gate: the checkpoint whose answer is assumed.
        term: what the answer must be.
    """

    def __init__(self, gate: Checkpoint, term: Term, terms: frozenset[Term]) -> None:
        """Made by :meth:`Checkpoint.branch`."""
        client = gate._client
        super().__init__(client, CallOptions(), terms)
        client.condition(terms)
        self.gate = gate
        self.term = term

    @property
    def condition(self) -> frozenset[Term]:
        """All that is assumed, outer branches included."""
        return self._terms

    def __repr__(self) -> str:
        return f"<Branch {self.gate.name!r} {self.term.test.name} {self.term.operand}>"


class OptionScope(Scope):
    """What ``options(…)`` returns: options speak of calls, descriptions speak for themselves."""

    def submit(self, tasks: Any) -> NoReturn:
        """Refuse.

        Raises:
            DescriptionError: always.
        """
        del tasks
        raise errors.DescriptionError("options(…) are for call() and map(): write them into the TaskDescription")


class SelectedFuture(Future[R]):
    """The future of whichever branch becomes real; see :meth:`Checkpoint.select`."""

    def __init__(self, checkpoint: Checkpoint, table: dict[Branch, TaskFuture[R]]) -> None:
        """Follow the checkpoint, then the chosen future.

        Raises:
            DescriptionError: not everything in the table is a future.
        """
        super().__init__()
        if not all(isinstance(value, TaskFuture) for value in table.values()):
            raise errors.DescriptionError("select: give a future for every answer, or a sequence for every answer")
        self._checkpoint = checkpoint
        self._table = table
        checkpoint.when_done(self._chosen)

    def cancel(self) -> bool:
        """Return False: the answer cannot be canceled; cancel the branches' futures."""
        return False

    def _chosen(self) -> None:
        try:
            chosen = self._checkpoint.choose(self._table)
        except errors.PilotHitlError as error:
            self.set_exception(error)
            return
        chosen.add_done_callback(self._follow)

    def _follow(self, chosen: Future[R]) -> None:
        error = chosen.exception()
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(chosen.result())

    def __await__(self) -> Generator[Any, None, R]:
        import asyncio

        return asyncio.wrap_future(self).__await__()


class SelectedSequence(Sequence[TaskFuture[R]]):
    """The futures of whichever branch becomes real; whatever looks into it waits for the answer."""

    def __init__(self, checkpoint: Checkpoint, table: dict[Branch, Sequence[TaskFuture[R]]]) -> None:
        """Keep the candidates."""
        self._checkpoint = checkpoint
        self._table = table

    @property
    def chosen(self) -> Sequence[TaskFuture[R]]:
        """The real ones; waits for the answer.

        Raises:
            Discarded: the answer is none of those that were selected for.
        """
        return self._checkpoint.choose(self._table)

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> TaskFuture[R]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TaskFuture[R]]: ...
    def __getitem__(self, index: int | slice) -> TaskFuture[R] | Sequence[TaskFuture[R]]:
        """Return from the real ones."""
        return self.chosen[index]

    def __iter__(self) -> Iterator[TaskFuture[R]]:
        return iter(self.chosen)

    def results(self, timeout: float | None = None) -> list[R]:
        """Return all values of the real ones, in order; see :meth:`MapSequence.results`."""
        chosen = self.chosen
        if isinstance(chosen, MapSequence):
            return chosen.results(timeout)
        end = None if timeout is None else time.monotonic() + timeout
        return [each.result(None if end is None else max(0.0, end - time.monotonic())) for each in chosen]


def _ask(client: Client, terms: frozenset[Term], name: str, request: CheckpointRequest) -> Checkpoint:
    unknown = set(request) - set(CheckpointRequest.__annotations__)
    if unknown:
        known = ", ".join(CheckpointRequest.__annotations__)
        raise errors.DescriptionError(f"checkpoint: there is no {', '.join(sorted(unknown))}; known are {known}")
    if not name or not isinstance(name, str):
        raise errors.DescriptionError(f"checkpoint: {name!r} is not a name")
    iteration = request.get("iteration")
    key = client.keys.named(b"checkpoint", client.asker, name, "" if iteration is None else str(iteration))
    form, choices = _form(request)
    shown = Shown(client, request.get("show", ()))
    question = request.get("question", "") or name
    everything = terms.union(*(future.condition for future in shown.futures))
    ask = m.Ask(
        handle=client.new_handle(),
        key=key,
        name=name,
        iteration=iteration or 0,
        question=question,
        form=canonical(form),
        choices=choices,
        show=json.dumps(shown.items),
        fingerprint=shown.fingerprint(question, form),
        on_change=_one_of(request.get("on_change", "ask"), "on_change", ("ask", "keep", "error")),
        assignees=_names(request.get("assignees", ())),
        deadline=_templates.seconds(request.get("deadline")),
        default=_default(request, form),
        deps=[future._id for future in shown.futures],
        condition=client.condition(everything),
        reserve=request.get("reserve"),
        linger=float(request.get("linger", 5.0)),
    )
    checkpoint = Checkpoint(client, name, iteration, ask)
    checkpoint.inside(everything)
    client.ask(checkpoint, ask)
    return checkpoint


def _form(request: CheckpointRequest) -> tuple[Json, list[str]]:
    from pilot_hitl.inbox import forms

    choices = request.get("choices")
    if choices is not None:
        if request.get("form") is not None:
            raise errors.DescriptionError("checkpoint: give choices or form, not both")
        if isinstance(choices, str):
            raise errors.DescriptionError(f"choices: write [{choices!r}] for a single one")
        return forms.form_of(list(choices)), [canonical(choice) for choice in choices]
    form: Json = request.get("form")
    if form is None:
        return {"type": "string"}, []
    forms.check_form(form)
    return form, []


def _default(request: CheckpointRequest, form: Json) -> str:
    default = request.get("default")
    if default is None:
        return ""
    from pilot_hitl.inbox import forms

    try:
        forms.validate(default, form)
    except errors.AnswerRefused as error:
        raise errors.DescriptionError(f"default: {error}") from error
    return canonical(default)


def _names(assignees: Sequence[str]) -> list[str]:
    if isinstance(assignees, str):
        return [assignees]
    return [str(each) for each in assignees]


def _one_of(value: str, what: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise errors.DescriptionError(f"{what}: {value!r} is none of {', '.join(allowed)}")
    return value


def _schema_test(schema: str, answer: str) -> bool:
    from pilot_hitl.inbox.forms import matches as fits

    return fits(schema, answer)
