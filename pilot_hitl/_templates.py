"""From what users describe to what travels: templates, bodies, shapes."""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Protocol, Self, TypeVar, cast

import msgspec

from pilot_hitl._functions import PackedFunction
from pilot_hitl.errors import DescriptionError
from pilot_hitl.model.checks import as_number, shown, suggestion
from pilot_hitl.model.descriptions import CallOptions, PilotDescription, TaskDescription
from pilot_hitl.model.staging import Directive, Number, directives, has_pattern
from pilot_hitl.model.templates import ExecutableBody, ExecutableTemplate, FunctionTemplate
from pilot_hitl.wire import current
from pilot_hitl.wire.modulefinder import source_digest

_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder(order="deterministic").encode
_SHORT = {"cores": "cores_per_rank", "gpus": "gpus_per_rank", "memory": "mem_per_rank"}
_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


class Described(Protocol):
    """What can be checked before it is sent."""

    def verify(self) -> Self:
        """Return it with plain values; raises ValueError."""


D = TypeVar("D", bound=Described)


def call_options(before: CallOptions, changes: dict[str, Any]) -> CallOptions:
    """Return options with these changes; ``cores``, ``gpus``, ``memory`` are the short names of three of them.

    Raises:
        DescriptionError: a name is unknown or a value cannot be meant.
    """
    named = {_SHORT.get(name, name): value for name, value in changes.items()}
    known = CallOptions.__struct_fields__
    for name in named:
        if name not in known:
            hint = suggestion(name, [*_SHORT, *known])
            raise DescriptionError(f"options: there is no option {name!r}{hint} A function's own keywords go to call()")
    return checked(msgspec.structs.replace(before, **named), "")


def function_template(packed: PackedFunction, options: CallOptions, parts: dict[str, bytes] | None = None) -> bytes:
    """Return the encoded template of a function's calls; ``parts`` as in :class:`FunctionTemplate`."""
    return _encode(
        FunctionTemplate(
            digest=packed.digest,
            code=packed.code,
            name=options.name or packed.name,
            environment=options.environment,
            timeout=float(options.timeout),
            grace=float(options.grace),
            on_preempt=options.on_preempt,
            effects=options.effects,
            expected_runtime=float(options.expected_runtime),
            sandbox=_sandbox(options.sandbox),
            logging=logging_level(),
            anew=packed.anew,
            fingerprint=packed.fingerprint,
            parts=parts or {},
            modules=source_digest(packed.modules) if packed.modules else b"",
        )
    )


def _sandbox(folder: str) -> str:
    made = absolute(folder)
    _check_encodable("sandbox", made)
    return made


def logging_level() -> int:
    """Return how the script configured its root logger, see ``FunctionTemplate.logging``."""
    root = logging.getLogger()
    if root.handlers:
        return root.level or 1
    return 0 if root.level == logging.WARNING else -(root.level or 1)


Staged = tuple[list[Directive], list[Directive]]
"""What a task stages in and out."""


def staging_of(task: TaskDescription, number: Number | None = None) -> Staged:
    """Return what a description stages in and out; ``number`` as in :func:`pilot_hitl.model.staging.directives`.

    Raises:
        DescriptionError: a directive is invalid.
    """
    if not task.input_staging and not task.output_staging:
        return [], []
    folder = _from_here(".")
    try:
        return (
            _found(directives("input_staging", task.input_staging, folder=folder, number=number), folder),
            directives("output_staging", task.output_staging, folder=current.folder or folder),
        )
    except ValueError as error:
        raise DescriptionError(str(error)) from error


def _found(inputs: list[Directive], folder: str) -> list[Directive]:
    """Let a call that runs ahead of a decision, in a ``folder`` of its own, stage what a needed one would."""
    if not current.folder:
        return inputs
    for at, each in enumerate(inputs):
        if each.root == folder and not os.path.lexists(f"{folder}/{each.source}"):  # as above
            if has_pattern(each.source):
                # Which files it means lies in both folders: this call ends here, and is tried again once it counts.
                os.listdir(folder)
            inputs[at] = msgspec.structs.replace(each, root=current.folder)
    return inputs


def executable_template(task: TaskDescription, staged: Staged | None = None) -> bytes:
    """Return the encoded template of an executable; ``staged`` is what :func:`staging_of` returned for it.

    Raises:
        DescriptionError: a directive is invalid.
    """
    inward, outward = staged or staging_of(task)
    return _encode(
        ExecutableTemplate(
            executable=task.executable,
            name=task.name or os.path.basename(task.executable),  # text, not a path of this machine
            environment=task.environment,
            named_env=task.named_env,
            pre_exec=task.pre_exec,
            post_exec=task.post_exec,
            input_staging=inward,
            output_staging=outward,
            stdout=task.stdout,
            stderr=task.stderr,
            timeout=float(task.timeout),
            grace=float(task.grace),
            on_preempt=task.on_preempt,
            effects=task.effects,
            expected_runtime=float(task.expected_runtime),
            container=task.container,
            mem_per_rank=task.mem_per_rank,
            launcher=task.launcher,
        )
    )


def executable_body(task: TaskDescription, origins: Iterable[int] = ()) -> bytes:
    """Return the encoded part of an executable that is its own; ``origins``: see :class:`ExecutableBody`.

    Raises:
        DescriptionError: its sandbox lies where no message can name it.
    """
    body = ExecutableBody(task.arguments, absolute(task.sandbox), list(origins))
    try:
        return _encode(body)
    except UnicodeEncodeError:
        _check_encodable("sandbox", body.sandbox)
        return _encode(body.split())


def _check_encodable(what: str, folder: str) -> None:
    if not _is_text(folder):
        raise DescriptionError(f"{what}: {folder!r} is no UTF-8: rename the folder, or name another one")


def checked(description: D, what: str) -> D:
    """Return a description with plain values: itself, where all are already. ``what`` is said before an error.

    Raises:
        DescriptionError: it cannot be meant; the message names the attribute and the remedy.
    """
    try:
        return description.verify()
    except ValueError as error:
        raise DescriptionError(f"{what}: {error}" if what else str(error)) from error


def verified(task: object) -> TaskDescription:
    """Return the description with plain values when it can be meant.

    Raises:
        DescriptionError: it cannot; the message names the attribute and the remedy.
    """
    if not isinstance(task, TaskDescription):
        mapping = "; for a mapping write TaskDescription(**mapping)" if isinstance(task, Mapping) else ""
        raise DescriptionError(
            f"submit() takes a TaskDescription or a list of them, not {type(task).__name__}{mapping}; functions go to "
            "call()"
        )
    return checked(task, "")


def as_list(tasks: object) -> list[TaskDescription]:
    """Return many descriptions as a list, each as :func:`verified`.

    Raises:
        DescriptionError: it is something else.
    """
    if not isinstance(tasks, Iterable) or isinstance(tasks, str | bytes | Mapping):
        return [verified(tasks)]
    return [verified(task) for task in tasks]


def checked_pilots(pilots: object) -> list[PilotDescription]:
    """Return descriptions of pilots with plain values, as copies: they are sent after this returns.

    Raises:
        DescriptionError: one of them is none or cannot be meant; the message names the attribute and the remedy.
    """
    several = isinstance(pilots, Iterable) and not isinstance(pilots, str | bytes | Mapping)
    made = []
    for each in cast("Iterable[object]", pilots) if several else [pilots]:
        if not isinstance(each, PilotDescription):
            raise DescriptionError(f"submit_pilot() takes a PilotDescription or a list of them, not {shown(each)}")
        made.append(copy.deepcopy(checked(each, "submit_pilot")))
    return made


def surroundings() -> tuple[dict[str, str], str, list[str]]:
    """Return the script's environment, working directory and module path, from which its tasks start.

    What is no UTF-8 cannot travel: variables are left out, after a warning.
    """
    try:
        here = os.getcwd()  # a text is wanted
    except OSError:  # the directory was removed
        here = "/"
    environment = {name: value for name, value in os.environ.items() if _is_text(name + value)}
    if left := sorted(repr(name) for name in os.environ if name not in environment):
        warnings.warn(f"tasks do not get {', '.join(left)}: it is no UTF-8 and cannot travel", stacklevel=5)
    return environment, here, [os.path.join(here, entry) for entry in sys.path if _is_text(entry)]  # may be empty


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


APART: dict[str, Any] = {
    each.name: each.default if each.default is not msgspec.NODEFAULT else each.default_factory()
    for each in msgspec.structs.fields(TaskDescription)
    if each.name
    in {
        "name", "mem_per_rank", "timeout", "priority", "tags", "retries", "on_preempt", "effects", "expected_runtime",
        "reads", "key", "retry_failed", "backfill", "grace",
    }
}  # fmt: skip
"""What of a description is no part of the work: when and how often it is tried, what bounds it, what people call it.

What it gets is a part of it: a program may compute something else on more cores, in another place or environment.
"""
_COUNTED = sorted(set(CallOptions.__struct_fields__) - APART.keys())


def content_of(task: TaskDescription, inward: list[Directive] | None = None) -> bytes:
    """Return what a description says of the work itself, as bytes that are equal for equal work.

    ``inward``: what it stages in, of a description in which futures are named.
    """
    if inward is not None:
        return content_of(msgspec.structs.replace(task, input_staging=[])) + _encode(inward)
    task = msgspec.structs.replace(task, **APART)
    try:
        return _encode_json(task)
    except (UnicodeEncodeError, TypeError, msgspec.MsgspecError):
        return repr(task).encode("utf-8", "backslashreplace")


def counted_options(options: CallOptions) -> bytes:
    """Return what options say of the work itself, as :func:`content_of`; empty when all is as it is by default."""
    told = {name: value for name in _COUNTED if (value := getattr(options, name)) != getattr(_DEFAULTS, name)}
    if "sandbox" in told:
        told["sandbox"] = absolute(options.sandbox)
    return _encode_json(told) if told else b""


_DEFAULTS = CallOptions()


def absolute(folder: str) -> str:
    """Return a folder as an absolute path, seen from the client's working directory; empty stays empty.

    In a call that runs ahead of a decision that is the folder in which it would run if it were needed.

    Raises:
        DescriptionError: there is no working directory any more.
    """
    return _from_here(os.path.join(current.folder, os.path.expanduser(folder))) if folder else ""  # text on the wire


def _from_here(path: str) -> str:
    """Return a path as an absolute one, seen from where this process is.

    For a call that runs ahead of a decision that is its own folder.

    Raises:
        DescriptionError: as :func:`absolute`.
    """
    try:
        return os.path.abspath(path)  # as above
    except OSError as error:
        raise DescriptionError(f"{path!r} is relative, and this script's working directory is gone") from error


def seconds(duration: str | float | timedelta | None, what: str = "") -> float:
    """Return a duration in seconds: a number of them, a timedelta, or text such as ``"8h"`` or ``"1h 30m"``; None is 0.

    Raises:
        DescriptionError: it cannot be read, or is negative; the message begins with ``what``.
    """
    before = f"{what}: " if what else ""
    if duration is None:
        return 0.0
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, str):
        value = _seconds_of_text(duration, before)
    else:
        try:
            value = as_number("", duration)
        except ValueError as error:
            raise DescriptionError(
                f"{before}{shown(duration)} is not a duration: write seconds, a timedelta, or text like '8h'"
            ) from error
    if not 0 <= value < 1e10:
        raise DescriptionError(f"{before}{shown(duration)} is not a duration from now on")
    return float(value)


def _seconds_of_text(text: str, before: str) -> float:
    total, position = 0.0, 0
    plain = text.strip().lower()
    while position < len(plain) or not plain:
        match = _DURATION.match(plain, position)
        if match is None or match[2] not in _UNITS:
            raise DescriptionError(
                f"{before}{text!r} is not a duration: write it like '8h', '90 min', '1h 30m' or '2d'"
            )
        total += float(match[1]) * _UNITS[match[2]]
        position = match.end()
    return total
