"""From what users describe to what travels: templates, bodies, shapes."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import msgspec

from pilot_hitl._functions import PackedFunction
from pilot_hitl.errors import DescriptionError
from pilot_hitl.model.descriptions import CallOptions, TaskDescription
from pilot_hitl.model.templates import ExecutableBody, ExecutableTemplate, FunctionTemplate

_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder(order="deterministic").encode
_SHORT = {"cores": "cores_per_rank", "gpus": "gpus_per_rank", "memory": "mem_per_rank"}
_ACTIONS = frozenset({"copy", "link", "move", "transfer", "tarball"})
_DIRECTIVE = re.compile(r"^\s*(?P<left>.+?)\s*(?P<arrow>>>|<<|>|<)\s*(?P<right>.+?)\s*$")
_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


def call_options(before: CallOptions, changes: dict[str, Any]) -> CallOptions:
    """Return options with these changes; ``cores``, ``gpus``, ``memory`` are the short names of three of them.

    Raises:
        DescriptionError: a name is unknown or a value cannot be meant.
    """
    named = {_SHORT.get(name, name): value for name, value in changes.items()}
    known = CallOptions.__struct_fields__
    for name in named:
        if name not in known:
            close = difflib.get_close_matches(name, [*known, *_SHORT], 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join([*_SHORT, *known])}"
            raise DescriptionError(
                f"options: there is no option {name!r}{hint}. A function's own keywords go to call()"
            )
    options = msgspec.structs.replace(before, **named)
    try:
        options.verify()
    except (ValueError, TypeError, AttributeError) as error:
        raise DescriptionError(str(error)) from error
    return options


def function_template(packed: PackedFunction, options: CallOptions) -> bytes:
    """Return the encoded template of a function's calls."""
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
            sandbox=absolute(options.sandbox),
            anew=packed.anew,
        )
    )


def executable_template(task: TaskDescription) -> bytes:
    """Return the encoded template of an executable.

    Raises:
        DescriptionError: a staging directive cannot be read.
    """
    return _encode(
        ExecutableTemplate(
            executable=task.executable,
            name=task.name or os.path.basename(task.executable),  # text, not a path of this machine
            environment=task.environment,
            named_env=task.named_env,
            pre_exec=task.pre_exec,
            post_exec=task.post_exec,
            input_staging=[staging(item, inward=True) for item in task.input_staging],
            output_staging=[staging(item, inward=False) for item in task.output_staging],
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


def executable_body(task: TaskDescription) -> bytes:
    """Return the encoded part of an executable that is its own."""
    return _encode(ExecutableBody(task.arguments, absolute(task.sandbox)))


def verified(task: TaskDescription) -> TaskDescription:
    """Return the description when it can be meant.

    Raises:
        DescriptionError: it cannot; the message names the attribute and the remedy.
    """
    if not isinstance(task, TaskDescription):
        raise DescriptionError(
            f"submit() takes a TaskDescription or a list of them, not {type(task).__name__}; functions go to call()"
        )
    try:
        task.verify()
    except (ValueError, TypeError, AttributeError) as error:
        raise DescriptionError(str(error)) from error
    return task


def as_list(tasks: object) -> list[TaskDescription]:
    """Return many descriptions as a list.

    Raises:
        DescriptionError: it is something else.
    """
    if not isinstance(tasks, Iterable) or isinstance(tasks, str | bytes | dict):
        raise DescriptionError(
            f"submit() takes a TaskDescription or a list of them, not {type(tasks).__name__}; functions go to call()"
        )
    return [verified(task) for task in tasks]


def content_of(task: TaskDescription) -> bytes:
    """Return all of a description but its key, as bytes that are equal for equal descriptions."""
    try:
        return _encode_json(task)
    except (UnicodeEncodeError, TypeError, msgspec.MsgspecError):
        return repr(task).encode("utf-8", "backslashreplace")


def absolute(folder: str) -> str:
    """Return a folder as an absolute path, seen from the client's working directory; empty stays empty."""
    return os.path.abspath(os.path.expanduser(folder)) if folder else ""  # text on the wire


def staging(directive: str | dict[str, Any], *, inward: bool) -> dict[str, str]:
    """Return a staging directive as ``{"source", "target", "action"}``, one of RADICAL-Pilot's forms normalised.

    The client's side of it (source of an input, target of an output) becomes absolute; the other side stays relative
    to the sandbox, and URLs of other places (``pilot:///…``, ``session:///…``) stay as they are.

    Raises:
        DescriptionError: it cannot be read.
    """
    source, target, action = _parts(directive)
    if action not in _ACTIONS:
        raise DescriptionError(f"staging {directive!r}: action {action!r} is none of {', '.join(sorted(_ACTIONS))}")
    name = source.rstrip("/").rpartition("/")[2]
    if inward:
        return {"source": _client_side(source), "target": _sandbox_side(target or name), "action": action}
    return {"source": _sandbox_side(source), "target": _client_side(target or name), "action": action}


def _parts(directive: str | dict[str, Any]) -> tuple[str, str, str]:
    if isinstance(directive, str):
        match = _DIRECTIVE.match(directive)
        if match is None:
            return directive.strip(), "", "transfer"
        left, right = match["left"], match["right"]
        return (left, right, "transfer") if match["arrow"].startswith(">") else (right, left, "transfer")
    if not isinstance(directive, dict) or not directive.get("source"):
        raise DescriptionError(f"staging {directive!r}: write 'source > target' or a mapping with source and target")
    action = str(directive.get("action") or "transfer").lower()
    return os.fspath(directive["source"]), os.fspath(directive.get("target") or ""), action


def _client_side(place: str) -> str:
    if place.startswith("file://"):
        return "/" + place.removeprefix("file://").lstrip("/")
    if place.startswith("client://"):
        place = place.removeprefix("client://").lstrip("/")
    return place if "://" in place else absolute(place)


def _sandbox_side(place: str) -> str:
    return place.removeprefix("task://").lstrip("/") if place.startswith("task://") else place


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
    elif isinstance(duration, int | float):
        value = float(duration)
    else:
        raise DescriptionError(f"{before}{duration!r} is not a duration: write seconds, a timedelta, or text like '8h'")
    if not 0 <= value < 1e10:
        raise DescriptionError(f"{before}{duration!r} is not a duration from now on")
    return value


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
