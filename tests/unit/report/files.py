"""Session files made by hand."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.hub import books
from pilot_hitl.hub.store import OutcomeRow, Store
from pilot_hitl.model.conditions import Term, Test
from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.ledger import Account
from pilot_hitl.model.states import CheckpointState, PilotState, State, Truth
from pilot_hitl.wire.messages import Ask, OpenSpan, Span, Spans

START = 1_700_000_000.0
"""When the pilot's first process began."""
READY = 1.0
"""Seconds from then until its agent began."""
_encode = msgspec.msgpack.Encoder().encode


def span(cores: list[int], began: float, ended: float, account: Account = Account.NOTHING, **more: Any) -> Span:
    """A span that is busy when it has an account, else idle; times are seconds from the start."""
    took = ended - began
    rows = {"busy": 0.0, "overhead": 0.0, "idle": 0.0, "reserved": 0.0}
    rows["busy" if account is not Account.NOTHING else "idle"] = took
    rows.update({key: more.pop(key) for key in list(more) if key in rows})
    measured = (rows["busy"], rows["overhead"], rows["idle"], rows["reserved"])
    return Span(0, cores, START + began, START + ended, *measured, int(account), **more)


class File:
    """A session ``study`` in a folder, written as a hub does."""

    def __init__(self, base: Path) -> None:
        self.folder = base / "sessions" / "study"
        self.store = Store(self.folder / "session.sqlite", "here")
        self._sequence = 0

    def pilot(
        self, number: int = 1, state: PilotState = PilotState.DONE, ended: float = 0.0, message: str = ""
    ) -> None:
        moment = START + ended if ended else 0.0
        description = _encode(PilotDescription(resource="local", cores=2, runtime=10))
        self.store.put("pilot", number, description, int(state), message, START, moment, 1, 0, 0)

    def spans(self, *spans: Span, at: float, final: bool = True, binding: int = 1, pilot: int = 1, **more: Any) -> None:
        self._sequence += 1
        began, job = START + more.pop("began", READY), START + more.pop("job", 0.0)
        opened: list[OpenSpan] = more.pop("opened", [])
        told = Spans(self._sequence, binding, job, began, START + at, final, 2, list(spans), opened, **more)
        books.keep(self.store, pilot, told)

    def outcome(self, task: int, state: State, epoch: int = 1, run: int = 1) -> None:
        times = (START + 1, START + 2)
        self.store.put_outcome(OutcomeRow(task, int(state), epoch, run, *times, 1, 0, "0", 0, None, b""))

    def condition(self, number: int, truth: Truth, checkpoint: int = 1, reopened: int = 0) -> None:
        terms = _encode([Term(reopened << 32 | checkpoint, Test.EQUALS, '"yes"')])
        self.store.put("condition", number, terms, 0.8, int(truth))

    def gate(
        self,
        number: int = 1,
        state: CheckpointState = CheckpointState.ANSWERED,
        opened: float = 2.0,
        answered: float = 0.0,
        by: str = "ana",
        **more: Any,
    ) -> None:
        ask = Ask(number, number.to_bytes(16, "big"), f"gate-{number}", 0, more.get("question", "Is it good?"), "{}")
        generation, reopened = more.get("generation", 1), more.get("reopened", 0)
        record: dict[str, Any] = {"by": by, "channel": "cli", "comment": more.get("comment", "")}
        record["answered_at"] = START + answered
        again = {"changed": ["its question"], "earlier": more["earlier"]} if generation > 1 else {}
        row = (
            number,
            ask.key,
            _encode(ask),
            int(state),
            more.get("answer", '"yes"'),
            json.dumps(record | again if answered else again),
        )
        self.store.put("checkpoint", *row, START + opened if opened else 0.0, 0.0, generation, reopened)

    def close(self) -> Path:
        self.store.close()
        return self.folder

    def left_by_a_dead_hub(self) -> Path:
        """Leave the file as a hub does that was killed long ago."""
        self.store.commit()
        path = self.folder / "session.sqlite"
        self.store.close()
        with sqlite3.connect(path) as database:
            database.execute("INSERT OR REPLACE INTO meta VALUES ('owner_host', 'here')")
            database.execute("INSERT OR REPLACE INTO meta VALUES ('renewed', 1.0)")
        database.close()
        return self.folder
