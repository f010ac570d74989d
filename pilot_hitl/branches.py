"""Branches: work that assumes an answer."""

from __future__ import annotations

from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

from pilot_hitl import _places, _templates, errors
from pilot_hitl._places import Ground, Place
from pilot_hitl._submitter import Submitter
from pilot_hitl.model.conditions import Term
from pilot_hitl.model.descriptions import CallOptions

if TYPE_CHECKING:
    from typing import Self

    from pilot_hitl._ask import CheckpointRequest
    from pilot_hitl.gates import Checkpoint


class Scope(Submitter):
    """A handle to submit through, with options and assumed answers of its own."""

    def options(self, **options: Any) -> Scope:
        """Return a handle whose calls have these options: see :class:`CallOptions`, and ``cores, gpus, memory``.

        Raises:
            DescriptionError: an option is unknown or cannot be meant.
        """
        known = _templates.call_options(self._options, options)
        return OptionScope(self._client, known, self._terms, self._ground)

    def checkpoint(self, name: str, **request: Unpack[CheckpointRequest]) -> Checkpoint:
        """Ask people; returns at once. See :class:`CheckpointRequest`.

        Raises:
            CheckpointExists: this script asked under this name before, without another ``iteration``.
            DescriptionError: the request cannot be meant.
        """
        from pilot_hitl._ask import ask

        me = self._here()
        return ask(me._client, me._terms, me._ground, me._staging, name, request)


class Branch(Scope):
    """Work that assumes an answer: ``submit``, ``call``, ``map``, ``options``, ``checkpoint``.

    As a ``with`` block it only declares: what this thread submits inside, through the session or any handle of it,
    assumes the answer too and is sent as one bulk at the block's end; nothing is sent when the block raises.

    Attributes:
        gate: the checkpoint whose answer is assumed.
        term: what the answer must be.
    """

    def __init__(self, gate: Checkpoint, term: Term, terms: frozenset[Term], ground: Ground | None = None) -> None:
        """Made by :meth:`Checkpoint.branch`."""
        super().__init__(gate.client, CallOptions(), terms, ground)
        self.gate = gate
        self.term = term
        self._entered: list[tuple[Place, Token[Place | None]]] = []

    @property
    def condition(self) -> frozenset[Term]:
        """All that is assumed, outer branches included."""
        return self._terms

    def on_ground(self, ground: Ground) -> Branch:
        """Return the same branch as a handle of other work."""
        return Branch(self.gate, self.term, self._terms, ground)

    def __enter__(self) -> Self:
        """Begin to declare.

        Raises:
            ContradictoryCondition: inside a block or body that assumes another answer.
        """
        client = self._client
        outer = _places.here(client)
        terms = self._terms if outer is None else self._terms | outer.terms
        client.conditions.check(terms)
        staging = client.declared.begin(None if outer is None else outer.staging)
        place = Place(
            client,
            client.ground if outer is None else outer.ground,
            terms,
            block=staging,
            body=None if outer is None else outer.body,
            lender=None if outer is None else outer.lender,
            values=None if outer is None else outer.values,
        )
        self._entered.append((place, _places.enter(place)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what was declared, or nothing when the block raises."""
        entered = next((each for each in self._entered if _places.is_here(each[0])), None)
        if entered is None:
            raise RuntimeError(f"{self!r}: a with block is left in the thread and context in which it was entered")
        self._entered.remove(entered)
        place, token = entered
        _places.leave(token)
        staging = place.block
        assert staging is not None  # __enter__ made it
        if error is not None:
            self._client.declared.drop(staging, error)
        else:
            self._client.declared.commit(staging)

    def __repr__(self) -> str:
        return f"<Branch {self.gate.name!r} {self.term.test.name} {self.term.operand}>"


class OptionScope(Scope):
    """What ``options(…)`` returns: options speak of calls, descriptions speak for themselves."""

    def submit(self, tasks: Any, *, after: Any = ()) -> NoReturn:
        """Refuse.

        Raises:
            DescriptionError: always.
        """
        del tasks, after
        raise errors.DescriptionError("options(…) are for call() and map(): write them into the TaskDescription")
