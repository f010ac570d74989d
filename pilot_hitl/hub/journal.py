"""What an agent of a batch system left behind because no hub acknowledged it: taken in before its tasks run again.

The agent writes ``pilots/N/journal`` as the last thing that it does (``docs/specs/reconnect.md``).
"""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from pathlib import Path

import msgspec

from pilot_hitl.hub import books
from pilot_hitl.hub.live import LiveSession
from pilot_hitl.study import events as ev
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.codec import TO_HUB, FrameError

_log = logging.getLogger(__name__)
NAME, UNREADABLE = "journal", "journal.unreadable"
_decode = msgspec.msgpack.Decoder(tuple[int, int, bytes])


def take(session: LiveSession, number: int) -> int:
    """Take in what the last agent of a pilot left behind; return how many reports it held. Removed once it is written.

    Call it when that agent has ended, and before its tasks are bound anew: what it reports counts as if it had come
    over the wire, by the rules of a reconnect, and what was decided otherwise meanwhile stays as it is.
    """
    path = session.places.pilot(number) / NAME
    try:
        epoch, binding, frame = _decode.decode(path.read_bytes())
        messages = TO_HUB.decode(frame)
    except FileNotFoundError:
        return 0
    except (OSError, msgspec.MsgspecError, FrameError) as error:
        _log.error("what pilot %d of session %s left behind cannot be read: %s", number, session.name, error)
        with contextlib.suppress(OSError):
            path.rename(path.with_name(UNREADABLE))
        return 0
    reports = [report for message in messages if isinstance(message, m.Reports) for report in message.reports]
    if epoch <= session.store.epoch:
        _feed(session, number, binding, reports)
        for message in messages:
            if isinstance(message, m.Spans):
                books.keep(session.store, number, message)
    # Not before it is in the session's file: taking it in twice is harmless, never is not.
    session.once_written.append(partial(_remove, path))
    _log.info("pilot %d of session %s left %d reports behind", number, session.name, len(reports))
    return len(reports)


def _feed(session: LiveSession, number: int, binding: int, reports: list[m.Report]) -> None:
    pilot = session.core.pilots.get(number)
    unheard = pilot is None or not pilot.binding
    if unheard:
        # This hub never met that agent: what it knew counts under the same rules as if it came back, and went at once.
        known = tuple((report.task, report.epoch, report.run) for report in reports)
        session.feed(ev.AgentReady(number, binding, (), known, 0))
    else:
        session.feed(ev.PilotNodes(number, ()))  # what it gives back is not for itself
    session.left_behind(number, reports)
    if unheard:
        session.feed(ev.PilotEnded(number, final=False))
        session.outside.life_over(number)


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        _log.warning("%s cannot be removed: %s", path, error)
