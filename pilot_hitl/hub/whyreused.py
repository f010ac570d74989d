"""Why a task took over a result of an earlier run, or why it did not, in words; from what a session's file says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from pilot_hitl.hub.reuse import changed_parts, decoded, missing_blob, missing_files, template_of
from pilot_hitl.hub.store import OutcomeRow
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.files import FileState, changes
from pilot_hitl.model.ids import task_name
from pilot_hitl.model.states import State
from pilot_hitl.model.templates import ExecutableBody, FunctionTemplate, Template
from pilot_hitl.wire.arguments import arguments_of
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.codec import FrameError, unpack_bodies
from pilot_hitl.wire.messages import Submit
from pilot_hitl.wire.outputs import bare

KEY_BYTES = 16
NEAR = 200
"""How many earlier tasks of the same name are compared with one."""
TOLD = 6
"""How many differences are said."""
LONGEST = 120
"""Characters of a value that is said."""
_VALUES = (int(State.HELD), int(State.DONE))
_FAILURES = (int(State.HELD_FAILED), int(State.FAILED))
_COUNTED = {
    "executable": "its executable",
    "environment": "environment",
    "pre_exec": "pre_exec",
    "post_exec": "post_exec",
    "input_staging": "input_staging",
    "output_staging": "output_staging",
    "stdout": "stdout",
    "stderr": "stderr",
    "launcher": "launcher",
    "sandbox": "sandbox",
}
"""Attributes of templates that are part of the work, and how people call them."""
_SHAPE = {
    "ranks": "ranks",
    "cores": "cores",
    "gpu_shares": "gpus",
    "ranks_per_node": "ranks_per_node",
    "alternatives": "alternatives",
}
_specs = msgspec.msgpack.Decoder(Submit)
_bodies = msgspec.msgpack.Decoder(ExecutableBody)
_failures = msgspec.msgpack.Decoder(Failure)
Rows = Callable[[str, tuple[Any, ...]], Iterable[tuple[Any, ...]]]
"""Runs a query over a session's file."""


class _Work(NamedTuple):
    """One task, as far as its key goes."""

    task: int
    submit: Submit
    template: Template
    key: bytes
    body: bytes
    files: list[FileState]
    base: bytes


class WhyReused:
    """Looks into one session's file."""

    def __init__(self, rows: Rows, blobs: BlobStore) -> None:
        """Ask ``rows``; large arguments lie in ``blobs``."""
        self._rows = rows
        self._blobs = blobs
        self._templates: dict[int, Template | None] = {}

    def of(self, task: int) -> str:
        """Return in one sentence why a task took over a result, or why it did not; empty for an unknown task."""
        work = self._work(task)
        if work is None:
            return ""
        row = self._outcome(task)
        before = self._same_key(work)
        if row is not None and row.reused:
            return self._taken(work, row, before)
        run = task >> 32
        if not work.key:
            return (
                "it has no resume key, so it runs in every run: something that it is made of, or depends on, is not "
                "known by its content (a NotResumableWarning said what); options(key=…) gives it one"
            )
        if before:
            return self._not_taken(before)
        earlier = [each for each in self._same_name(work) if each >> 32 < run]
        if not earlier:
            return f"it ran for the first time: no earlier run had a task called {work.template.name!r}"
        return self._nearest(work, earlier)

    # --- what is said -------------------------------------------------------------------------------------------------

    def _taken(self, work: _Work, row: OutcomeRow, before: list[int]) -> str:
        source = next(
            (
                each
                for each in [*before, *self._same_base(work)]
                if (old := self._outcome(each)) is not None and not old.reused
            ),
            0,
        )
        what = "its failure" if row.state in _FAILURES else "its result"
        stored = f"{what} is stored from run {source >> 32} ({task_name(source)})" if source else f"{what} was stored"
        wrote = (
            ""
            if source in before or not source
            else "; files that differ from what was seen then were written by that task itself"
        )
        kept = "; failures are kept (retry_failed=False)" if row.state in _FAILURES else ""
        return f"{stored}: it is the same work{wrote}{kept}"

    def _not_taken(self, before: list[int]) -> str:
        """Return why the latest task with the same key was not taken over."""
        task = before[0]
        row, where = self._outcome(task), f"run {task >> 32} ({task_name(task)})"
        if row is None:
            return f"it is the same work as in {where}, which had not ended"
        if row.state in _VALUES:
            executable = row.payload[:1] and 0x90 <= row.payload[0] < 0xA0
            missing = missing_files(row.payload) if executable else missing_blob(bare(row.payload), self._blobs)
            gone = f"{missing} is gone" if missing else "it was not counted there"
            return f"it is the same work as in {where}, but {gone}, so it ran again"
        failure = _failures.decode(row.failure) if row.failure else None
        if row.state in _FAILURES and failure is not None and failure.cause is not Cause.SUPERSEDED:
            return (
                f"it is the same work as in {where}, but failed then ({_cut(failure.message)}), and failures run again "
                "(retry_failed=False keeps them)"
            )
        return f"it is the same work as in {where}, but ended there as {State(row.state).name}"

    def _nearest(self, work: _Work, earlier: list[int]) -> str:
        """Return how a task differs from that of the last run which differs least; of equal ones the same-numbered."""
        last = max(each >> 32 for each in earlier)
        there = [each for each in earlier if each >> 32 == last]
        mine = [each for each in self._same_name(work) if each >> 32 == work.task >> 32]
        at = mine.index(work.task) if work.task in mine else 0
        begin = max(0, min(at - NEAR // 2, len(there) - NEAR))
        best: tuple[int, int, int, list[str]] | None = None
        for index in range(begin, min(begin + NEAR, len(there))):
            other = self._work(there[index])
            if other is None:
                continue
            found = list(self._differences(work, other))
            rank = (len(found), abs(index - at), there[index], found)
            best = rank if best is None or rank[:2] < best[:2] else best
        if best is None:
            return "it ran for the first time"
        where = f"{task_name(best[2])} of run {last}"
        if not best[3]:
            return f"it is one more of the same work than run {last} had; the nearest is {where}"
        more = f"; and {len(best[3]) - TOLD} more differences" if len(best[3]) > TOLD else ""
        return f"it is not the same work as the nearest, {where}: {'; '.join(best[3][:TOLD])}{more}"

    def _differences(self, now: _Work, before: _Work) -> Iterator[str]:
        yield from (state.change(old) for state, old in changes(now.files, before.files))
        yield from self._of_templates(now, before)
        if isinstance(now.template, FunctionTemplate):
            yield from self._of_arguments(now, before)
        else:
            mine, theirs = _executable_body(now.body), _executable_body(before.body)
            if mine.arguments != theirs.arguments:
                yield f"its arguments: {_cut(repr(theirs.arguments))} then, {_cut(repr(mine.arguments))} now"
            if mine.sandbox != theirs.sandbox:
                yield f"sandbox: {theirs.sandbox!r} then, {mine.sandbox!r} now"
        for name, said in _SHAPE.items():
            new, old = getattr(now.submit.shape, name), getattr(before.submit.shape, name)
            if new != old:
                yield f"{said}: {old} then, {new} now"
        if now.submit.site != before.submit.site:
            yield f"site: {before.submit.site!r} then, {now.submit.site!r} now"
        yield from self._of_dependencies(now, before)

    @staticmethod
    def _of_templates(now: _Work, before: _Work) -> Iterator[str]:
        new, old = now.template, before.template
        if isinstance(new, FunctionTemplate) is not isinstance(old, FunctionTemplate):
            yield "one of them is a function, the other a program"
            return
        if (
            isinstance(new, FunctionTemplate)
            and isinstance(old, FunctionTemplate)
            and new.fingerprint != old.fingerprint
        ):
            yield f"the code of {', '.join(changed_parts(new, old)[:TOLD]) or new.name} changed"
        for name, said in _COUNTED.items():
            if getattr(new, name, None) != getattr(old, name, None):
                yield f"{said}: {_cut(repr(getattr(old, name)))} then, {_cut(repr(getattr(new, name)))} now"

    def _of_arguments(self, now: _Work, before: _Work) -> Iterator[str]:
        new, old = arguments_of(now.body, self._blobs), arguments_of(before.body, self._blobs)
        if new is None or old is None:
            if now.body != before.body:
                yield "its arguments are others"
            return
        for name in [*new, *(each for each in old if each not in new)]:
            if new.get(name, ("", ""))[1] != old.get(name, ("", ""))[1]:
                then, told = old.get(name, ("not given", ""))[0], new.get(name, ("not given", ""))[0]
                yield f"{name}: {_cut(then)} then, {_cut(told)} now"

    def _of_dependencies(self, now: _Work, before: _Work) -> Iterator[str]:
        if len(now.submit.deps) != len(before.submit.deps):
            yield f"it depends on {len(now.submit.deps)} tasks, and on {len(before.submit.deps)} then"
            return
        for mine, theirs in zip(now.submit.deps, before.submit.deps, strict=True):
            new, old = self._work(mine), self._work(theirs)
            if new is not None and old is not None and new.key != old.key:
                yield f"what it depends on, {new.template.name} ({task_name(mine)}), is not the same work as then"
                return

    # --- what is read -------------------------------------------------------------------------------------------------

    def _work(self, task: int) -> _Work | None:
        query = "SELECT first, spec, keys, bodies FROM bulk WHERE first <= ? ORDER BY first DESC LIMIT 1"
        for first, spec, keys, bodies in self._rows(query, (task,)):
            submit, at = self._spec(spec), task - first
            template = self._template(submit.template) if submit is not None else None
            if submit is None or template is None or at >= submit.count:
                return None
            note = None
            for (blob,) in self._rows("SELECT notes FROM note WHERE first = ?", (first,)):
                note = decoded(_one_of(blob, at))
            key = bytes(keys[KEY_BYTES * at : KEY_BYTES * (at + 1)])
            files, base = (note.files, note.base) if note is not None else ([], b"")
            return _Work(task, submit, template, key, _one_of(bodies, at), files, base)
        return None

    @staticmethod
    def _spec(blob: bytes) -> Submit | None:
        try:
            return _specs.decode(blob)
        except (msgspec.MsgspecError, ValueError):
            return None

    def _template(self, number: int) -> Template | None:
        if number not in self._templates:
            found = next(iter(self._rows("SELECT blob FROM template WHERE id = ?", (number,))), None)
            self._templates[number] = template_of(found[0]) if found else None
        return self._templates[number]

    def _outcome(self, task: int) -> OutcomeRow | None:
        found = next(iter(self._rows("SELECT * FROM outcome WHERE task = ?", (task,))), None)
        return OutcomeRow(*found) if found else None

    def _same_key(self, work: _Work) -> list[int]:
        """Return the tasks of earlier runs with the same key, the latest first."""
        if not work.key:
            return []
        found = []
        query = "SELECT first, keys FROM bulk WHERE first < ? AND instr(keys, ?) ORDER BY first DESC"
        for first, keys in self._rows(query, (work.task >> 32 << 32, work.key)):
            at = keys.find(work.key)
            while at >= 0:
                if at % KEY_BYTES == 0:
                    found.append(first + at // KEY_BYTES)
                at = keys.find(work.key, at + 1)
        return found

    def _same_base(self, work: _Work) -> list[int]:
        """Return the tasks of earlier runs that are the same work, whatever is in its files; the latest first."""
        found = []
        query = "SELECT first, notes FROM note WHERE first < ? AND instr(notes, ?) ORDER BY first DESC"
        for first, blob in self._rows(query, (work.task >> 32 << 32, work.base)) if work.base else ():
            notes = [decoded(each) for each in _all_of(blob)]
            found += [first + at for at, note in enumerate(notes) if note is not None and note.base == work.base]
        return found

    def _same_name(self, work: _Work) -> list[int]:
        """Return the tasks of all runs that people call the same, in order."""
        found: list[int] = []
        for first, spec in self._rows("SELECT first, spec FROM bulk ORDER BY first", ()):
            submit = self._spec(spec)
            template = self._template(submit.template) if submit is not None else None
            if submit is not None and template is not None and template.name == work.template.name:
                found.extend(range(first, first + submit.count))
        return found


def _all_of(blob: bytes) -> list[bytes]:
    try:
        return unpack_bodies(blob)
    except FrameError:
        return []


def _one_of(blob: bytes, at: int) -> bytes:
    found = _all_of(blob)
    return found[at] if at < len(found) else b""


def _executable_body(blob: bytes) -> ExecutableBody:
    try:
        return _bodies.decode(blob).whole()
    except msgspec.MsgspecError:
        return ExecutableBody()


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
