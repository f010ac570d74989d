"""What many tasks share, and what is each task's own.

A *template* travels and is stored once; a *body* is opaque to hub and agent core and belongs to one task.
"""

from __future__ import annotations

import msgspec

from pilot_hitl.model import checks
from pilot_hitl.model.checks import Table
from pilot_hitl.model.descriptions import TASK_CHECKS, Effects, OnPreempt
from pilot_hitl.model.outputs import NOWHERE, Output, Range
from pilot_hitl.model.staging import Directive


class FunctionTemplate(msgspec.Struct, frozen=True, tag="f", array_like=True):
    """A function called many times.

    Attributes:
        digest: content hash of ``code``; a worker loads each digest once.
        code: the packed function (:mod:`pilot_hitl.wire.values`).
        name: what people see.
        environment, timeout, grace, on_preempt, effects, sandbox: as in ``TaskDescription``.
        logging: level of the script's root logger when it first used the function; negative when that has no handler,
            0 when the script never configured it.
        anew: it carries state, so a worker loads it for each call.
        fingerprint: of the function, see :mod:`pilot_hitl._fingerprint`; empty when its calls are not resumable.
        parts: short fingerprints of what that covers, by what people call it; only to say what changed.
        modules: digest of the versions of the script's modules that ``code`` names.

    The body of a call is the packed ``(args, kwargs)``.
    """

    digest: bytes
    code: bytes
    name: str
    environment: dict[str, str] = {}
    timeout: float = 0.0
    grace: float = 5.0
    on_preempt: OnPreempt = "kill"
    effects: Effects = "sandbox"
    expected_runtime: float = 0.0
    sandbox: str = ""
    logging: int = 0
    anew: bool = False
    fingerprint: bytes = b""
    parts: dict[str, bytes] = {}
    modules: bytes = b""


class ExecutableTemplate(msgspec.Struct, frozen=True, tag="x", array_like=True):
    """A program run many times; the body of a task is MessagePack of its :class:`ExecutableBody`."""

    executable: str
    name: str
    environment: dict[str, str] = {}
    named_env: str = ""
    pre_exec: list[str] = []
    post_exec: list[str] = []
    input_staging: list[Directive] = []
    output_staging: list[Directive] = []
    stdout: str = ""
    stderr: str = ""
    timeout: float = 0.0
    grace: float = 5.0
    on_preempt: OnPreempt = "kill"
    effects: Effects = "sandbox"
    expected_runtime: float = 0.0
    container: str = ""
    mem_per_rank: int = 0
    launcher: str = ""


class ExecutableBody(msgspec.Struct, frozen=True, array_like=True):
    """What differs between tasks of one :class:`ExecutableTemplate`.

    Attributes:
        arguments: the program's arguments.
        sandbox: the asked working directory, made absolute by the client where it was relative; empty for "its own".
        origins: dependencies whose sandboxes are sources of its staging, see ``Directive.origin``.
        odd: ``(position, bytes)`` of arguments that are no UTF-8, as names of files may be; empty in ``arguments``.
    """

    arguments: list[str] = []
    sandbox: str = ""
    origins: list[int] = []
    odd: list[tuple[int, bytes]] = []

    def split(self) -> ExecutableBody:
        """Return it with arguments that no message can carry as text among the odd ones."""
        odd = [(at, word.encode("utf-8", "surrogateescape")) for at, word in enumerate(self.arguments) if _is_odd(word)]
        told = ["" if _is_odd(word) else word for word in self.arguments]
        return msgspec.structs.replace(self, arguments=told, odd=odd)

    def whole(self) -> ExecutableBody:
        """Return it with all arguments in their places."""
        if not self.odd:
            return self
        arguments = list(self.arguments)
        for at, content in self.odd:
            if 0 <= at < len(arguments):
                arguments[at] = content.decode("utf-8", "surrogateescape")
        return msgspec.structs.replace(self, arguments=arguments, odd=[])


def _is_odd(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return True
    return False


Template = FunctionTemplate | ExecutableTemplate


def _any(_name: str, value: object) -> object:
    return value


def _staged(name: str, value: list[Directive]) -> list[Directive]:
    for each in value:
        for text in (each.text, each.root, each.source, each.into, each.target):
            checks.text(name, text)
    return value


_FUNCTIONS = Table(
    FunctionTemplate,
    {each: TASK_CHECKS.get(each, _any) for each in FunctionTemplate.__struct_fields__},
)
_EXECUTABLES = Table(
    ExecutableTemplate,
    {each: TASK_CHECKS[each] for each in ExecutableTemplate.__struct_fields__}
    | {"input_staging": _staged, "output_staging": _staged},
)


def verify(template: Template) -> Template:
    """Return a template that came from a client, when it can be meant: whoever wrote it may have checked nothing.

    Raises:
        ValueError: a value cannot be meant; the message names its attribute.
    """
    if isinstance(template, FunctionTemplate):
        return _FUNCTIONS.plain(template)
    return _EXECUTABLES.plain(template)


class ExecutableResult(msgspec.Struct, frozen=True, array_like=True):
    """The payload of an executable's outcome, of a success and of a failure alike.

    Attributes:
        exit_code: negative is the signal that ended it.
        sandbox: absolute path of the attempt's working directory.
        stdout, stderr: what was captured, when it is small (64 kB); else empty.
        stdout_at, stderr_at: where the captured bytes lie in the slot's log when they are many, or the file that the
            description named; path empty when there is none.
        outputs: absolute paths of staged outputs.
        others: what was captured on the other nodes of a task whose ranks each node started itself, in order of ranks.
        left: whether something was left in ``sandbox``; when not, the folder itself need not be there any more.
    """

    exit_code: int
    sandbox: str
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_at: Range = NOWHERE
    stderr_at: Range = NOWHERE
    outputs: list[str] = []
    others: list[Output] = []
    left: bool = False
