"""The templates that an agent was told: those that it can read, and why it cannot read the others."""

from __future__ import annotations

import msgspec

from pilot_hitl.model.templates import ExecutableBody, FunctionTemplate, Template, verify

_template: msgspec.msgpack.Decoder[Template] = msgspec.msgpack.Decoder(Template)
_body = msgspec.msgpack.Decoder(ExecutableBody)


class Templates:
    """Templates by number. What a client wrote is read here, once: what is wrong with it ends its own tasks only.

    Attributes:
        outside: those whose tasks act outside their sandboxes.
    """

    def __init__(self) -> None:
        """Start without any."""
        self.outside: set[int] = set()
        self._known: dict[int, tuple[bytes, Template]] = {}
        self._unreadable: dict[int, str] = {}

    def learn(self, number: int, blob: bytes) -> None:
        """Take a template in; one that cannot be read or meant is remembered as such."""
        self._known.pop(number, None)
        self._unreadable.pop(number, None)
        self.outside.discard(number)
        try:
            template = verify(_template.decode(blob))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._unreadable[number] = f"its description cannot be read: {error}"
            return
        self._known[number] = (blob, template)
        if template.effects == "outside":
            self.outside.add(number)

    def refusal(self, number: int) -> str:
        """Return why tasks of a template cannot run; empty when they can."""
        if number in self._known:
            return ""
        return self._unreadable.get(number, "its description was never told to this pilot")

    def blob(self, number: int) -> bytes:
        """Return a template that can be read, as it travels."""
        return self._known[number][0]

    def __getitem__(self, number: int) -> Template:
        """Return a template; raises KeyError for one that cannot be read."""
        return self._known[number][1]

    def asked(self, number: int, body: bytes) -> tuple[Template, str]:
        """Return a task's template, and the folder that it asked for; empty for none.

        Raises:
            ValueError: they cannot be read.
        """
        if why := self.refusal(number):
            raise ValueError(why)
        template = self[number]
        if isinstance(template, FunctionTemplate):
            return template, template.sandbox
        try:
            return template, _body.decode(body).sandbox
        except msgspec.MsgspecError as error:
            raise ValueError(f"its description cannot be read: {error}") from error
