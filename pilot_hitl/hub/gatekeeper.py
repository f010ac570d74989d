"""The requests of one session: asked, published, answered, audited."""

from __future__ import annotations

import getpass
import json
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import msgspec

from pilot_hitl.errors import AnswerRefused
from pilot_hitl.hub.peers import Client
from pilot_hitl.inbox import audit, forms, requests, spool
from pilot_hitl.model.canonical import Json, canonical
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.wire import messages as m

if TYPE_CHECKING:
    from pilot_hitl.hub.live import LiveSession

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_ask = msgspec.msgpack.Decoder(m.Ask)
_KINDS = {
    CheckpointState.OPEN: audit.Kind.REQUEST,
    CheckpointState.ANSWERED: audit.Kind.ANSWER,
    CheckpointState.EXPIRED: audit.Kind.EXPIRED,
    CheckpointState.WITHDRAWN: audit.Kind.WITHDRAWN,
}


class _Given:
    """An answer on its way through the core: who gave it, and whom to tell."""

    def __init__(self, client: Client | None, token: int, record: dict[str, Json]) -> None:
        self.client = client
        self.token = token
        self.record = record


class Gatekeeper:
    """Translates between people and the study core."""

    def __init__(self, session: LiveSession) -> None:
        """Start without requests; :meth:`restore_checkpoints` brings earlier ones."""
        self._session = session
        self._asks: dict[int, m.Ask] = {}
        self._by_key: dict[bytes, int] = {}
        self._numbers: dict[int, int] = {}
        self._handles: dict[int, list[int]] = {}
        """By number, what clients call a request."""
        self._highest = 0
        self._records: dict[int, dict[str, Json]] = {}
        self._given: dict[int, _Given] = {}
        self._tokens = 0
        self._changed: set[int] = set()
        self._spooled: list[spool.Taken] = []
        self._head = b""

    # --- asking -------------------------------------------------------------------------------------------------------

    def number_of(self, handle: int) -> int:
        """Return the number of the request that a client calls by this handle; the handle itself when unknown."""
        return self._numbers.get(handle, handle)

    def ask(self, client: Client, ask: m.Ask) -> None:
        """Open a request, or find the one that was asked before under the same key."""
        try:
            for text in (ask.form or "{}", ask.show, ask.default or "null", *ask.choices):
                json.loads(text)
            _predictions(ask)
        except (ValueError, TypeError, RecursionError) as error:
            client.tell(
                m.Refused("CheckpointError", f"checkpoint {ask.name!r} is not made of JSON: {error}", ask.handle)
            )
            return
        number = self._by_key.get(ask.key)
        if number is not None and ask.on_change == "error" and self._asks[number].fingerprint != ask.fingerprint:
            message = f"checkpoint {ask.name!r} was asked before with another question; on_change='error' forbids that"
            client.tell(m.Refused("CheckpointError", message, ask.handle))
            return
        if number is None:
            number = self._highest + 1
            self._by_key[ask.key] = number
        elif ask.on_change == "keep":
            ask = msgspec.structs.replace(ask, fingerprint=self._asks[number].fingerprint)
        self._know(number, ask)
        self._session.feed(self._event(number, ask))

    def withdraw(self, withdraw: m.Withdraw) -> None:
        """Take a request back, or only its reservation."""
        number = self._numbers.get(withdraw.handle)
        if number is not None:
            self._session.feed(ev.WithdrawCheckpoint(number, withdraw.reservation_only))

    def restore_checkpoints(self, *, before_conditions: bool) -> None:
        """Bring back what the file holds: first what decides conditions, then what waits for them."""
        for row in self._session.store.rows("SELECT * FROM checkpoint ORDER BY number"):
            number, key, blob, state, answer, record, opened, deadline, generation = row
            if (CheckpointState(state) is CheckpointState.PENDING) is before_conditions:
                continue
            ask = _ask.decode(blob)
            self._by_key[key] = number
            self._know(number, ask)
            self._records[number] = json.loads(record)
            event = self._event(number, ask)
            known = CheckpointState(state)
            self._session.feed_quietly(ev.RestoreCheckpoint(event, known, answer, opened, generation, deadline))

    def _know(self, number: int, ask: m.Ask) -> None:
        self._asks[number] = ask
        self._highest = max(self._highest, number)
        if self._numbers.get(ask.handle) != number:
            self._numbers[ask.handle] = number
            self._handles.setdefault(number, []).append(ask.handle)

    def _event(self, number: int, ask: m.Ask) -> ev.AskPeople:
        return ev.AskPeople(
            checkpoint=number,
            asker=ask.handle >> 32,
            key=ask.key,
            fingerprint=ask.fingerprint,
            on_change=ask.on_change,
            deadline=ask.deadline,
            default=ask.default,
            deps=tuple(ask.deps),
            condition=ask.condition,
            reserve=ask.reserve,
            linger=ask.linger,
            parent=ask.parent,
            name=ask.name,
            choices=len(ask.choices),
            expected=tuple(_predictions(ask)),
        )

    # --- answering ----------------------------------------------------------------------------------------------------

    def answer(self, client: Client, answer: m.Answer) -> None:
        """Take an answer from a connected client; it learns whether it counts."""
        who = answer.by or login()
        given = _Given(client, answer.token, self._record(who, answer.channel, answer.comment, time.time()))
        self._take(answer.checkpoint, answer.value, given, time.time())

    def take_spool(self) -> None:
        """Take in the answers that were given without a server, before any deadline is looked at."""
        places = self._session.places
        known = {taken.path for taken in self._spooled}
        for taken in spool.take(places):
            if taken.path in known:
                continue
            self._spooled.append(taken)
            answer_id = taken.answer.answer_id
            if list(self._session.store.rows("SELECT 1 FROM answer_id WHERE id=?", (answer_id,))):
                continue
            self._session.store.put("answer_id", answer_id)
            record = self._record(taken.who, taken.answer.channel, taken.answer.comment, taken.at)
            if taken.answer.by and taken.answer.by != taken.who:
                record["on_behalf_of"] = taken.answer.by
            self._take(taken.answer.checkpoint, taken.answer.value, _Given(None, 0, record), taken.at)

    def extend(self, client: Client, extend: m.Extend) -> None:
        """Move a deadline; the client learns when it is so."""
        self._tokens += 1
        who = extend.by or login()
        self._given[self._tokens] = _Given(client, extend.token, {"extended_by": who, "extended_at": time.time()})
        self._session.feed(ev.ExtendDeadline(self._tokens, extend.checkpoint, extend.seconds))

    @staticmethod
    def _record(who: str, channel: str, comment: str, at: float) -> dict[str, Json]:
        return {"by": who, "channel": channel, "comment": comment, "answered_at": at}

    def _take(self, number: int, text: str, given: _Given, at: float) -> None:
        self._tokens += 1
        self._given[self._tokens] = given
        ask = self._asks.get(number)
        if ask is None:
            self._refuse(self._tokens, number, text, "unknown", f"session {self._session.name} has no request {number}")
            return
        who = str(given.record["by"])
        if ask.assignees and who not in ask.assignees:
            allowed = ", ".join(ask.assignees)
            self._refuse(self._tokens, number, text, "not-allowed", f"{who} may not answer it; {allowed} may")
            return
        try:
            choices = [json.loads(choice) for choice in ask.choices]
            value = canonical(forms.parse_answer(text, json.loads(ask.form or "{}"), choices))
        except AnswerRefused as error:
            self._refuse(self._tokens, number, text, error.code, str(error))
            return
        self._session.feed(ev.AnswerGiven(self._tokens, number, value, at))

    # --- what the core says -------------------------------------------------------------------------------------------

    def save(self, order: do.SaveCheckpoint) -> None:
        """Write a request's state, its audit entry, and tell who asked and who answered."""
        number = order.checkpoint
        ask = self._asks[number]
        given = self._given.pop(order.token, None) if order.token else None
        record = self._records.setdefault(number, {})
        before = (record.get("state"), record.get("generation"))
        record.update(state=order.state.name, generation=order.generation, opened_at=order.opened)
        extended = given is not None and "extended_by" in given.record
        if given is not None:
            record.update(given.record)
        elif order.state is CheckpointState.EXPIRED:
            record.update(self._record("deadline", "system", "", time.time()))
        row = (number, ask.key, _encode(ask), int(order.state), order.answer, json.dumps(record))
        self._session.store.put("checkpoint", *row, order.opened, order.deadline, order.generation)
        self._changed.add(number)
        # A question that is asked again is opened again: another generation is another entry.
        if before != (order.state.name, order.generation) and (kind := _KINDS.get(order.state)):
            self._audit(kind, number, self._facts(order, ask, record))
        if extended:
            self._audit(audit.Kind.EXTENDED, number, {**record, "deadline_at": order.deadline})
        self._tell_askers(number, order.state, order.answer, record)
        if given is not None and given.client is not None:
            accepted = {"accepted": True, "checkpoint": number, "answer": json.loads(order.answer or "null")}
            accepted["deadline_at"] = order.deadline or None
            given.client.tell(m.Reply(given.token, json.dumps(accepted)))

    def refuse(self, order: do.RefuseAnswer) -> None:
        """Tell who answered that it does not count."""
        self._refuse(order.token, order.checkpoint, order.value, order.code, order.message)

    def _refuse(self, token: int, number: int, value: str, code: str, message: str) -> None:
        given = self._given.pop(token, None)
        if given is None:
            return
        self._audit(audit.Kind.REFUSED, number, {**given.record, "value": value, "code": code, "why": message})
        if given.client is not None:
            name = self._asks[number].name if number in self._asks else "?"
            text = f"{code}: the answer to {name!r} ({self._session.name}/{number}) does not count: {message}"
            given.client.tell(m.Refused("AnswerRefused", text, given.token))

    def _tell_askers(self, number: int, state: CheckpointState, answer: str, record: dict[str, Json]) -> None:
        told = json.dumps(record)
        for handle in self._handles.get(number, ()):
            for client in self._session.clients:
                if client.incarnation == handle >> 32:
                    client.tell(m.CheckpointUpdate(handle, number, state, answer, told))

    def remind(self, client: Client) -> None:
        """Tell a client that came back how its requests stand: they may have been answered while it was away."""
        for handle, number in self._numbers.items():
            checkpoint = self._session.core.checkpoints.get(number)
            if handle >> 32 == client.incarnation and checkpoint is not None:
                told = json.dumps(self._records.get(number, {}))
                client.tell(m.CheckpointUpdate(handle, number, checkpoint.state, checkpoint.answer, told))

    @staticmethod
    def _facts(order: do.SaveCheckpoint, ask: m.Ask, record: dict[str, Json]) -> dict[str, Json]:
        facts: dict[str, Json] = {"generation": order.generation, "name": ask.name, "iteration": ask.iteration}
        if order.state is CheckpointState.OPEN:
            facts.update(question=ask.question, form=ask.form, show=ask.show, assignees=list(ask.assignees))
            # Whether those who answered knew the prediction decides what their agreement with it is worth.
            facts.update(predicted=ask.predict, prediction_shown=ask.show_prediction)
        else:
            facts.update({key: value for key, value in record.items() if key != "state"}, answer=order.answer)
        return facts

    def _audit(self, kind: audit.Kind, number: int, facts: dict[str, Json]) -> None:
        if not self._head:
            last = list(self._session.store.rows("SELECT hash FROM audit ORDER BY sequence DESC LIMIT 1"))
            self._head = last[0][0] if last else audit.genesis(self._session.name)
        entry = audit.append(self._head, kind, number, time.time(), facts)
        self._head = entry.hash
        self._session.store.put("audit", entry.content, entry.hash)

    # --- after the commit ---------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether something about a request waits for the next commit."""
        return bool(self._changed or self._spooled)

    def committed(self) -> None:
        """Publish what changed and put away the spooled answers that the commit holds."""
        for number in self._changed:
            self._publish(number)
        self._changed.clear()
        spooled, self._spooled = self._spooled, []
        for taken in spooled:
            try:
                spool.done(self._session.places, taken)
            except OSError as error:
                _log.warning("%s stays in the spool: %s", taken.path, error)

    def _publish(self, number: int) -> None:
        try:
            request = self.request(number)
            if request.state == CheckpointState.OPEN.name:
                requests.publish(self._session.places, request)
            else:
                requests.unpublish(self._session.places, number)
        except (OSError, ValueError) as error:
            # The session goes on: the request can still be answered through the hub.
            _log.warning("request %s/%d cannot be published: %s", self._session.name, number, error)

    def close(self) -> None:
        """Nothing is held beyond what the store has."""
        self._given.clear()

    # --- looking ------------------------------------------------------------------------------------------------------

    def request(self, number: int) -> requests.Request:
        """Return a request as it is published.

        Raises:
            KeyError: there is none with this number.
        """
        ask = self._asks[number]
        checkpoint = self._session.core.checkpoints.get(number)
        state = checkpoint.state if checkpoint else CheckpointState.PENDING
        return requests.from_texts(
            session=self._session.name,
            number=number,
            choices=ask.choices,
            form=ask.form,
            show=ask.show,
            default=ask.default,
            name=ask.name,
            iteration=ask.iteration,
            question=ask.question,
            state=state.name,
            assignees=ask.assignees,
            opened_at=checkpoint.opened if checkpoint else 0.0,
            deadline_at=checkpoint.deadline or None if checkpoint else None,
            predicted=json.loads(ask.predict) if ask.predict and ask.show_prediction else msgspec.UNSET,
        )

    def view(self, number: int) -> dict[str, Any]:
        """Return a request with its answer and record, as JSON."""
        checkpoint = self._session.core.checkpoints.get(number)
        facts: dict[str, Any] = dict(requests.as_json(self.request(number)))
        if checkpoint is not None and checkpoint.state.closed:
            facts["answer"] = json.loads(checkpoint.answer) if checkpoint.answer else None
            facts["record"] = self._records.get(number, {})
        return facts

    def __iter__(self) -> Any:
        """Yield the numbers of all requests."""
        return iter(sorted(self._asks))


def _predictions(ask: m.Ask) -> list[tuple[str, float]]:
    """Return ``(answer, probability)`` that the asker expects, answers as canonical JSON.

    Raises:
        ValueError, TypeError, RecursionError: it is no list of such pairs.
    """
    found = [(canonical(value), float(part)) for value, part in json.loads(ask.predict or "[]")]
    if not all(0 <= part <= 1 for _, part in found):
        raise ValueError("a probability is not between 0 and 1")
    return found


def login() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid:{os.getuid()}"
