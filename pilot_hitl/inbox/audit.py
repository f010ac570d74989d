"""The audit: who was asked what, saw what, and answered what. Append-only, each entry chained to the one before.

An entry's hash covers its content and the hash before it, so an entry cannot be changed, removed or put in between
without all later hashes changing. Removing the *last* entries is found only with a head that was kept elsewhere.
Pure functions; the hub's store keeps the rows.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable

import msgspec

from pilot_hitl.model.canonical import Json, canonical

HASH_BYTES = 32


class Kind(enum.StrEnum):
    """What happened to a request."""

    REQUEST = "request"
    """It was asked: question, form, what is shown, assignees, deadline."""
    SHOWN = "shown"
    """It was displayed to somebody: to whom, what."""
    ANSWER = "answer"
    """An answer was accepted."""
    ANSWER_REPLACED = "answer-replaced"
    """An answer waited, and its author answered again before anybody acted on it."""
    ANSWER_WITHDRAWN = "answer-withdrawn"
    """An answer waited, and its author took it back before anybody acted on it."""
    REFUSED = "refused"
    """An answer was not accepted: invalid, late, conflicting, not allowed, or to another version of the question."""
    EXPIRED = "expired"
    """The deadline passed; the default, if any, was applied."""
    WITHDRAWN = "withdrawn"
    EXTENDED = "extended"
    """Its deadline was moved."""


class Entry(msgspec.Struct, frozen=True):
    """One row of the audit.

    Attributes:
        content: canonical JSON with ``kind``, ``checkpoint``, ``at`` (seconds since 1970) and ``facts``.
        hash: of the content and the hash before.
    """

    content: bytes
    hash: bytes


class Fault(msgspec.Struct, frozen=True):
    """Where a chain breaks: ``index`` of the first bad entry (counted from 0) and why."""

    index: int
    reason: str


def genesis(session: str) -> bytes:
    """Return the hash before the first entry; it differs by session, so chains cannot be swapped."""
    return hashlib.sha256(b"pilot-hitl audit 1\0" + session.encode()).digest()


def entry_bytes(kind: Kind, checkpoint: int, at: float, facts: dict[str, Json]) -> bytes:
    """Return the content of an entry: canonical JSON, so equal facts have equal bytes.

    Raises:
        TypeError, ValueError: the facts are not JSON.
    """
    return canonical({"kind": kind.value, "checkpoint": checkpoint, "at": at, "facts": facts}).encode()


def link(previous: bytes, content: bytes) -> bytes:
    """Return the hash of an entry that follows one with hash ``previous``."""
    return hashlib.sha256(previous + content).digest()


def append(previous: bytes, kind: Kind, checkpoint: int, at: float, facts: dict[str, Json]) -> Entry:
    """Return the entry that follows one with hash ``previous``.

    Raises:
        TypeError, ValueError: the facts are not JSON.
    """
    content = entry_bytes(kind, checkpoint, at, facts)
    return Entry(content, link(previous, content))


def verify(rows: Iterable[tuple[bytes, bytes]], session: str, head: bytes = b"") -> Fault | None:
    """Return the first fault in a whole chain of ``(content, hash)``, or None.

    ``head`` is the last hash as it was kept elsewhere; with it, missing last entries are found too.
    """
    previous = genesis(session)
    seen_head = not head or head == previous
    count = 0
    for index, (content, stated) in enumerate(rows):
        count = index + 1
        if link(previous, content) != stated:
            return Fault(index, "the entry was changed, or one before it was removed")
        fault = _content_fault(content)
        if fault:
            return Fault(index, fault)
        previous = stated
        seen_head = seen_head or previous == head
    return None if seen_head else Fault(count, "entries at the end are missing")


def read(content: bytes) -> dict[str, Json]:
    """Return an entry's content as a JSON object.

    Raises:
        ValueError: it is not one.
    """
    try:
        found: dict[str, Json] = msgspec.json.decode(content, type=dict)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"not an entry: {error}") from error
    return found


def _content_fault(content: bytes) -> str:
    try:
        found = read(content)
    except ValueError as error:
        return str(error)
    kind = found.get("kind")
    return "" if kind in {member.value for member in Kind} else f"{kind!r} is no kind of entry"
