"""The questions of one session, as they were asked last, and what is recorded of each.

In memory are those that can still change or are not on disk yet. The others lie in the session's file and are read from
there when somebody wants them: a long session has thousands, and few of them are looked at again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from pilot_hitl.model.canonical import Json
from pilot_hitl.wire.messages import Ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilot_hitl.hub.store import Store

_ask = msgspec.msgpack.Decoder(Ask)


class Asked:
    """Finds questions by their numbers, by their keys, and by the handles of those who ask."""

    def __init__(self, store: Store) -> None:
        """Know nothing yet of what ``store`` holds; :meth:`restore` tells."""
        self._store = store
        self._asks: dict[int, Ask] = {}
        self._records: dict[int, dict[str, Json]] = {}
        self._by_key: dict[bytes, int] = {}
        self._by_handle: dict[int, int] = {}
        self._several: dict[int, list[int]] = {}
        """Handles of all who asked a question, where there are several."""
        self._last = 0

    # --- what changes -------------------------------------------------------------------------------------------------

    def new_number(self) -> int:
        """Return a number that no question has had."""
        return self._last + 1

    def keep(self, number: int, ask: Ask) -> None:
        """Hold a question as it is asked now in memory, with its record, until :meth:`rest`."""
        if self._by_handle.get(ask.handle) != number:
            before = self.ask(number)
            if before is not None:
                self._several.setdefault(number, [before.handle]).append(ask.handle)
            self._by_handle[ask.handle] = number
        self._last = max(self._last, number)
        self._hold(number, ask)

    def change(self, number: int) -> dict[str, Json]:
        """Return the record of a question, to be changed in place; it is held until :meth:`rest`.

        Raises:
            KeyError: there is none with this number.
        """
        if number not in self._asks:
            self._hold(number, self[number])
        return self._records[number]

    def begin_record(self, number: int, record: dict[str, Json]) -> None:
        """Put a new record in the place of the one that a held question has."""
        self._records[number] = record

    def _hold(self, number: int, ask: Ask) -> None:
        if number not in self._asks:
            self._records[number] = self.record(number)
        self._asks[number] = ask
        self._by_key[ask.key] = number

    def rest(self, number: int) -> None:
        """Let go of a question that is on disk as it is here, and will only change when somebody asks it again."""
        ask = self._asks.pop(number, None)
        if ask is not None:
            del self._records[number], self._by_key[ask.key]

    def restore(self, number: int, ask: Ask, record: str, *, closed: bool) -> None:
        """Know of a question that the store holds; one that is ``closed`` stays there."""
        self._by_handle[ask.handle] = number
        self._last = max(self._last, number)
        if not closed:
            self._asks[number], self._records[number] = ask, json.loads(record)
            self._by_key[ask.key] = number

    # --- looking ------------------------------------------------------------------------------------------------------

    def number_of(self, handle: int) -> int | None:
        """Return the number of the question that a client calls by this handle, None when there is none."""
        return self._by_handle.get(handle)

    def number_under(self, key: bytes) -> int | None:
        """Return the number of the question that was asked under a key, None when there is none."""
        held = self._by_key.get(key)
        if held is not None:
            return held
        for (number,) in self._store.rows("SELECT number FROM checkpoint WHERE key=?", (key,)):
            return int(number)
        return None

    def handles_of(self, number: int) -> list[int]:
        """Return the handles of all who asked a question.

        Raises:
            KeyError: there is none with this number.
        """
        return self._several.get(number) or [self[number].handle]

    def of(self, incarnation: int) -> Iterator[tuple[int, int]]:
        """Yield ``(handle, number)`` of what one client asked."""
        return (each for each in self._by_handle.items() if each[0] >> 32 == incarnation)

    def ask(self, number: int) -> Ask | None:
        """Return how a question was asked last, None when there is none with this number."""
        held = self._asks.get(number)
        if held is not None:
            return held
        for (blob,) in self._store.rows("SELECT ask FROM checkpoint WHERE number=?", (number,)):
            return _ask.decode(blob)
        return None

    def __getitem__(self, number: int) -> Ask:
        """Return how a question was asked last.

        Raises:
            KeyError: there is none with this number.
        """
        found = self.ask(number)
        if found is None:
            raise KeyError(number)
        return found

    def record(self, number: int) -> dict[str, Json]:
        """Return what is recorded of a question beside its answer; empty while nothing is."""
        held = self._records.get(number)
        if held is not None:
            return held
        for (text,) in self._store.rows("SELECT record FROM checkpoint WHERE number=?", (number,)):
            found: dict[str, Json] = json.loads(text)
            return found
        return {}
