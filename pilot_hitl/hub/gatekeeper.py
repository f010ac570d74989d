"""The requests of one session: asked, published, answered, audited."""

from __future__ import annotations

import getpass
import json
import logging
import os
import time
from collections.abc import Iterator
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pilot_hitl.errors import AnswerRefused
from pilot_hitl.hub.asked import Asked
from pilot_hitl.hub.peers import Client
from pilot_hitl.inbox import audit, changes, forms, requests, spool
from pilot_hitl.inbox.standing import Placed, Standing, standings
from pilot_hitl.model.canonical import Json, canonical, cut
from pilot_hitl.model.states import CheckpointState
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.study.checkpoints import stale
from pilot_hitl.wire import messages as m

if TYPE_CHECKING:
    from pilot_hitl.hub.live import LiveSession

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_ask = msgspec.msgpack.Decoder(m.Ask)
READINGS = 2
"""How often a hub may have ended while it looked into an answer in the spool before it is set aside."""
_KINDS = {
    CheckpointState.OPEN: audit.Kind.REQUEST,
    CheckpointState.ANSWERED: audit.Kind.ANSWER,
    CheckpointState.EXPIRED: audit.Kind.EXPIRED,
    CheckpointState.WITHDRAWN: audit.Kind.WITHDRAWN,
}


_ENDED = {
    Standing.REPLACED: audit.Kind.ANSWER_REPLACED,
    Standing.WITHDRAWN: audit.Kind.ANSWER_WITHDRAWN,
}


class _Given:
    """An answer on its way through the core: who gave it, and whom to tell."""

    def __init__(self, client: Client | None, token: int, record: dict[str, Json]) -> None:
        self.client = client
        self.token = token
        self.record = record


class _Before(NamedTuple):
    """A question as it was when it was asked again."""

    ask: m.Ask
    answer: str
    state: CheckpointState


class Gatekeeper:
    """Translates between people and the study core."""

    def __init__(self, session: LiveSession) -> None:
        """Start without requests; :meth:`restore_checkpoints` brings earlier ones."""
        self._session = session
        self._asked = Asked(session.store)
        self._before: dict[int, _Before] = {}
        self._given: dict[int, _Given] = {}
        self._tokens = 0
        self._changed: set[int] = set()
        self._spooled: list[spool.Taken] = []
        self._head = b""

    # --- asking -------------------------------------------------------------------------------------------------------

    def number_of(self, handle: int) -> int:
        """Return the number of the request that a client calls by this handle; the handle itself when unknown."""
        number = self._asked.number_of(handle)
        return handle if number is None else number

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
        number = self._asked.number_under(ask.key)
        if number is None:
            number = self._asked.new_number()
            self._asked.keep(number, ask)
            self._session.feed(self._event(number, ask))
            return
        before = self._asked[number]
        if ask.on_change == "error" and before.fingerprint != ask.fingerprint:
            message = f"checkpoint {ask.name!r} was asked before with another question; on_change='error' forbids that"
            client.tell(m.Refused("CheckpointError", message, ask.handle))
            return
        core = self._session.core
        if core.requests.asks_again(self._event(number, ask)):
            known = core.checkpoints.get(number)
            assert known is not None  # it is asked again
            self._before[number] = _Before(before, known.answer, known.state)
        elif before.fingerprint != ask.fingerprint:
            # The answer is kept, and with it what it was given to.
            asked = {key: getattr(before, key) for key in ("question", "form", "choices", "show", "fingerprint")}
            ask = msgspec.structs.replace(ask, **asked)
        self._asked.keep(number, ask)
        self._session.feed(self._event(number, ask))
        self._before.pop(number, None)

    def withdraw(self, withdraw: m.Withdraw) -> None:
        """Take a request back, or only its reservation; nothing happens when somebody else asked it since."""
        number = self._asked.number_of(withdraw.handle)
        if number is not None and self._asked[number].handle == withdraw.handle:
            self._session.feed(ev.WithdrawCheckpoint(number, withdraw.reservation_only))

    def restore_checkpoints(self, *, before_conditions: bool) -> None:
        """Bring back what the file holds: first what decides conditions, then what waits for them."""
        for row in self._session.store.rows("SELECT * FROM checkpoint ORDER BY number"):
            number, _key, blob, state, answer, record, opened, deadline, generation, reopened = row
            if (CheckpointState(state) is CheckpointState.PENDING) is before_conditions:
                continue
            ask = _ask.decode(blob)
            known = CheckpointState(state)
            self._asked.restore(number, ask, record, closed=known.closed)
            event = self._event(number, ask)
            self._session.feed_quietly(
                ev.RestoreCheckpoint(event, known, answer, opened, generation, reopened, deadline)
            )

    def _event(self, number: int, ask: m.Ask) -> ev.AskPeople:
        return ev.AskPeople(
            checkpoint=number,
            asker=ask.handle >> 32,
            fingerprint=ask.fingerprint,
            on_change=ask.on_change,
            deadline=ask.deadline,
            default=ask.default,
            deps=tuple(ask.deps),
            condition=ask.condition,
            reserve=ask.reserve,
            linger=ask.linger,
            parent=ask.parent,
            name=intern(ask.name),
            choices=len(ask.choices),
            expected=tuple(_predictions(ask)),
        )

    # --- answering ----------------------------------------------------------------------------------------------------

    def answer(self, client: Client, answer: m.Answer) -> None:
        """Take an answer from a connected client; it learns whether it counts.

        One that counted already is sent again by a client that lost its hub before it heard so.
        """
        who, number = answer.by or login(), answer.checkpoint
        said = [client.incarnation, answer.token] if client.incarnation else None
        checkpoint = self._session.core.checkpoints.get(number)
        if said and checkpoint is not None and self._asked.record(number).get("said") == said:
            self._accepted(client, answer.token, number, checkpoint.answer, checkpoint.deadline)
            return
        record = self._record(who, answer.channel, answer.comment, time.time(), answer.generation)
        if said:
            record["said"] = [*said]
        given = _Given(client, answer.token, record)
        self._take(answer.checkpoint, answer.generation, answer.value, given, time.time())

    def take_spool(self) -> None:
        """Take in the answers that were given without a server, before any deadline is looked at."""
        fresh = self._fresh()
        for placed in standings(fresh, self._fits) if fresh else ():
            self._place(placed)

    def _fresh(self) -> list[spool.Taken]:
        """Return what lies in the spool and was not taken in before."""
        places = self._session.places
        known = {taken.path for taken in self._spooled}
        fresh = []
        for taken in spool.take(places):
            if taken.path in known:
                continue
            answer_id = taken.answer.answer_id
            if list(self._session.store.rows("SELECT 1 FROM answer_id WHERE id=?", (answer_id,))):
                self._spooled.append(taken)
                continue
            if self._ends_hubs(taken):
                continue
            self._spooled.append(taken)
            self._session.store.put("answer_id", answer_id)
            fresh.append(taken)
        return fresh

    def _ends_hubs(self, taken: spool.Taken) -> bool:
        """Look into an answer; return whether that ended hubs before, and then set it aside."""
        places, answer = self._session.places, taken.answer
        try:
            begun = spool.begin_reading(places, taken.path)
            if begun <= READINGS:
                self._fits(taken)
            spool.end_reading(places, taken.path)
        except OSError as error:
            _log.warning("what is read in the spool of %s cannot be noted: %s", self._session.name, error)
            return False
        if begun <= READINGS:
            return False
        why = f"the hub ended {begun - 1} times while it looked into it, so it was set aside in {places.spool / 'bad'}"
        facts = {
            **self._record_of(taken),
            "value": cut(answer.value, forms.MAX_ANSWER_BYTES),
            "code": "invalid",
            "why": why,
        }
        self._audit(audit.Kind.REFUSED, answer.checkpoint, facts)
        spool.set_aside(places, taken.path, why)
        return True

    def _fits(self, taken: spool.Taken) -> bool:
        """Return whether an answer (or a withdrawal) that waits in the spool could count if it were the only one."""
        answer = taken.answer
        checkpoint = self._session.core.checkpoints.get(answer.checkpoint)
        if checkpoint is None or checkpoint.state is not CheckpointState.OPEN:
            return False
        if stale(checkpoint, answer.generation) or 0 < checkpoint.deadline < taken.at:
            return False
        if answer.withdraws:
            return True
        try:
            self._judged(answer.checkpoint, answer.generation, answer.value, taken.who)
        except AnswerRefused:
            return False
        return True

    def _place(self, placed: Placed) -> None:
        """Give an answer of the spool to the core, or write down why it is none."""
        taken, standing, by = placed
        answer = taken.answer
        record = self._record_of(taken)
        if standing in (Standing.COUNTS, Standing.UNFIT) and not answer.withdraws:
            self._take(answer.checkpoint, answer.generation, answer.value, _Given(None, 0, record), taken.at)
        elif standing in _ENDED:
            ended_by = {"ended_at": by.at if by is not None else None}
            self._audit(
                _ENDED[standing],
                answer.checkpoint,
                {**record, "value": cut(answer.value, forms.MAX_ANSWER_BYTES), **ended_by},
            )
        elif standing is not Standing.WITHDRAWS:
            why = "there was no answer of this person that waited, so there was nothing to withdraw"
            self._audit(audit.Kind.REFUSED, answer.checkpoint, {**record, "code": "not-waiting", "why": why})

    def _record_of(self, taken: spool.Taken) -> dict[str, Json]:
        answer = taken.answer
        record = self._record(taken.who, answer.channel, answer.comment, taken.at, answer.generation)
        if answer.by and answer.by != taken.who:
            record["on_behalf_of"] = answer.by
        return record

    def extend(self, client: Client, extend: m.Extend) -> None:
        """Move a deadline; the client learns when it is so."""
        self._tokens += 1
        who = extend.by or login()
        self._given[self._tokens] = _Given(client, extend.token, {"extended_by": who, "extended_at": time.time()})
        event = ev.ExtendDeadline(self._tokens, extend.checkpoint, extend.seconds, extend.generation)
        self._session.feed(event)

    @staticmethod
    def _record(who: str, channel: str, comment: str, at: float, generation: int) -> dict[str, Json]:
        return {"by": who, "channel": channel, "comment": comment, "answered_at": at, "generation": generation}

    def _take(self, number: int, generation: int, text: str, given: _Given, at: float) -> None:
        self._tokens += 1
        token = self._tokens
        self._given[token] = given
        try:
            value = self._judged(number, generation, text, str(given.record["by"]))
        except AnswerRefused as error:
            self._refuse(token, number, text, error.code, str(error))
            return
        self._session.feed(ev.AnswerGiven(token, number, generation, value, at))

    def _judged(self, number: int, generation: int, text: str, who: str) -> str:
        """Return an answer as canonical JSON.

        Raises:
            AnswerRefused: it could never count, whenever it is given.
        """
        checkpoint = self._session.core.checkpoints.get(number)
        if checkpoint is None:
            raise _refused("unknown", f"session {self._session.name} has no request {number}")
        # First: an answer to another question may well be none to this one, which is not what its author has to know.
        if (old := stale(checkpoint, generation)) is not None:
            raise _refused(*old)
        ask = self._asked[number]
        if ask.assignees and who not in ask.assignees:
            raise _refused("not-allowed", f"{who} may not answer it; {', '.join(ask.assignees)} may")
        choices = [json.loads(choice) for choice in ask.choices]
        return canonical(forms.parse_answer(text, json.loads(ask.form or "{}"), choices))

    # --- what the core says -------------------------------------------------------------------------------------------

    def save(self, order: do.SaveCheckpoint) -> None:
        """Write a request's state, its audit entry, and tell who asked and who answered."""
        number = order.checkpoint
        ask = self._asked[number]
        given = self._given.pop(order.token, None) if order.token else None
        record, again = self._record_now(order, ask)
        before = (record.get("state"), record.get("generation"))
        record.update(state=order.state.name, generation=order.generation, opened_at=order.opened)
        record["reopened"] = order.reopened
        extended = given is not None and "extended_by" in given.record
        if given is not None:
            record.update(given.record)
        elif order.state is CheckpointState.EXPIRED:
            record.update(self._record("deadline", "system", "", time.time(), order.generation))
        row = (number, ask.key, _encode(ask), int(order.state), order.answer, json.dumps(record))
        self._session.store.put("checkpoint", *row, order.opened, order.deadline, order.generation, order.reopened)
        self._changed.add(number)
        # A question that is asked again is opened again: another generation is another entry.
        if before != (order.state.name, order.generation) and (kind := _KINDS.get(order.state)):
            self._audit(kind, number, self._facts(order, ask, record))
        if extended:
            facts = {key: value for key, value in record.items() if key not in ("earlier", "changed")}
            self._audit(audit.Kind.EXTENDED, number, {**facts, "deadline_at": order.deadline})
        self._tell_askers(order, record, again)
        if given is not None and given.client is not None:
            self._accepted(given.client, given.token, number, order.answer, order.deadline)

    @staticmethod
    def _accepted(client: Client, token: int, number: int, answer: str, deadline: float) -> None:
        accepted = {"accepted": True, "checkpoint": number, "answer": json.loads(answer or "null")}
        accepted["deadline_at"] = deadline or None
        client.tell(m.Reply(token, json.dumps(accepted)))

    def _record_now(self, order: do.SaveCheckpoint, ask: m.Ask) -> tuple[dict[str, Json], str]:
        """Return the record of a request, and what its asker is told when people are asked again by this."""
        number = order.checkpoint
        record = self._asked.change(number)
        if (before := self._before.pop(number, None)) is None or record.get("generation") == order.generation:
            return record, ""
        changed: list[Json] = [*changes.changed(before.ask, ask)]
        history = changes.earlier(before.ask, record, before.answer, before.state, time.time())
        record = {"changed": changed, "earlier": history}
        self._asked.begin_record(number, record)
        id_ = requests.request_id(self._session.name, number, order.generation)
        return record, changes.sentence(ask.name, id_, record)

    def refuse(self, order: do.RefuseAnswer) -> None:
        """Tell who answered that it does not count."""
        self._refuse(order.token, order.checkpoint, order.value, order.code, order.message)

    def _refuse(self, token: int, number: int, value: str, code: str, message: str) -> None:
        given = self._given.pop(token, None)
        if given is None:
            return
        self._audit(
            audit.Kind.REFUSED,
            number,
            {**given.record, "value": cut(value, forms.MAX_ANSWER_BYTES), "code": code, "why": message},
        )
        if given.client is not None:
            checkpoint = self._session.core.checkpoints.get(number)
            name = checkpoint.ask.name if checkpoint is not None else "?"
            id_ = requests.request_id(self._session.name, number, checkpoint.generation if checkpoint else 1)
            look = f": pilot-hitl inbox show {id_}" if code == "asked-again" else ""
            text = f"{code}: the answer to {name!r} ({id_}) does not count: {message}{look}"
            given.client.tell(m.Refused("AnswerRefused", text, given.token))

    def _tell_askers(self, order: do.SaveCheckpoint, record: dict[str, Json], again: str) -> None:
        told = json.dumps(record)
        number = order.checkpoint
        last = self._asked[number].handle
        for handle in self._asked.handles_of(number):
            said = again if handle == last else ""
            for client in self._session.clients:
                if client.incarnation == handle >> 32:
                    client.tell(
                        m.CheckpointUpdate(handle, number, order.state, order.answer, told, order.generation, said)
                    )

    def remind(self, client: Client) -> None:
        """Tell a client that came back how its requests stand: they may have been answered while it was away."""
        for handle, number in self._asked.of(client.incarnation):
            checkpoint = self._session.core.checkpoints.get(number)
            if checkpoint is not None:
                told = json.dumps(self._asked.record(number))
                state, answer = checkpoint.state, checkpoint.answer
                client.tell(m.CheckpointUpdate(handle, number, state, answer, told, checkpoint.generation))

    @staticmethod
    def _facts(order: do.SaveCheckpoint, ask: m.Ask, record: dict[str, Json]) -> dict[str, Json]:
        facts: dict[str, Json] = {"generation": order.generation, "name": ask.name, "iteration": ask.iteration}
        if order.state is CheckpointState.OPEN:
            facts.update(question=ask.question, form=ask.form, show=ask.show, assignees=list(ask.assignees))
            # Whether those who answered knew the prediction decides what their agreement with it is worth.
            facts.update(predicted=ask.predict, prediction_shown=ask.show_prediction)
            if order.generation > 1:
                facts["changed"] = record.get("changed")
        else:
            hidden = ("state", "earlier", "changed", "said")
            facts.update({key: value for key, value in record.items() if key not in hidden}, answer=order.answer)
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
            if self._is_closed(number):
                self._asked.rest(number)
        self._changed.clear()
        spooled, self._spooled = self._spooled, []
        for taken in spooled:
            try:
                spool.done(self._session.places, taken)
            except OSError as error:
                _log.warning("%s stays in the spool: %s", taken.path, error)

    def _publish(self, number: int) -> None:
        try:
            if self.is_open(number):
                requests.publish(self._session.places, self.request(number))
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
        checkpoint = self._session.core.checkpoints.get(number)
        if checkpoint is None:
            raise KeyError(number)
        return requests.from_ask(
            self._session.name,
            number,
            self._asked[number],
            state=checkpoint.state,
            opened=checkpoint.opened,
            deadline=checkpoint.deadline,
            generation=checkpoint.generation,
            record=self._asked.record(number),
        )

    def view(self, number: int) -> dict[str, Any]:
        """Return a request with its answer and record, as JSON."""
        checkpoint = self._session.core.checkpoints.get(number)
        return requests.view(self.request(number), checkpoint.answer if checkpoint else "", self._asked.record(number))

    def is_open(self, number: int) -> bool:
        """Return whether a request can be answered now."""
        checkpoint = self._session.core.checkpoints.get(number)
        return checkpoint is not None and checkpoint.state is CheckpointState.OPEN

    def _is_closed(self, number: int) -> bool:
        checkpoint = self._session.core.checkpoints.get(number)
        return checkpoint is not None and checkpoint.state.closed

    def __contains__(self, number: int) -> bool:
        """Return whether there is a request of this number."""
        return self._session.core.checkpoints.get(number) is not None

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of all requests."""
        return iter(sorted(checkpoint.number for checkpoint in self._session.core.checkpoints))


def _predictions(ask: m.Ask) -> list[tuple[str, float]]:
    """Return ``(answer, probability)`` that the asker expects, answers as canonical JSON.

    Raises:
        ValueError, TypeError, RecursionError: it is no list of such pairs.
    """
    found = [(canonical(value), float(part)) for value, part in json.loads(ask.predict or "[]")]
    if not all(0 <= part <= 1 for _, part in found):
        raise ValueError("a probability is not between 0 and 1")
    return found


def _refused(code: str, message: str) -> AnswerRefused:
    error = AnswerRefused(message)
    error.code = code
    return error


def login() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid:{os.getuid()}"
