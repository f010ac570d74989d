"""Staging: what is brought into a task's sandbox before it runs, and out of it after.

The one place where the forms in which people write a directive become a :class:`Directive`. The client converts, the
agent finds out where the roots are on its side, and a process beside the task does it (``docs/specs/staging.md``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

Action = Literal["copy", "link", "move"]
Field = Literal["input_staging", "output_staging"]
Number = Callable[[object], int]
"""Returns the number, counted from 1, of the task that a future stands for; raises ValueError when it is no source."""

ACTIONS: Mapping[str, Action] = {
    "copy": "copy", "transfer": "copy", "upload": "copy", "download": "copy", "link": "link", "move": "move",
}  # fmt: skip
"""By what people write. There is one file system, so a transfer, an upload and a download are copies."""
SANDBOX, SESSION, PILOT = "task:", "session:", "pilot:"
"""Roots that only the agent knows."""
_ROOTS = {"session": SESSION, "pilot": PILOT}
_KNOWN = "a path, client://, file://, endpoint://, session:// or pilot://"
_KEYS = ("source", "target", "action")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_ARROW = re.compile(r"<<|>>|<|>")


class Directive(msgspec.Struct, frozen=True, array_like=True):
    """One thing to stage.

    Attributes:
        text: what a failure calls it.
        action: what is done.
        root: where ``source`` starts: an absolute folder, or one of :data:`SANDBOX`, :data:`SESSION`, :data:`PILOT`.
        source: below ``root``; with a slash at its end it must be a folder. It is a pattern when it holds ``*``, ``?``
            or ``[`` and there is no file of that name.
        into: where ``target`` starts, as ``root``.
        target: below ``into``.
        folder: ``target`` is a folder, which takes the source under the source's name.
        origin: which task's sandbox :data:`SANDBOX` means as ``root``: its number in ``ExecutableBody.origins``,
            counted from 1; 0 for the task's own.
    """

    text: str
    action: Action
    root: str
    source: str
    into: str
    target: str
    folder: bool = False
    origin: int = 0

    @property
    def outside(self) -> bool:
        """Whether an input changes something outside of the task's sandbox."""
        return self.action == "move" or self.into != SANDBOX or ".." in self.target.split("/")


def directives(field: Field, value: object, *, folder: str = "/", number: Number | None = None) -> list[Directive]:
    """Return the directives of a description's field, in order.

    Args:
        field: whose they are; an input's target and an output's source lie in the sandbox.
        value: what people wrote: a list of texts (``"source > target"``), paths, ``(future, "name")`` and mappings.
        folder: the client's working directory, from which its relative paths start.
        number: numbers the futures that are named as sources; without it every future will do.

    Raises:
        ValueError: a directive is invalid; the message names it and the remedy.
    """
    if isinstance(value, str | bytes | os.PathLike | Mapping) or not isinstance(value, Iterable):
        shown = f"[{os.fspath(value)!r}]" if isinstance(value, str | os.PathLike) else "['in.dat']"
        raise ValueError(f"{field} is a list; write {shown}, not {value!r}")
    found = []
    for index, item in enumerate(value):
        try:
            found.append(_directive(field, index, item, folder, number))
        except ValueError as error:
            raise ValueError(f"{field}[{index}]: {error}") from None
    if len(found) > 1:
        _refuse_equal_targets(field, found)
    return found


def has_pattern(text: str) -> bool:
    """Return whether a path may be a pattern."""
    return "*" in text or "?" in text or "[" in text


def name_of(path: str) -> str:
    """Return the last part of a path; a slash at its end does not count."""
    return path.rstrip("/").rpartition("/")[2]


def _directive(field: Field, index: int, item: object, folder: str, number: Number | None) -> Directive:
    inward = field == "input_staging"
    source, target, action, future = _parts(item)
    kind = ACTIONS.get(action.lower())
    if kind is None:
        hint = "; a folder is copied whole with action 'copy'" if action.lower() == "tarball" else ""
        raise ValueError(f"action {action!r} is none of {', '.join(ACTIONS)}{hint}")
    origin = 0
    if future is not None:
        if not inward:
            raise ValueError("a future is a source of input_staging only: this task makes its outputs itself")
        if _SCHEME.match(source) or source.startswith("/"):
            raise ValueError(f"{source!r}: with a future, name a file below that task's sandbox")
        origin = 1 if number is None else number(future)
        root = SANDBOX
    elif inward:
        root, source = _client_side(source, folder)
    else:
        root, source = _sandbox_side(source)
    into, under = SANDBOX if inward else folder, ""
    if target:
        into, under = _sandbox_side(target) if inward else _client_side(target, folder)
    _check_names(source, target)
    asks_folder = not target or target.endswith("/") or under in ("", ".")
    if "*" in source or "?" in source:
        if not asks_folder:
            raise ValueError(f"{source!r} is a pattern, so its target is a folder: write '{target}/'")
        if "**" in source:
            raise ValueError(f"{source!r}: '**' is not known; name the folder itself, or each level as '*/*'")
    elif asks_folder and name_of(source) in ("", ".", ".."):
        raise ValueError(f"{source!r} has no name of its own: say under which name it arrives, '{source} > name'")
    shown = source if future is None and isinstance(item, str) else _shown(item, source)
    text = f"{field}[{index}] ({shown}{f' > {target}' if target else ''})"
    return Directive(text, kind, root, source, into, under, asks_folder, origin)


def _shown(item: object, source: str) -> str:
    given = item.get("source", source) if isinstance(item, Mapping) else source
    return str(given) if isinstance(given, str | os.PathLike) else source


def _parts(item: object) -> tuple[str, str, str, object | None]:
    """Return ``(source, target, action, future)``; the future is None where there is none."""
    if isinstance(item, str):
        source, target = _sides(item)
        return source, target, "transfer", None
    if isinstance(item, os.PathLike):
        return _text("source", item), "", "transfer", None
    if isinstance(item, tuple | list):
        future, source = _pair(item)
        return source, "", "transfer", future
    if not isinstance(item, Mapping):
        hint = "; of a future, name the file: (future, 'name')" if hasattr(item, "result") else ""
        raise ValueError(f"write 'source > target' or a mapping with source and target, not {_brief(item)}{hint}")
    unknown = [str(key) for key in item if key not in _KEYS]
    if unknown:
        remedy = "; parents of a target are always made and folders staged whole" if "flags" in unknown else ""
        raise ValueError(f"{unknown[0]!r} is not known; a mapping has {', '.join(_KEYS)}{remedy}")
    given = item.get("source")
    future, source = _pair(given) if isinstance(given, tuple | list) else (None, _text("source", given))
    asked, action = item.get("target"), item.get("action")
    if action is not None and not isinstance(action, str):
        raise ValueError(f"action {action!r} is none of {', '.join(ACTIONS)}")
    return source, "" if asked in (None, "") else _text("target", asked), action or "transfer", future


def _pair(given: tuple[Any, ...] | list[Any]) -> tuple[object, str]:
    if len(given) != 2 or isinstance(given[0], str | bytes | os.PathLike) or given[0] is None:
        raise ValueError(f"write (future, 'name in its sandbox'), not {_brief(given)}")
    return given[0], _text("source", given[1])


def _sides(text: str) -> tuple[str, str]:
    """Return source and target of ``a > b``, ``b < a`` or ``a``."""
    arrows = _ARROW.findall(text)
    if len(arrows) > 1:
        raise ValueError(f"{text!r} has several arrows; write a mapping, {{'source': …, 'target': …}}")
    if not arrows:
        return _text("source", text.strip()), ""
    if len(arrows[0]) > 1:
        raise ValueError(f"{text!r}: files are not appended to each other; write '>' or '<'")
    left, _, right = text.partition(arrows[0])
    source, target = (left, right) if arrows[0] == ">" else (right, left)
    return _text("source", source.strip()), _text("target", target.strip())


def _text(what: str, value: object) -> str:
    if isinstance(value, os.PathLike):
        value = _path(value)
    if not isinstance(value, str):
        if value is None:
            raise ValueError(f"it names no {what}; write 'source > target' or a mapping with source and target")
        hint = f"; of a future, name the file: {{'{what}': (future, 'name')}}" if hasattr(value, "result") else ""
        raise ValueError(f"its {what} is a path as text, not {_brief(value)}{hint}")
    if not value:
        raise ValueError(f"it names no {what}; write 'source > target' or a mapping with source and target")
    return value


def _path(value: os.PathLike[Any]) -> object:
    made: object = os.fspath(value)
    return made


def _check_names(*places: str) -> None:
    for place in places:
        if "\0" in place:
            raise ValueError(f"{place!r}: a file's name has no NUL character")
        try:
            place.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{place!r}: the name cannot be written as UTF-8; stage its folder instead") from None


def _client_side(place: str, folder: str) -> tuple[str, str]:
    scheme, rest = _scheme(place)
    if scheme in ("file", "endpoint"):
        host, _, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise ValueError(f"{place!r}: files of other hosts cannot be staged; write file:///path")
        return "/", path
    if scheme == "client":
        return folder, rest.lstrip("/")
    if scheme:
        return _root(scheme, place), rest.lstrip("/")
    return _split(os.path.expanduser(place), folder)  # text on the wire


def _sandbox_side(place: str) -> tuple[str, str]:
    scheme, rest = _scheme(place)
    if scheme == "task":
        name, _, path = rest.partition("/")
        if name:
            raise ValueError(f"{place!r}: another task's files are named by its future, (future, {path or name!r})")
        return SANDBOX, path.lstrip("/")
    if scheme == "client":
        raise ValueError(f"{place!r}: this side of it lies in the sandbox; write a path relative to that")
    if scheme in ("file", "endpoint"):
        return _client_side(place, "/")
    if scheme:
        return _root(scheme, place), rest.lstrip("/")
    return _split(place, SANDBOX)


def _split(path: str, root: str) -> tuple[str, str]:
    return ("/", path.lstrip("/")) if path.startswith("/") else (root, path)


def _scheme(place: str) -> tuple[str, str]:
    match = _SCHEME.match(place)
    return (match[1].lower(), match[2]) if match else ("", place)


def _root(scheme: str, place: str) -> str:
    if scheme == "task":
        known = f"write {_KNOWN}; a file of another task is (future, 'name')"
        raise ValueError(f"{place!r}: this side of it does not lie in the task's sandbox; {known}")
    root = _ROOTS.get(scheme)
    if root is None:
        known = "pilot:///… or session:///…" if scheme == "resource" else _KNOWN
        raise ValueError(f"{place!r}: {scheme}:// cannot be staged; use {known}")
    return root


def _refuse_equal_targets(field: Field, found: list[Directive]) -> None:
    seen: dict[str, int] = {}
    for index, each in enumerate(found):
        if each.folder and has_pattern(each.source):
            continue  # what it matches is seen when it is done
        # Text on the wire; a root that only the agent knows stands for a folder of that name.
        place = os.path.normpath(os.path.join(each.into, each.target, name_of(each.source) if each.folder else ""))
        before = seen.setdefault(place, index)
        if before != index:
            raise ValueError(f"{field}[{before}] and {field}[{index}] have the same target {place!r}: rename one")


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
