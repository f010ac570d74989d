"""How an attempt of an executable ended: its result, and its failure in words."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.outputs import NOWHERE, Range
from pilot_hitl.model.templates import ExecutableResult
from pilot_hitl_agent.node import gangs
from pilot_hitl_agent.node.attempts import Group
from pilot_hitl_agent.node.events import Ended
from pilot_hitl_agent.node.gangs import Part
from pilot_hitl_agent.node.link import Unspawned
from pilot_hitl_agent.node.logs import TAIL, Logs, read_file, tail_of
from pilot_hitl_agent.node.settings import NodeSettings
from pilot_hitl_agent.node.spawner import LOST
from pilot_hitl_agent.node.spawners import Spawners
from pilot_hitl_agent.node.steps import Fault
from pilot_hitl_agent.node.wrapping import Wrapping

_MISSING = frozenset({errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.ELOOP, errno.EISDIR, errno.EPERM})
KILLED = (-int(signal.SIGKILL), 128 + int(signal.SIGKILL))
"""How a program ends that was killed, and a shell whose program was."""
_TOO_LONG = f"its arguments are too long ({os.strerror(errno.E2BIG)})"
_encoder = msgspec.msgpack.Encoder()


class Endings:
    """Says what became of attempts; it ends nothing itself."""

    def __init__(self, settings: NodeSettings, spawners: Spawners, logs: Logs, wrapping: Wrapping, secret: str) -> None:
        """Look at ``logs`` for what was written; ``secret`` marks what is said by what stands around a program."""
        self._settings = settings
        self._spawners = spawners
        self._logs = logs
        self._wrapping = wrapping
        self._secret = secret
        self._host = settings.inventory.name

    def of(self, group: Group, *, left: bool) -> Ended:
        """Return how an attempt ended; nothing of it runs any more, and all that it left behind is still there.

        ``left``: whether that is something in its sandbox.
        """
        out, out_at, out_tail = self._output(group, 0)
        err, err_at, tail = self._output(group, 1)
        outputs: list[str] = []
        fault = None
        if group.wrap is not None and (group.part is None or group.part.leads):
            told = self._wrapping.end(
                group.wrap, group.plan.template, group.status, self._ranks_of(group), group.failed
            )
            outputs, fault, group.status = told.outputs, told.fault, told.code or group.status
        failure = group.spoiled
        if failure is None and fault is not None:
            failure = self._faulty(group, fault, tail)
        if failure is None and group.status:
            failure, err = self._failure(group, err, tail)
            failure = msgspec.structs.replace(failure, stdout=out_tail[-TAIL:].decode(errors="replace"))
            if group.part is not None and failure.cause is Cause.EXIT:
                group.status = failure.exit_code
        if group.part is not None and not group.part.leads:
            # The part that leads has the result, and the failure if it is one.
            return Ended(group.launch.task, b"", None, group.part.began, time.time(), natural=True)
        result = ExecutableResult(group.status, group.sandbox, out, err, out_at, err_at, outputs, left=left)
        natural = not group.signalled and group.spoiled is None
        ahead = group.launch.condition and (group.plan.template.output_staging or group.body.sandbox)
        unpublished = group.sandbox if ahead else ""
        return Ended(
            group.launch.task, _encoder.encode(result), failure, group.began, group.ended, natural, unpublished
        )

    def unspawned(self, group: Group, news: Unspawned) -> Failure:
        """Return why a process of an attempt could not be started."""
        template, why = group.plan.template, os.strerror(news.number)
        if news.what == LOST:
            return Failure(Cause.PILOT_ENDED, "the request to start it was lost on this node", self._host)
        if news.what == "program":
            text = f"{news.where}: {why}" if news.number != errno.E2BIG else _TOO_LONG
            failure = self.missing(template.executable, text)
            return failure if news.number in _MISSING else Failure(Cause.SETUP, failure.message, self._host)
        cause = Cause.NO_PROGRAM if news.what == "directory" and news.number in _MISSING else Cause.SETUP
        text = f"{news.what} {news.where} of {template.name or template.executable}: {why}"
        return Failure(cause, text, self._host)

    def missing(self, name: str, why: str) -> Failure:
        """Return the failure of a program that cannot be run here."""
        return Failure(Cause.NO_PROGRAM, f"program {name!r} cannot be run: {why}", self._host)

    def _output(self, group: Group, which: int) -> tuple[bytes, Range, bytes]:
        """Return what was written on a stream: inline, where, and at least its end."""
        if path := group.files[which]:
            content, at = read_file(path)
            return content, at, content or tail_of(path)
        told = group.err if which else group.out
        if isinstance(told, bytes):
            return told, NOWHERE, told
        offset, length, checksum, tail = told
        at = Range(self._logs.paths(group.log)[which], offset, length, checksum)
        content = self._logs.read(at)
        return content, at, content or tail

    def _ranks_of(self, group: Group) -> Sequence[int]:
        """Return the ranks whose shells report to this node; none when there is a single one."""
        launch = group.launch
        if launch.ranks <= 1:
            return ()
        if group.part is not None:
            return range(launch.ranks)
        begin = launch.first_rank(self._settings.node)
        return range(begin, begin + len(group.slots))

    def _faulty(self, group: Group, fault: Fault, end: bytes) -> Failure:
        tail = end[-TAIL:].decode(errors="replace")
        if fault.kind == "step":
            return Failure(Cause.SETUP, fault.message, self._host, fault.code, tail)
        if fault.number:
            why = os.strerror(fault.number) if fault.number != errno.E2BIG else _TOO_LONG
        else:
            path = self._spawners.variables(group.plan.environment).get("PATH", "")
            why = fault.message or f"the shell does not find it (PATH={path} before pre_exec)"
        failure = self.missing(group.plan.template.executable, why)
        cause = failure.cause if not fault.number or fault.number in _MISSING else Cause.SETUP
        return msgspec.structs.replace(failure, cause=cause, detail=tail)

    def _failure(self, group: Group, err: bytes, end: bytes) -> tuple[Failure, bytes]:
        """Return what a bad end means, and what of standard error is the task's; ``end`` is at least its end."""
        status, name, host = group.status, group.plan.template.executable, self._host
        if group.part is not None:
            told = self._gang_failure(group, group.part, err, end)
            if told is not None:
                return told
            status, who = gangs.exit_status(status), gangs.first_to_fail(end)
            if who is not None:
                status, which, host = who
                name = f"{which} of {name}"
        tail = end[-TAIL:].decode(errors="replace")
        if status in KILLED and not group.signalled and self._spawners.kernel.took():
            message = f"{name} was killed by the kernel's out-of-memory killer: ask for more memory"
            return Failure(Cause.OOM_KILLED, message, host, status, tail), err
        if status < 0:
            message = f"{name} was ended by signal {-status} ({signal_name(-status)})"
        else:
            message = f"{name} returned exit code {status}{_by_shell(status)}"
        return Failure(Cause.EXIT, message, host, status, tail), err

    def _gang_failure(self, group: Group, part: Part, err: bytes, text: bytes) -> tuple[Failure, bytes] | None:
        """Return what the ranks of a gang, or their MPI, say of why they never ran."""
        program = group.plan.template.executable
        if (told := gangs.told_by_shim(self._secret, text)) is not None:
            kind, sentence, rest = told
            if kind == "program":
                return self.missing(program, sentence), rest
            tail = rest[-TAIL:].decode(errors="replace")
            return Failure(Cause.SETUP, sentence, self._host, group.status, tail), rest
        failure = gangs.told_by_mpi(part, program, self._host, text)
        return (failure, err) if failure is not None else None


def _by_shell(status: int) -> str:
    """Return what an exit code means by which shells tell that a signal ended what they ran; empty for others."""
    name = signal_name(status - 128) if status > 128 else "?"
    return "" if name == "?" else f" (as a shell tells {name})"


def signal_name(number: int) -> str:
    """Return what people call a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "?"
