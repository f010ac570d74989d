"""What tasks take over of earlier runs of a script: facts for the study core, and a count for the person.

The core knows keys and states. Whether a result is still there is seen on disk, and whether a file that changed is an
input or was written by the earlier task itself follows from what was seen of it then. Nobody's code runs here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from pilot_hitl.model.failures import RETRYABLE, Cause, Failure
from pilot_hitl.model.files import FileState, Note, changes, written_by
from pilot_hitl.model.reuse import Tally
from pilot_hitl.model.states import State
from pilot_hitl.model.templates import ExecutableResult, FunctionTemplate, Template
from pilot_hitl.wire import values
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.codec import FrameError, unpack_bodies
from pilot_hitl.wire.outputs import bare

if TYPE_CHECKING:
    from pilot_hitl.hub.live import LiveSession
    from pilot_hitl.hub.store import OutcomeRow
    from pilot_hitl.wire import messages as m

CANDIDATES = 16
"""How many earlier tasks with the same work but other files are compared with a new one."""
LIMITED = (Cause.TIMEOUT, Cause.OUT_OF_MEMORY)
"""Ends that a limit of the description brought about: with another limit it is not the same failure."""
_VALUES = (int(State.HELD), int(State.DONE))
_FAILURES = (int(State.HELD_FAILED), int(State.FAILED))
_note = msgspec.msgpack.Decoder(Note)
_result = msgspec.msgpack.Decoder(ExecutableResult)
_template: msgspec.msgpack.Decoder[Template] = msgspec.msgpack.Decoder(Template)


class Reuse:
    """What the runs of one session take over."""

    def __init__(self, session: LiveSession) -> None:
        """Look at a session's file when something is submitted for the second time."""
        self._session = session
        self._tallies: dict[int, Tally] = {}
        self._earlier: dict[int, _Earlier] = {}
        self._changed: dict[int, str] = {}
        self._blobs = BlobStore(session.places.blobs)

    def tally(self, incarnation: int) -> Tally:
        """Return what one run took over so far."""
        return self._tallies.setdefault(incarnation, Tally())

    def forget(self, incarnation: int) -> None:
        """Drop what was only kept for a run that is over."""
        self._tallies.pop(incarnation, None)
        self._earlier.pop(incarnation, None)

    def took(self, task: int, state: State) -> None:
        """Count a task that takes over a record."""
        tally = self.tally(task >> 32)
        if state in _FAILURES:
            tally.kept += 1
        else:
            tally.reused += 1

    def sources(self, submit: m.Submit) -> tuple[tuple[int, int], ...]:
        """Return ``(offset, task)`` of the earlier tasks whose value, failure or attempt new tasks take over."""
        run = submit.first >> 32
        found = self._session.earlier(submit.first, submit.keys)
        known = run in self._earlier
        if not known and not found and not self._has_earlier(run):
            return ()
        earlier = self._earlier.get(run) or self._earlier.setdefault(run, _Earlier(self._session, run))
        missed = [at for at in range(submit.count) if at not in found]
        if missed:
            self._look_by_files(submit, missed, found, earlier)
        if found:
            earlier.used.update(found.values())
            before = set(found.values())
            self._drop_gone(submit, found)
            self._drop_failures(submit, found)
            self._session.core.adoption.replaced(before - set(found.values()))
        return tuple(sorted(found.items()))

    def _has_earlier(self, run: int) -> bool:
        return any(number < run for number in self._session.core.tasks.incarnations())

    # --- what is missed -----------------------------------------------------------------------------------------------

    def _look_by_files(self, submit: m.Submit, missed: list[int], found: dict[int, int], earlier: _Earlier) -> None:
        """Find earlier work whose files are as they were but for what it wrote itself; say what else changed."""
        tally, left = self.tally(submit.first >> 32), len(missed)
        notes = _notes(submit.notes)
        for at in missed if notes else ():
            note = decoded(notes[at]) if at < len(notes) else None
            if note is None:
                continue
            source, different = earlier.same_work(note)
            if source:
                found[at] = source
                earlier.used.add(source)
            if source or different:
                left -= 1
            for now, before in different:
                count, _ = tally.files.get(now.path, (0, ""))
                tally.files[now.path] = (count + 1, now.change(before))
        if left and submit.template in self._session.kinds.functions and (what := self._changed_code(submit, earlier)):
            tally.code[what] = tally.code.get(what, 0) + left

    def _changed_code(self, submit: m.Submit, earlier: _Earlier) -> str:
        """Return what changed of a function since earlier runs; empty for a new one, and for one that is as it was."""
        known = self._changed.get(submit.template)
        if known is None:
            known = self._changed[submit.template] = self._compared(submit, earlier)
        return known

    def _compared(self, submit: m.Submit, earlier: _Earlier) -> str:
        session = self._session
        now = function_of(session.template_blob(submit.template))
        kind = session.kinds.of(submit.template, lambda: session.template_blob(submit.template))
        others = [function_of(session.template_blob(each)) for each in sorted(earlier.templates.get(kind, ()))]
        before = [each for each in others if each is not None and each.fingerprint]
        if now is None or not now.fingerprint or not before:
            return ""
        if any(each.fingerprint == now.fingerprint for each in before):
            return ""
        return ", ".join(changed_parts(now, before[-1])) or now.name

    # --- what is found ------------------------------------------------------------------------------------------------

    def _drop_gone(self, submit: m.Submit, found: dict[int, int]) -> None:
        """Leave out results that are not there any more."""
        tally, state_of = self.tally(submit.first >> 32), self._session.core.tasks.state_of
        wanted = {source: at for at, source in found.items() if state_of(source) in _VALUES}
        for source, missing in self._gone(wanted, function=submit.template in self._session.kinds.functions):
            del found[wanted[source]]
            tally.gone += 1
            tally.missing = tally.missing or missing

    def _gone(self, sources: Iterable[int], *, function: bool) -> Iterator[tuple[int, str]]:
        rows = self._session.store.rows
        for first, count in _runs(sources):
            ends = (first, first + count)
            if function:
                # A value that lies in a file, or one together with what its call wrote.
                query = "SELECT task, payload FROM outcome WHERE task >= ? AND task < ?"
                for task, payload in rows(f"{query} AND substr(payload, 1, 1) IN (x'02', x'03')", ends):
                    if missing := missing_blob(bare(payload), self._blobs):
                        yield task, missing
            else:
                for task, payload in rows("SELECT task, payload FROM outcome WHERE task >= ? AND task < ?", ends):
                    if missing := missing_files(payload):
                        yield task, missing

    def _drop_failures(self, submit: m.Submit, found: dict[int, int]) -> None:
        """Leave out failures that are not to be kept, and count those."""
        state_of = self._session.core.tasks.state_of
        for at, source in [pair for pair in found.items() if state_of(pair[1]) in _FAILURES]:
            row = self._session.store.outcome(source)
            failure = row.outcome().failure if row is not None else None
            if not submit.keeps_failures or not self._is_kept(submit, source, failure):
                del found[at]
                # What failed because of another task did not run, and perhaps will not.
                self.tally(submit.first >> 32).failed += failure is None or failure.cause is not Cause.DEPENDENCY

    def _is_kept(self, submit: m.Submit, source: int, failure: Failure | None) -> bool:
        if failure is None or failure.cause not in RETRYABLE:
            return False
        if failure.cause not in LIMITED:
            return True
        before = self._session.submit_of(source)
        return before is not None and self._limits(submit) == self._limits(before)

    def _limits(self, submit: m.Submit) -> tuple[float, int]:
        """Return how long tasks may run, and how much memory they may use."""
        made = template_of(self._session.template_blob(submit.template))
        return (0.0 if made is None else made.timeout), submit.shape.memory


class _Earlier:
    """What earlier runs submitted, as one run sees it.

    Attributes:
        templates: by kind of work, in every run before.
        used: tasks whose record somebody of this run takes over.
    """

    def __init__(self, session: LiveSession, run: int) -> None:
        self._session = session
        self._run = run
        self._by_base: dict[bytes, list[tuple[int, list[FileState]]]] | None = None
        self._made: dict[str, bool] = {}
        self.templates: dict[int, set[int]] = {}
        self.used: set[int] = set()
        for kind, template in session.templates_before(run << 32):
            self.templates.setdefault(kind, set()).add(template)

    def same_work(self, note: Note) -> tuple[int, list[tuple[FileState, FileState | None]]]:
        """Return the earlier task that is the same work, 0 for none, and then how files differ from the nearest."""
        same = self._notes().get(note.base, ())
        nearest: list[tuple[FileState, FileState | None]] = []
        for task, files in reversed(same[-CANDIDATES:]):
            if task in self.used:
                continue
            different = changes(note.files, files)
            row = self._session.store.outcome(task)
            if row is not None and all(self._wrote(row, now, before) for now, before in different):
                return task, []
            nearest = nearest or different
        return 0, nearest

    def _wrote(self, row: OutcomeRow, now: FileState, before: FileState | None) -> bool:
        """Return whether a task itself wrote what is different now.

        That a file changed while it ran does not say so: a person may have edited an input. One that was once not
        there when such work was submitted, and was last changed while this task ran, is its output.
        """
        if not written_by(now, row.began, row.ended):
            return False
        return before is None or not before.there or self._was_made(now.path)

    def _was_made(self, path: str) -> bool:
        known = self._made.get(path)
        if known is None:
            known = any(_comes_and_goes(path, same) for same in self._notes().values())
            self._made[path] = known
        return known

    def _notes(self) -> dict[bytes, list[tuple[int, list[FileState]]]]:
        if self._by_base is None:
            self._by_base = {}
            for first, blob in self._session.store.rows(
                "SELECT first, notes FROM note WHERE first < ? ORDER BY first", (self._run << 32,)
            ):
                for at, each in enumerate(_notes(blob)):
                    if (note := decoded(each)) is not None:
                        self._by_base.setdefault(note.base, []).append((first + at, note.files))
        return self._by_base


# --- of one task ------------------------------------------------------------------------------------------------------


def missing_files(payload: bytes) -> str:
    """Return what is gone of what an executable left; empty when all of it is there."""
    try:
        result = _result.decode(payload)
    except msgspec.MsgspecError:
        return ""
    if result.left and not _holds_something(result.sandbox):
        return f"its sandbox {result.sandbox}"
    for path in result.outputs:
        if not os.path.lexists(path):
            return f"its output {path}"
    for what, at in (("stdout", result.stdout_at), ("stderr", result.stderr_at)):
        if at.path and not os.path.exists(at.path):
            return f"its {what}, {at.path},"
    return ""


def missing_blob(packed: bytes, blobs: BlobStore) -> str:
    """Return the file that a packed value lies in and that is gone; empty when nothing is."""
    digest = values.blob_of(packed)
    return f"its value {blobs.path(digest)}" if digest and not blobs.path(digest).exists() else ""


def _holds_something(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except PermissionError:
        return True  # the task made it so
    except OSError:
        return False


def changed_parts(now: FunctionTemplate, before: FunctionTemplate) -> list[str]:
    """Return what of a function's code changed, in words that its author knows."""
    names = [name for name, digest in now.parts.items() if before.parts.get(name) != digest]
    return names + [name for name in before.parts if name not in now.parts]


def template_of(blob: bytes) -> Template | None:
    """Return a template; None when it cannot be read."""
    try:
        return _template.decode(blob)
    except (msgspec.MsgspecError, ValueError):
        return None


def function_of(blob: bytes) -> FunctionTemplate | None:
    """Return a template that is a function's."""
    made = template_of(blob)
    return made if isinstance(made, FunctionTemplate) else None


def decoded(blob: bytes) -> Note | None:
    """Return a note; None for none, and for what is none."""
    try:
        return _note.decode(blob) if blob else None
    except msgspec.MsgspecError:
        return None


def _comes_and_goes(path: str, same: list[tuple[int, list[FileState]]]) -> bool:
    """Return whether the same work was submitted both with and without a file being there."""
    there = [any(state.path == path and state.there for state in files) for _task, files in same]
    named = any(state.path == path for _task, files in same for state in files)
    return named and not all(there)


def _notes(blob: bytes) -> list[bytes]:
    try:
        return unpack_bodies(blob) if blob else []
    except FrameError:
        return []


def _runs(tasks: Iterable[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for task in sorted(tasks):
        if runs and sum(runs[-1]) == task:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((task, 1))
    return runs
