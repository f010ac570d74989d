"""What stands around an executable that asks for more than to be started: the stager, and the shell of its lines.

Staging is done by :mod:`.stage`, in a process of its own, so that nothing which a user's line does to its shell can
touch it. The lines of ``pre_exec`` and ``post_exec`` are run by one shell, without positional parameters; program and
arguments stand in its text alone. Both tell what they did in the attempt's report (:mod:`.steps`), never in what the
task itself writes.
"""

from __future__ import annotations

import marshal
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pilot_hitl.model.staging import PILOT, SANDBOX, SESSION, Directive, name_of
from pilot_hitl.model.templates import ExecutableTemplate
from pilot_hitl.wire.current import RANK_VARIABLE
from pilot_hitl_agent.node import stage

TRAPS = ".t"
"""Behind the name of a shell's report: the traps that the user has set."""
STAGER = (sys.executable, "-I", "-S", str(Path(stage.__file__).resolve()))
LONGEST = 100_000
"""Bytes of what travels as an argument; the kernel takes 131,071."""

# A step ends what was before ($1 is its exit code), and says in the report what comes ($2). It puts the user's -x out
# of the way, so that what is traced is the user's alone. BUILTIN finds what the user may have hidden behind a function.
_HEAD = r"""__ph_step() {
  case $1 in 0) ;; *) BUILTIN printf 'stuck %s\n' "$1" >>"$__ph_to"; return 1;; esac
  case $- in *x*) __ph_x=-; BUILTIN set +x;; *) __ph_x=+;; esac
  BUILTIN printf '%s\n' "$2" >>"$__ph_to"
}
"""
_STEP = "{ %s__ph_step %s '%s'; } 2>/dev/null || BUILTIN exit 121\n"
# Without a new line behind it: bash reads what follows a line that is no shell wrongly, unless it has read it before.
_LINE = 'BUILTIN eval "BUILTIN set ${__ph_x}x --" %s; '
_AGAIN = 'BUILTIN set "${__ph_x}x"; '
_FIND = """FIND -- "$1" >/dev/null || { BUILTIN printf 'missing\\n' >>"$__ph_to"; BUILTIN exit 121; }
"""
_UNRUN = """{ BUILTIN printf 'unrun 0\\n' >>"$__ph_to"; BUILTIN exit 126; }"""
# Traps are the user's: where there are any, the shell waits for the program, else it becomes the program. A shell that
# waits outlives SIGTERM, as the program has time to end in. The shell's own word on a program that a signal ended is
# held back (its standard error is not the program's).
_TRAPS = """BUILTIN trap >|"$__ph_to"TRAPS
"""
_BECOME = """if BUILTIN test ! -s "$__ph_to"TRAPS; then
  EXECFAILBUILTIN unset __ph_x
  BUILTIN exec -- "$@" || UNRUN
fi
"""
_WAIT = """__ph_code=0
BUILTIN test -s "$__ph_to"TRAPS || BUILTIN trap : TERM
{ ( EXECFAILBUILTIN unset __ph_x __ph_code; BUILTIN exec -- "$@" 2>&USEHELD HELD>&- || UNRUN ); } \
HELD>&2 2>/dev/null || __ph_code=$?
CLOSEBUILTIN test -s "$__ph_to"TRAPS || BUILTIN trap - TERM
BUILTIN set --
BUILTIN printf 'ran %s\\n' "$__ph_code" >>"$__ph_to"
"""
_SET = "BUILTIN set -- %s\n"
_LEAVE = 'BUILTIN exit "$__ph_code"\n'
_BASH = {
    "FIND": "BUILTIN type -P",
    "EXECFAIL": "BUILTIN shopt -s execfail; BUILTIN export -n __ph_e; ",
    "USEHELD": '"$__ph_e"',
    "HELD": "{__ph_e}",
    "CLOSE": "BUILTIN exec {__ph_e}>&-\n",
    "BUILTIN": "\\builtin",
}
_SH = {"FIND": "BUILTIN -v", "exec -- ": "exec ", "EXECFAIL": "", "USEHELD": "9", "HELD": "9", "CLOSE": "",
       "BUILTIN": "\\command"}  # fmt: skip


class _Dialect:
    """The parts of a script, for one kind of shell."""

    def __init__(self, words: Mapping[str, str]) -> None:
        def spoken(text: str) -> str:
            for name, word in {"TRAPS": TRAPS, **words}.items():
                text = text.replace(name, word)
            return text

        self.head, self.step, self.line, self.again = map(spoken, (_HEAD, _STEP, _LINE, _AGAIN))
        self.find, self.traps, self.set, self.leave = map(spoken, (_FIND, _TRAPS, _SET, _LEAVE))
        self.become, self.wait = (spoken(text.replace("UNRUN", _UNRUN)) for text in (_BECOME, _WAIT))


class Origin(NamedTuple):
    """A task whose sandbox is a source."""

    name: str
    sandbox: str


class Folders:
    """Where the roots of staging directives lead."""

    def __init__(self, *, session: str, pilot: str) -> None:
        """Name the folders behind ``session://`` and ``pilot://``."""
        self._roots = {SESSION: session, PILOT: pilot}

    def root(self, root: str, sandbox: str) -> str:
        """Return the absolute folder of a root."""
        return sandbox if root == SANDBOX else self._roots.get(root, root)


def moves(
    directives: Sequence[Directive], sandbox: str, folders: Folders, origins: Sequence[Origin] = ()
) -> list[stage.Move]:
    """Return directives as the stager takes them, with their roots found.

    Raises:
        ValueError: a directive names a task that is not among the origins.
    """
    found: list[stage.Move] = []
    for each in directives:
        whose, root = "", folders.root(each.root, sandbox)
        if not 0 <= each.origin <= len(origins):
            raise ValueError(f"{each.text}: it names task {each.origin} of {len(origins)} from which it takes files")
        if each.origin:
            name, root = origins[each.origin - 1]
            whose = f"{name} left no such file in its sandbox"
        target = os.path.join(folders.root(each.into, sandbox), each.target)  # text for another process
        found.append((each.text, each.action, root, each.source, target, each.folder, whose))
    return found


def stager(
    report: str, before: list[stage.Move], after: list[stage.Move], argv: Sequence[str] = (), file: str = ""
) -> list[str]:
    """Return the command that stages before and after a program, or without one; what it did is in the report.

    Raises:
        OSError: what it is to do is too long for an argument, and ``file`` cannot be written.
    """
    job = marshal.dumps((report, before, after))
    if 2 * len(job) < LONGEST or not file:
        return [*STAGER, job.hex(), *argv]
    Path(file).write_bytes(job)
    return [*STAGER, f"@{file}", *argv]


def publication(template: ExecutableTemplate, own: str, asked: str, folders: Folders) -> list[stage.Move]:
    """Return what makes a committed attempt's effects real; empty when it has none outside its sandbox ``own``."""
    after = moves(template.output_staging, own, folders)
    if asked and asked != own:
        after.insert(0, (f"publishing {own} as {asked}", stage.TREE, "/", f"{own.lstrip('/')}", asked, False, ""))
    return after


def shell_command(
    template: ExecutableTemplate, argv: Sequence[str], report: str, file: str, shell: str, *, ranked: bool
) -> list[str]:
    """Return the command that runs a program between its ``pre_exec`` and ``post_exec`` lines.

    Args:
        template: whose lines they are.
        argv: the program and its arguments.
        report: what is done is told there.
        file: takes a script that is too long for an argument.
        shell: absolute path.
        ranked: there are several ranks, each of which adds its number, from its environment, to the report's name.

    Raises:
        OSError: ``file`` cannot be written.
    """
    script = shell_script(template, argv, report, bash=name_of(shell) == "bash", ranked=ranked)
    if len(script.encode(errors="surrogateescape")) < LONGEST:
        return [shell, "-c", script, shell]
    Path(file).write_text(script, encoding="utf-8", errors="surrogateescape")
    return [shell, file]


def shell_script(template: ExecutableTemplate, argv: Sequence[str], report: str, *, bash: bool, ranked: bool) -> str:
    """Return the text of that script."""
    say = _DIALECTS[bash]
    parts = [say.head, f"__ph_to={shlex.quote(report)}"]
    parts.append(f'."${RANK_VARIABLE}"\n' if ranked else "\n")
    before, ended = "0", '"$?"'
    for number, line in enumerate(template.pre_exec, 1):
        parts += [say.step % ("", before, f"pre {number}"), say.line % shlex.quote(f"\n{line}")]
        before = ended
    parts += [say.step % ("", before, "run"), say.set % shlex.join(argv)]
    if "/" not in argv[0]:
        parts.append(say.find)
    parts.append(say.traps)
    if not template.post_exec:
        parts.append(say.become)
    parts.append(say.wait)
    before, again = "0", say.again
    for number, line in enumerate(template.post_exec, 1):
        parts += [say.step % (again, before, f"post {number}"), say.line % shlex.quote(f"\n{line}")]
        before, again = ended, ""
    return "".join([*parts, say.step % (again, before, "end"), say.leave])


_DIALECTS = {True: _Dialect(_BASH), False: _Dialect(_SH)}
