"""The shell script around an executable that asks for more than to be started: staging, pre_exec, post_exec.

It runs in the attempt's own process tree, so that a large copy never holds up the daemon and is killed with the task.
What failed is told apart from what the program itself said by a line on standard error that starts with a secret.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pilot_hitl.model.templates import ExecutableTemplate
from pilot_hitl_agent.node import merge

Scope = Literal["all", "rank", "task"]
"""What of a template a script does: what is each rank's (pre_exec, post_exec), what is once a task's (staging), all."""
FAILED = 121
"""Exit code of the script when a step of its own failed."""
_HEAD = """__ph_check() {
  __ph=$?
  [ "$__ph" -eq 0 ] || { printf '\\n%s:%s:%s\\n' "$0" "$__ph" "$1" >&2; exit 121; }
}
"""
_RUN = """command -v -- "$1" >/dev/null 2>&1 || { printf '\\n%s:127:program %s\\n' "$0" "$1" >&2; exit 121; }
"""


class Folders:
    """Where the URLs of staging directives lead."""

    def __init__(self, *, client: str, session: str, pilot: str) -> None:
        """Name the folders behind ``client://``, ``session://`` and ``pilot://``."""
        self._roots = {"client": client, "session": session, "pilot": pilot, "resource": pilot, "endpoint": pilot}

    def resolve(self, place: str, sandbox: str, base: str) -> str:
        """Return the absolute path of a place; relative ones start from ``base``.

        Raises:
            ValueError: its scheme is not one that can be staged here.
        """
        scheme, separator, rest = place.partition("://")
        if not separator:
            return str(Path(base) / place)
        if scheme == "file":
            return "/" + rest.lstrip("/")
        if scheme == "task":
            return f"{sandbox}/{rest.lstrip('/')}"
        root = self._roots.get(scheme)
        if root is None:
            raise ValueError(
                f"{place}: {scheme}:// cannot be staged; use a path, task://, session://, pilot:// or client://"
            )
        return f"{root}/{rest.lstrip('/')}"

    @property
    def client(self) -> str:
        """The client's working directory."""
        return self._roots["client"]


def staging_lines(directives: Sequence[Mapping[str, str]], sandbox: str, folders: Folders, *, out: bool) -> list[str]:
    """Return shell lines, each followed by its check. ``out``: relative sources lie in the sandbox, else targets do.

    Raises:
        ValueError: a directive cannot be meant.
    """
    lines = []
    ours, theirs = (sandbox, folders.client) if out else (folders.client, sandbox)
    for directive in directives:
        action = directive.get("action", "copy").lower()
        given = directive.get("source", "")
        source = folders.resolve(given, sandbox, ours)
        asked = directive.get("target", "") or Path(given.rpartition("://")[2]).name
        target = folders.resolve(asked, sandbox, theirs)
        if asked.endswith("/"):
            target = f"{target.rstrip('/')}/{Path(source).name}"
        verb = {"copy": "cp -aT", "link": "ln -sfnT", "move": "mv -fT", "transfer": "cp -aT", "upload": "cp -aT",
                "download": "cp -aT"}.get(action)  # fmt: skip
        if verb is None:
            raise ValueError(f"staging action {action!r} is none of copy, link, move")
        folder = shlex.quote(str(Path(target).parent))
        lines.append(f"mkdir -p -- {folder} && {verb} -- {shlex.quote(source)} {shlex.quote(target)}")
        lines.append(f"__ph_check {shlex.quote(f'staging {action} {given} > {asked}')}")
    return lines


def staged_outputs(template: ExecutableTemplate, sandbox: str, folders: Folders) -> list[str]:
    """Return the absolute paths that output staging makes."""
    outputs = []
    for directive in template.output_staging:
        given = directive.get("source", "")
        asked = directive.get("target", "") or Path(given.rpartition("://")[2]).name
        target = folders.resolve(asked, sandbox, folders.client)
        outputs.append(f"{target.rstrip('/')}/{Path(given).name}" if asked.endswith("/") else target)
    return outputs


def wrapper(
    template: ExecutableTemplate, sandbox: str, folders: Folders, *, speculative: bool, scope: Scope = "all"
) -> str:
    """Return the script that runs ``"$@"`` with all that the template asks for; empty when that is nothing.

    ``$0`` is the secret. Outputs of a speculative attempt are staged when it is committed, not here.

    Raises:
        ValueError: a staging directive cannot be meant.
    """
    staged, lines = scope != "rank", scope != "task"
    outputs = staging_lines(template.output_staging, sandbox, folders, out=True) if staged and not speculative else []
    before = staging_lines(template.input_staging, sandbox, folders, out=False) if staged else []
    before += _user_lines("pre_exec", template.pre_exec) if lines else []
    after = _user_lines("post_exec", template.post_exec) if lines else []
    if not (before or after or outputs):
        return ""
    if not after and not outputs:
        return "\n".join([_HEAD, *before, _RUN, 'exec "$@"'])
    tail = ['"$@"', "__ph_code=$?", *after]
    if outputs:
        tail += ['[ "$__ph_code" -eq 0 ] || exit "$__ph_code"', *outputs]
    return "\n".join([_HEAD, *before, _RUN, *tail, 'exit "$__ph_code"'])


def publication(template: ExecutableTemplate, own: str, asked: str, folders: Folders) -> str:
    """Return the script that makes a committed attempt's effects real; empty when it has none outside its sandbox."""
    lines = []
    if asked and asked != own:
        # In no environment of the task's: that may hold what breaks an interpreter.
        command = ["/usr/bin/env", "-i", sys.executable, "-I", "-S", merge.__file__, own, asked]
        lines.append(shlex.join(command))
        lines.append(f"__ph_check {shlex.quote(f'publishing {own} as {asked}')}")
    lines += staging_lines(template.output_staging, own, folders, out=True)
    return "\n".join([_HEAD, *lines]) if lines else ""


def failed_step(secret: str, stderr: bytes) -> tuple[int, str, bytes] | None:
    """Return ``(exit code, step, standard error before it)`` when a step of the script's own failed."""
    start = stderr.rfind(b"\n" + secret.encode() + b":")
    if start < 0:
        return None
    line = stderr[start + 1 :].split(b"\n", 1)[0].decode(errors="replace")
    _, code, step = line.split(":", 2)
    return (int(code) if code.isdigit() else 0), step, stderr[:start].replace(secret.encode() + b": ", b"")


def _user_lines(what: str, lines: Sequence[str]) -> list[str]:
    # eval: a line that is not even shell fails alone and by name, instead of spoiling the script.
    return [
        part
        for number, line in enumerate(lines, 1)
        for part in (f"eval {shlex.quote(line)}", f"__ph_check {shlex.quote(f'{what} line {number} ({line})')}")
    ]
