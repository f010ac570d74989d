"""Nobody waits in silence: who waits for something that does not move is told on standard error what is missing.

Whoever waits longer than :data:`AFTER` seconds registers what is waited for. A thread that lives only as long as
somebody is registered asks the hub whether that moves (a task that runs does), and says what holds it: one line a
cause, once, and again when the cause has changed. Shorter waits ask nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, NamedTuple

from pilot_hitl import errors
from pilot_hitl.wire.waits import LONGEST, MOST_RUNS, MOST_SAID, Waits

AFTER = 10.0
"""Seconds of waiting after which is looked whether anything moves."""
LAST_LOOK, GROWTH = 60.0, 1.5
"""Seconds between two looks at most; each wait for the next one is so many times the one before."""
POLLED = 2.0
"""Seconds between two waits that ended by their time-outs that still count as one."""
PATIENCE = 30.0
POLLER = -1
"""Number of whoever waits in many short waits."""
Ask = Callable[[list[tuple[int, int]], float], dict[str, Any]]


class Wanted:
    """What those who wait, wait for; each adds its own.

    Attributes:
        tasks: ids, as runs ``(first, count)``.
        said: what this side knows to hold them, by cause.
        moves: something is known to move.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.tasks: list[tuple[int, int]] = []
        self.said: dict[str, str] = {}
        self.moves = False


Want = Callable[[Wanted], None]
Report = Callable[[Wanted], None]


class Told(NamedTuple):
    """What was told of a cause, how many lines had been told when it was last seen, and who waited then."""

    text: str
    lines: int
    audience: frozenset[int]


class Log:
    """What was told, and so what is news: each cause once, and again when another one was told since.

    Those who begin to wait when nobody who was told waits any more are told as well, unless it would be the same line.
    """

    def __init__(self) -> None:
        """Start with everything to be told."""
        self._told: dict[str, Told] = {}
        self._present: frozenset[str] = frozenset()
        self._lines = 0

    def news(self, lines: dict[str, str], audience: frozenset[int]) -> list[str]:
        """Return which of the lines, by cause, are to be told to those who wait now."""
        news = []
        for key, text in lines.items():
            known = self._told.get(key)
            changed = known is None or (key not in self._present and known.lines < self._lines)
            anew = known is not None and not known.audience & audience and known.text != text
            if changed or anew:
                news.append(text)
                self._lines += 1
                self._told[key] = Told(text, self._lines, audience)
        for key in lines:
            self._told[key] = self._told[key]._replace(lines=self._lines, audience=audience)
        self._present = frozenset(lines)
        return news


class Silence:
    """Who waits for something of one session, and what they were told. Safe to use from several threads."""

    def __init__(
        self,
        ask: Ask,
        *,
        quiet: bool = False,
        tell: Callable[[str], None] | None = None,
        report: Report | None = None,
    ) -> None:
        """Start without anybody.

        Args:
            ask: ``ask(runs, seconds)`` returns what the hub says of tasks, see :mod:`pilot_hitl.hub.standstill`.
            quiet: tell nothing.
            tell: takes the lines; default writes them to standard error.
            report: ``report(wanted)`` takes what is waited for instead, at each look and, empty, when that is over.
        """
        self._ask = ask
        self._report = report
        self._reported = False
        self._quiet = quiet
        self._tell = write if tell is None else tell
        self._numbers = count()
        self._waiting: dict[int, tuple[float, Want]] = {}
        self._polled: tuple[float, float, Want] | None = None
        self._log = Log()
        self._looked, self._pause = 0.0, AFTER
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._bell = threading.Event()
        self._closing = threading.Event()
        self._over = False

    def begin(self, want: Want, waited: float = 0.0) -> int:
        """Somebody waits, and has waited so many seconds; returns a number for :meth:`end`."""
        number = next(self._numbers)
        if not self._quiet:
            self._waiting[number] = (time.monotonic() - waited, want)
            if self._thread is None or waited:
                self._listen()
        return number

    def say(self, text: str) -> None:
        """Tell everybody who waits, at once."""
        if not self._quiet and self._report is None:
            self._tell(f"pilot-hitl: {text}")

    def end(self, number: int) -> None:
        """Undo :meth:`begin`."""
        self._waiting.pop(number, None)
        if self._reported and not self._waiting:
            self._bell.set()  # the thread reports it: this may be the link's, which must not wait for the link

    def gave_up(self, number: int) -> None:
        """Undo :meth:`begin`; what was waited for is not there."""
        if (found := self._waiting.get(number)) is not None:
            since, want = found
            self.end(number)
            waited = time.monotonic() - since
            if waited < AFTER:  # otherwise it was told of
                self.missed(want, waited)

    @contextmanager
    def waiting(self, want: Want, waited: float = 0.0) -> Iterator[None]:
        """Count as one who waits in the block."""
        number = self.begin(want, waited)
        try:
            yield
        finally:
            self.end(number)

    def hold(
        self, condition: threading.Condition, ready: Callable[[], bool], timeout: float | None, want: Want
    ) -> bool:
        """Wait as ``condition.wait_for(ready, timeout)`` does, the lock held; long waits are told of."""
        if timeout is not None and timeout <= AFTER:
            there = condition.wait_for(ready, timeout)
            if not there and timeout:
                self.missed(want, timeout)
            return there
        if condition.wait_for(ready, AFTER):
            return True
        with self.waiting(want, AFTER):
            return condition.wait_for(ready, None if timeout is None else timeout - AFTER)

    def missed(self, want: Want, waited: float) -> None:
        """A wait of less than :data:`AFTER` seconds was in vain: who waits again and again waits long."""
        if self._quiet:
            return
        now = time.monotonic()
        polled = self._polled
        since = now - waited if polled is None or now - waited - polled[1] > POLLED else polled[0]
        self._polled = (since, now, want)
        if now - since >= AFTER and since + AFTER > self._looked:
            self._listen()

    def close(self) -> None:
        """The session ended."""
        self._quiet = self._over = True
        self._waiting.clear()
        self._bell.set()
        self._closing.set()

    # --- the thread ---------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Let the thread look when it is time, and start it if there is none."""
        self._bell.set()
        with self._lock:
            if self._thread is None and not self._over:
                self._thread = threading.Thread(target=self._watch, name="pilot-hitl-silence", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        while not self._over:
            if self._reported and not self._waiting and self._report is not None:
                self._reported = False
                self._report(Wanted())
            due = self._due()
            if due is None and self._reported:
                continue
            if due is None:
                self._thread = None  # first, so that who comes now starts another one
                with self._lock:
                    if self._thread is not None or self._due() is None:
                        return
                    self._thread = threading.current_thread()
                continue
            left = due - time.monotonic()
            if left <= 0:
                self._look()
            elif self._bell.wait(min(left, AFTER)):  # who begins to wait now is not seen, and is due then
                self._bell.clear()

    def _due(self) -> float | None:
        """Return when to look: once for each who has waited long, and again from time to time; None for never."""
        moments = [since + AFTER for since, _ in list(self._waiting.values())]
        polled = self._polled
        if polled is not None and time.monotonic() - polled[1] <= POLLED:
            moments.append(polled[0] + AFTER)
        return min((each if each > self._looked else self._looked + self._pause for each in moments), default=None)

    def _look(self) -> None:
        wanted, now = Wanted(), time.monotonic()
        wants = {number: want for number, (since, want) in list(self._waiting.items()) if now - since >= AFTER}
        if not wants and self._polled is not None:
            wants = {POLLER: self._polled[2]}
        self._looked, self._pause = now, min(LAST_LOOK, self._pause * GROWTH)
        try:
            for want in wants.values():
                want(wanted)
            if self._report is not None:
                self._reported = True
                self._report(wanted)
                return
            lines = self._lines(wanted, wants.values())
        except TimeoutError:
            lines = {"hub": f"the hub does not answer for {PATIENCE:g} s: see 'pilot-hitl hub status' and its log"}
        except errors.PilotHitlError:  # the session ends; whoever waits hears that
            return
        if not self._over:
            for text in self._log.news(lines, frozenset(wants)):
                self._tell(f"pilot-hitl: {text}")
                self._pause = AFTER

    def _lines(self, wanted: Wanted, wants: Iterable[Want]) -> dict[str, str]:
        lines = dict(wanted.said)
        if not wanted.tasks:
            return lines
        moves, found = self._asked(wanted)
        if not moves and any(each["soft"] for each in found):
            # Between two tasks there is a moment in which none runs: what moves has got on a little later.
            self._closing.wait(AFTER / 10)
            again = Wanted()
            for want in wants:
                want(again)
            if not again.tasks:
                return dict(again.said)
            moves, later = self._asked(again)
            moves = moves or _tasks_of(again) != _tasks_of(wanted)
            keys = {each["key"] for each in found}
            found = [each for each in later if not each["soft"] or each["key"] in keys]
        lines |= {each["key"]: line(each) for each in found if not (each["soft"] and moves)}
        return lines

    def _asked(self, wanted: Wanted) -> tuple[bool, list[dict[str, Any]]]:
        """Return whether what is waited for moves, and what holds it."""
        reply = self._ask(joined(wanted.tasks)[:MOST_RUNS], PATIENCE)
        return wanted.moves or bool(reply["moves"]), reply["found"]


def _tasks_of(wanted: Wanted) -> int:
    return sum(length for _first, length in joined(wanted.tasks))


def joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return runs of ids in order, those that touch or overlap as one."""
    found: list[tuple[int, int]] = []
    for first, length in sorted(runs):
        before = found[-1] if found else (first, 0)
        if first > sum(before) or not found:
            found.append((first, length))
        else:
            found[-1] = (before[0], max(before[1], first + length - before[0]))
    return found


def as_message(task: int, wanted: Wanted) -> Waits:
    """Return what a task that waits tells the hub."""
    said = [text[:LONGEST] for text in wanted.said.values()]
    return Waits(task, tuple(joined(wanted.tasks)[:MOST_RUNS]), tuple(said[:MOST_SAID]))


def line(found: dict[str, Any]) -> str:
    """Return what the hub found to hold tasks, as one sentence."""
    task = f"{found['task']} ({found['name']})" if found["name"] else str(found["task"])
    text = str(found["text"])
    if found["for"]:
        return f"{found['for']} waits for {task}: {text}"
    if found["count"] > 1:
        return f"{found['count']:,} tasks wait, one is {task}: {text}"
    return f"{task} waits: {text}"


def write(text: str) -> None:
    """Write a line to standard error, if there is any."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or none at all
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
