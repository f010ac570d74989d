"""Checkpoints: asking people, and work under their likely answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from sys import intern
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import msgspec

from pilot_hitl import _places, _templates, errors
from pilot_hitl._ask import LIKELY, CheckpointRequest, Form, Prediction
from pilot_hitl._ask import probability as likely
from pilot_hitl._forms import plain
from pilot_hitl._places import Ground
from pilot_hitl._selection import SelectedFuture, SelectedSequence
from pilot_hitl._silence import write
from pilot_hitl.bodies import Body, Decorator, ground_of
from pilot_hitl.branches import Branch, OptionScope, Scope
from pilot_hitl.futures import TaskFuture
from pilot_hitl.inbox.requests import request_id
from pilot_hitl.model.canonical import Json, canonical, cut, not_json
from pilot_hitl.model.conditions import Term, equals, holds, matches, one_of
from pilot_hitl.model.states import CheckpointState, Truth
from pilot_hitl.wire import messages as m

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._silence import Wanted

__all__ = [
    "Answer",
    "Body",
    "Branch",
    "Checkpoint",
    "CheckpointRequest",
    "OptionScope",
    "Prediction",
    "Scope",
    "SelectedFuture",
    "SelectedSequence",
]

R = TypeVar("R")
Callback = Callable[[], None]
FIRST_WORD = 60.0
"""Seconds to wait for the hub's first word of a question, which comes as soon as the hub has read it."""
NOTHING: Final = object()
_UNSAID: Final[Mapping[Term, float]] = {}
"""What is expected of the branches of a question while nobody said anything."""


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
        key: by which a re-run finds it.
        client: of the session that asks.
        form: what may be answered.
        predictions: the answers that the asker expects, ``(value, probability)``, likeliest first.
    """

    # A long session has thousands of them, and keeps all: what has no use yet is not made.
    __slots__ = (
        "__weakref__",
        "_answer",
        "_error",
        "_generation",
        "_ground",
        "_leaves",
        "_listeners",
        "_number",
        "_parts",
        "_shows",
        "_terms",
        "_written",
        "asks",
        "client",
        "form",
        "handle",
        "iteration",
        "key",
        "name",
        "predictions",
        "state",
    )

    def __init__(
        self,
        client: Client,
        ask: m.Ask,
        ground: Ground,
        form: Form,
        predictions: Sequence[Prediction],
        *,
        iteration: int | None,
        leaves: bool,
    ) -> None:
        """Made by ``checkpoint(…)``."""
        self.name = ask.name
        self.iteration = iteration
        self.state = CheckpointState.PENDING
        self.handle = ask.handle
        self.key = ask.key
        self.asks = b"%b %d" % (ask.fingerprint, ask.condition)
        self.client = client
        self.form = form
        self.predictions = predictions
        self._ground = ground
        self._leaves = leaves
        self._number = 0
        self._generation = 0
        self._answer = ""
        self._written = ""
        """The record as JSON: few are looked at, and a long session has thousands."""
        self._error: BaseException | None = None
        self._listeners: list[Callback] | None = None
        self._parts = _UNSAID
        self._terms: frozenset[Term] = frozenset()
        self._shows: Sequence[TaskFuture[Any]] = ()

    # --- the answer ---------------------------------------------------------------------------------------------

    @property
    def _condition(self) -> threading.Condition:
        """Guards it and is notified of news; all questions of a client share one, since few are waited for at once."""
        return self.client.questions

    @property
    def _record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._written or "{}")
        return found

    def result(self, timeout: float | None = None) -> Any:
        """Return the answer's value, as the type that was given as form; wait up to ``timeout`` seconds for it.

        Asked with ``wait="exit"``, this ends the script with exit code 75 instead of waiting for a person: everything
        submitted is on disk then, and the request can be answered.

        Raises:
            TimeoutError: nobody answered in time.
            CheckpointExpired: nobody answered before the deadline, and there is no default.
            CheckpointWithdrawn: it was taken back, or asked in a branch that was not chosen.
            Undecided: in a ``with`` block of a branch, before the answer.
            BranchDiscarded: in a body whose branch was not chosen.
            SystemExit: with ``wait="exit"``.
        """
        return self.form.make(self.answer(timeout).value)

    def answer(self, timeout: float | None = None) -> Answer:
        """Return the record of the answer; wait and raise as :meth:`result`."""
        self._wait(self.done, timeout, "was not answered")
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
        """``<session>/<n>``, as the command line names it; empty until the hub gave it a number.

        Of a question that was asked before with another text, form, or content ``<session>/<n>@<generation>``: answers
        say which one they are to.
        """
        return request_id(self.client.name, self._number, self._generation) if self._number else ""

    def explain(self) -> str:
        """Return in words what it waits for, or how it ended."""
        if self._error is not None:
            return str(self._error)
        if self.state.closed:
            record = self._record
            by = f" by {record['by']} ({record.get('channel', '')})" if self.answered and record.get("by") else ""
            return f"checkpoint {self.name!r} ({self.id}), {self.outcome()}{by}"
        if not self._number:
            return f"checkpoint {self.name!r} has not reached the hub yet"
        if self.state is CheckpointState.PENDING:
            waits = []
            if self.client.truth(self._terms) is Truth.UNDECIDED:
                waits.append(f"{self.client.describe(self._terms)} is answered")
            # Those of an undecided branch may be held already, which is not told here.
            needed = [each for each in self._shows if self.client.truth(each.condition) is not Truth.UNDECIDED]
            missing = [future.task for future in needed if not future.done()]
            if missing:
                waits.append(f"{', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''} can be shown")
            return f"checkpoint {self.name!r} ({self.id}) opens when {' and '.join(waits) or 'the hub says so'}"
        view = self.client.query("request", {"session": self.client.name, "id": self.id})
        until = view.get("deadline_at")
        when = f" until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(until))}" if until else ""
        who = ", ".join(view.get("assignees", ())) or "somebody"
        return (
            f"checkpoint {self.name!r} ({self.id}) waits for {who} to answer{when}: pilot-hitl inbox answer {self.id} "
            f"VALUE ({self.describe_answers()})"
        )

    def respond(self, value: Any, comment: str = "") -> None:
        """Answer it from here, as it is asked here. After return the answer is on disk and counts.

        Raises:
            AnswerRefused: it does not count, and why. With code ``asked-again``: it was asked again since, elsewhere.
        """
        try:
            text = canonical(plain(value))
            text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            why = f"an answer is a JSON value: {not_json(error)}"
            raise errors.AnswerRefused(
                f"invalid: the answer to {self.name!r} ({self.id}) does not count: {why}"
            ) from error
        number = self.wait_number()
        self.client.request(lambda token: m.Answer(token, number, self._generation, text, comment, "python"))

    def extend(self, deadline: str | float | timedelta | None) -> None:
        """Move the deadline to so long from now, or from its opening while it is not open; None takes it away.

        After return the new deadline is on disk.

        Raises:
            AnswerRefused: it is closed already.
            DescriptionError: the duration cannot be read.
        """
        seconds = _templates.seconds(deadline, "deadline")
        number = self.wait_number()
        self.client.request(lambda token: m.Extend(token, number, seconds, generation=self._generation))

    def describe_answers(self) -> str:
        """Return in one line what may be answered."""
        from pilot_hitl.inbox.forms import describe

        return describe(self.form.schema, [json.loads(choice) for choice in self.form.choices])

    def wait_number(self, timeout: float = FIRST_WORD) -> int:
        """Wait until the hub numbered it, and return the number.

        Raises:
            TimeoutError: no word of the hub within ``timeout`` seconds.
            CheckpointError: it was refused.
            Undecided: it is asked in a ``with`` block that has not ended.
        """
        place = _places.here(self.client)
        if place is not None and not self._number and place.staging is not None and place.staging.asks(self.handle):
            place.refuse_wait(frozenset(), f"checkpoint {self.name!r}", staged=True)
        self._wait_for_hub(timeout)
        if self._error is not None:
            raise errors.fresh(self._error)
        return self._number

    def _wait_for_hub(self, timeout: float) -> None:
        with self._condition:
            if not self.client.silence.hold(self._condition, self._heard, timeout, self._want):
                raise TimeoutError(f"checkpoint {self.name!r}: no word of the hub within {timeout:g} s")

    def withdraw(self) -> None:
        """Take it back: nobody can answer it any more, and its branches are discarded."""
        self.client.put(m.Withdraw(self.handle), _places.staging_here(self.client))

    def release(self) -> None:
        """End its reservation now."""
        self.client.put(m.Withdraw(self.handle, reservation_only=True), _places.staging_here(self.client))

    def _sleep(self, place: _places.Place | None, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait; raises PilotFailed while it cannot be asked because no pilot is left that could make what it shows."""

        def needs_pilot() -> bool:
            if self.state is not CheckpointState.PENDING or self.client.truth(self._terms) is Truth.UNDECIDED:
                return False
            return any(not future.done() for future in self._shows)

        return self.client.pilots_left.wait_while(place, self._condition, ready, timeout, self._want, needs_pilot)

    def _want(self, wanted: Wanted) -> None:
        """Say what is waited for, see :class:`Wanted`: what it shows, and then people."""
        if self.state is CheckpointState.PENDING:
            needed = [each for each in self._shows if self.client.truth(each.condition) is not Truth.UNDECIDED]
            missing = [each for each in needed if not each.done()]
            for future in missing:
                future._want(wanted)
            if missing:
                return
        if not self.done():
            wanted.said[f"checkpoint {self.handle} {self.state.name}"] = self.explain()

    def _wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        place = _places.here(self.client)
        if ready():
            return
        if place is not None:
            place.refuse_wait(frozenset(), f"checkpoint {self.name!r}", staged=True)
        if self._leaves and self.client.leave is not None:
            # A person can only answer what is open; until then this waits like any other.
            opened = self._sleep(place, lambda: self.done() or self._is_open(), timeout)
            if opened and not self.done():
                self.client.leave(self)
        if not self._sleep(place, ready, timeout):
            raise TimeoutError(
                f"checkpoint {self.name!r} ({self.id or 'not open yet'}) {what} within {timeout} s: "
                "pilot-hitl inbox list shows what waits for whom"
            )

    def _is_open(self) -> bool:
        return self.state is CheckpointState.OPEN

    def _check(self) -> None:
        if self._error is not None:
            raise errors.fresh(self._error)
        if self.state is CheckpointState.WITHDRAWN:
            raise errors.CheckpointWithdrawn(f"checkpoint {self.name!r} ({self.id}) was taken back before an answer")
        if not self._answer:
            raise errors.CheckpointExpired(
                f"nobody answered checkpoint {self.name!r} ({self.id}) before its deadline, and it has no default="
            )

    def truth(self, term: Term) -> Truth:
        """Return whether a term about it holds, as far as this client has heard."""
        if not self.done():
            return Truth.UNDECIDED
        if self._error is not None and not isinstance(self._error, errors.CheckpointError):
            return Truth.UNDECIDED  # the session ended; the hub may hear an answer yet
        if not self.answered:
            return Truth.FALSE
        return Truth.TRUE if holds(term, self._answer, _schema_test) else Truth.FALSE

    @property
    def answered(self) -> bool:
        """Whether there is an answer, or the default instead of one."""
        return self._error is None and bool(self._answer) and self.state.closed and not self._withdrawn()

    def _withdrawn(self) -> bool:
        return self.state is CheckpointState.WITHDRAWN

    def outcome(self) -> str:
        """Return in words how it was closed."""
        if self.answered:
            return f"which was answered {cut(self._answer)}"
        if self.state is CheckpointState.EXPIRED:
            return "which nobody answered in time"
        return "which was taken back"

    # --- branches -----------------------------------------------------------------------------------------------

    def branch(
        self,
        value: Any = NOTHING,
        *,
        one_of: Sequence[Any] | None = None,
        schema: dict[str, Json] | None = None,
        probability: float | None = None,
    ) -> Branch:
        """Return the handle for work that assumes an answer: a value, one of some values, or what fits a schema.

        ``branch("accept")``, ``branch({"accept", "maybe"})``, ``branch(one_of=[…])``, ``branch(schema={…})``; without
        any of them the likeliest answer of ``predict=`` is assumed. The handle can also be a ``with`` block, see
        :class:`Branch`.

        ``probability``: how likely it is; without it what was predicted holds, and else earlier answers tell.

        Raises:
            DescriptionError: the form does not allow such an answer, nothing was predicted, probabilities sum above
                1, or too many undecided answers would be assumed at once.
            ContradictoryCondition: inside another branch of the same checkpoint.
            CheckpointError, TimeoutError: on a re-run, which waits for what the hub knows of the question: it was
                refused, or no word came within a minute.
        """
        term = self._term(value, one_of, schema)
        if probability is not None:
            self._expect(term, probability)
        elif term not in self._parts and (predicted := self._predicted(term)):
            self.client.conditions.expect(term, predicted)
        place = _places.here(self.client)
        self._hear(place)
        terms = self._terms | {term}
        self.client.conditions.check(terms if place is None else terms | place.terms)
        if self.client.truth(terms) is not Truth.FALSE:
            self.client.condition(terms, None if place is None else place.staging)  # so that its likelihood is known
        return Branch(self, term, terms)

    def on(
        self,
        value: Any = NOTHING,
        *,
        one_of: Sequence[Any] | None = None,
        schema: dict[str, Json] | None = None,
        probability: float | None = None,
    ) -> Decorator:
        """Decorate a function that assumes an answer and needs values: it gets the branch, in a thread of its own.

        Arguments and errors as of :meth:`branch`. It is called when cores are free, at once when the answer is known
        to be this one, and never when it is another. In it ``result()`` of the branch's futures returns *held* values,
        and all that is submitted, through the branch or the session, assumes the answer. When somebody answers
        otherwise, its present or next call of ours raises BranchDiscarded, which ends it. The name now means the
        future of what the function returns, see :class:`~pilot_hitl.bodies.Body`.
        """
        branch = self.branch(value, one_of=one_of, schema=schema, probability=probability)

        def register(function: Callable[[Branch], Any]) -> Body[Any]:
            client = self.client
            place = _places.here(client)
            name = str(getattr(function, "__qualname__", "body"))
            terms = branch.condition if place is None else branch.condition | place.terms
            inside = Branch(self, branch.term, terms, ground_of(client, branch, name))
            body: Body[Any] = Body(client, inside, function)
            staging = None if place is None else place.staging
            client.declared.defer(staging, body, lambda: client.bodies.add(body))
            return body

        return register

    def _hear(self, place: _places.Place | None) -> None:
        """On a re-run, wait for what the hub knows of the question: what is decided is not speculated about."""
        if self.client.incarnation <= 1:
            return
        if place is not None and place.staging is not None and place.staging.asks(self.handle):
            return
        self._wait_for_hub(FIRST_WORD)
        # However soon the refusal came. What was never asked has work that is never wanted.
        error = self._error
        never = isinstance(error, errors.CheckpointWithdrawn)
        if isinstance(error, errors.CheckpointError) and not never and not self._number:
            raise errors.fresh(error)

    def _heard(self) -> bool:
        return self._error is not None or self._number > 0

    def _term(self, value: Any, several: Sequence[Any] | None, schema: dict[str, Json] | None) -> Term:
        what = f"branch of {self.name!r}"
        if schema is not None:
            from pilot_hitl.inbox.forms import check_form

            check_form(schema)
            return matches(self.handle, schema)
        if several is not None and (value is not NOTHING or isinstance(several, str | bytes | Mapping)):
            raise errors.DescriptionError(f"{what}: give either one value, or one_of=[…], a list of them")
        if several is None and isinstance(value, set | frozenset):
            several = list(value)
        if several is not None:
            if not several:
                raise errors.DescriptionError(f"{what}: no answer at all can be one of none")
            return one_of(self.handle, [self.form.check(each, what) for each in several])
        if value is NOTHING:
            if not self.predictions:
                raise errors.DescriptionError(
                    f"{what}: which answer? Name one, or say which is likely in checkpoint(…, predict=…)"
                )
            value = self.predictions[0].value
        return equals(self.handle, self.form.check(value, what))

    def _predicted(self, term: Term) -> float:
        if len(self.predictions) == 1 and self.predictions[0].probability == LIKELY:
            return 0.0  # nobody said how likely: earlier answers may know better
        return sum(part for value, part in self.predictions if holds(term, canonical(value), _schema_test))

    def _expect(self, term: Term, probability: float) -> None:
        part = likely(f"branch of {self.name!r}: probability", probability)
        parts = {**self._parts, term: part}
        if sum(parts.values()) > 1 + 1e-9:
            raise errors.DescriptionError(
                f"branches of {self.name!r}: their probabilities sum to {sum(parts.values()):g}, above 1"
            )
        self._parts = parts
        self.client.conditions.expect(term, part)

    @overload
    def select(self, futures: Mapping[Any, Future[R]]) -> SelectedFuture[R]: ...
    @overload
    def select(self, futures: Mapping[Any, Sequence[TaskFuture[R]]]) -> SelectedSequence[R]: ...
    def select(
        self, futures: Mapping[Any, Future[R]] | Mapping[Any, Sequence[TaskFuture[R]]]
    ) -> SelectedFuture[R] | SelectedSequence[R]:
        """Return the future, or the sequence of futures, of whichever branch becomes real.

        Keys are the answers (or the branches), values futures of tasks, bodies, or sequences of futures. Does not
        wait: the future ends when the chosen one does, the sequence waits when it is looked into. Both raise
        :class:`Discarded` when the answer is none of the keys.
        """
        if not isinstance(futures, Mapping):
            raise errors.DescriptionError("select: write a mapping of answers to futures, as {'yes': one, 'no': other}")
        table: dict[Branch, Any] = {
            key if isinstance(key, Branch) else self.branch(key): value for key, value in futures.items()
        }
        if not table:
            raise errors.DescriptionError(f"select of {self.name!r}: name at least one answer and its future")
        if not all(map(_are_futures, table.values())):
            return SelectedFuture(self, table)  # refuses what is no future either
        return SelectedSequence(self, table)  # as above

    def choose(self, table: Mapping[Branch, R]) -> R:
        """Return what belongs to the answer, once it is given; waits for it."""
        answer = canonical(self.answer().value)
        for branch, value in table.items():
            if holds(branch.term, answer, _schema_test):
                return value
        raise errors.Discarded(
            f"checkpoint {self.name!r} ({self.id}) was answered {cut(answer)}, which nothing was selected for"
        )

    # --- what the session does ----------------------------------------------------------------------------------

    def inside(self, terms: frozenset[Term], shows: Sequence[TaskFuture[Any]]) -> None:
        """Say in which branch it is asked, and which futures it shows."""
        self._terms = terms
        self._shows = shows or ()

    def forget_name(self) -> None:
        """Let its name be used again: it was never asked."""
        self._ground.asked.pop(self.key, None)

    def when_done(self, listener: Callback) -> None:
        """Call ``listener`` once no answer is taken any more, in the session's callback thread, or now."""
        with self._condition:
            if not self.done():
                if self._listeners is None:
                    self._listeners = []
                self._listeners.append(listener)
                return
        listener()

    def update(self, update: m.CheckpointUpdate) -> Callback | None:
        """Take in what the hub says; return what to call back."""
        with self._condition:
            self._number = update.checkpoint
            # That of its own asking: another script or attempt may ask something else under the same key later.
            self._generation = self._generation or update.generation
            self._answer = intern(update.answer)  # thousands of answers are a few texts
            self._written = update.record
            self.state = update.state  # last: whoever sees it closed, sees its answer
            self._condition.notify_all()
        if update.again:
            write(f"pilot-hitl: {update.again}")
        return self._listening() if self.state.closed else None

    def fail(self, error: BaseException) -> Callback | None:
        """Take in that it was refused or that the session ended; return what to call back."""
        with self._condition:
            if not self.state.closed:
                self._error = error
            self._condition.notify_all()
        return self._listening()

    def _listening(self) -> Callback | None:
        listeners, self._listeners = self._listeners, None
        if not listeners:
            return None

        def tell() -> None:
            for listener in listeners:
                listener()

        return tell

    def __repr__(self) -> str:
        return f"<Checkpoint {self.name!r} {self.id} {self.state.name}>"


def _are_futures(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(each, Future) for each in value)
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _schema_test(schema: str, answer: str) -> bool:
    from pilot_hitl.inbox.forms import matches as fits

    return fits(schema, answer)
