"""Commands of a batch system, run beside the hub's loop: started, watched through a pidfd, ended when they hang."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, NamedTuple

from pilot_hitl.hub.watch import Watch
from pilot_hitl.launch import slurmwords
from pilot_hitl.wire.clock import steady

LIMIT = 30.0
"""Seconds that a command may take."""
MOST_OUTPUT = 64 << 20
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})
"""Errors for which a process cannot be started now, and perhaps later."""


class Finished(NamedTuple):
    """How a command ended. ``unheard``: it could not be started just now, or was ended before it could say anything."""

    code: int
    out: str
    err: str
    unheard: bool = False

    @property
    def silent(self) -> bool:
        """Whether nothing follows from it: there was no answer, at least none that is more than "ask again"."""
        return self.code != 0 and (self.unheard or slurmwords.is_unreachable(self.said))

    @property
    def said(self) -> str:
        """Everything that it said, its complaints first."""
        return f"{self.err.strip()}\n{self.out.strip()}".strip()


Done = Callable[[Finished], None]


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    out: BinaryIO
    err: BinaryIO
    due: float
    limit: float
    done: Done


class Commands:
    """Runs commands; each calls back, once, in a later turn of the loop."""

    def __init__(self, watch: Watch) -> None:
        """Run nothing yet; the loop polls ``watch``."""
        self._watch = watch
        self._running: dict[int, _Running] = {}
        self._killed: set[int] = set()
        self._failed: list[tuple[Done, Finished]] = []

    def run(self, words: Sequence[str], environment: Mapping[str, str], done: Done, limit: float = LIMIT) -> None:
        """Start a command without a shell; ``done`` is called when it ended, could not start, or took too long."""
        files: list[BinaryIO] = []
        try:
            # Files in memory, so that a command that says much never waits for somebody to read it.
            files.extend(os.fdopen(os.memfd_create("output"), "w+b") for _ in range(2))
            out, err = files
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=dict(environment),
                # Not the hub's: that is where some script happened to run, and may be gone.
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            for file in files:
                file.close()
            why = f"{words[0]} cannot be run: {error.strerror}"
            self._failed.append((done, Finished(127, "", why, unheard=error.errno in SHORTAGES)))
            return
        running = _Running(process, out, err, steady() + limit, limit, done)
        descriptor = self._watch.add(process.pid, lambda: self._ended(process.pid), reap=False)
        self._running[process.pid] = running
        if descriptor < 0:  # no descriptor is left to watch it by
            process.kill()
            self._ended(process.pid)

    def forget(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a command whose end nobody will hear of: the hub ends now."""
        with contextlib.suppress(OSError):
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                cwd="/",
                start_new_session=True,
            )
            process.returncode = 0  # Popen would warn that it still runs

    def _ended(self, pid: int) -> None:
        running = self._running.pop(pid)
        late = pid in self._killed
        self._killed.discard(pid)
        code = running.process.wait()
        texts = []
        for file in (running.out, running.err):
            with file:
                file.seek(0)
                texts.append(file.read(MOST_OUTPUT).decode("utf-8", "replace"))
        if late:
            texts[1] += f"\nno answer within {running.limit:g} s (timed out)"
        running.done(Finished(code, texts[0], texts[1], unheard=late or code < 0))

    def next_deadline(self) -> float | None:
        """Return when :meth:`timers` is due."""
        if self._failed:
            return 0.0
        return min((each.due for pid, each in self._running.items() if pid not in self._killed), default=None)

    def timers(self, now: float) -> None:
        """Report what could not start, and kill what takes too long."""
        failed, self._failed = self._failed, []
        for done, finished in failed:
            done(finished)
        for pid, running in self._running.items():
            if running.due <= now and pid not in self._killed:
                self._killed.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop waiting; what runs goes on by itself."""
        for running in self._running.values():
            running.process.returncode = 0
            running.out.close()
            running.err.close()
        self._running.clear()
