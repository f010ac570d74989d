"""Kinds of work: what people call it, as numbers. Run times are learned, and speculation is ordered, by kind."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from pilot_hitl.model.templates import FunctionTemplate, Template

_template: msgspec.msgpack.Decoder[Template] = msgspec.msgpack.Decoder(Template)


class Kinds:
    """Numbers of kinds in one life of the hub: templates of one name are one kind, whichever run made them."""

    def __init__(self) -> None:
        """Know none; number 0 is what nobody can name."""
        self._by_template: dict[int, int] = {}
        self._by_name: dict[str, int] = {}
        self._names: list[str] = ["work"]
        self.functions: set[int] = set()
        """Templates that are functions."""

    def of(self, template: int, blob: Callable[[], bytes]) -> int:
        """Return the kind of a template; ``blob`` is asked for once a template."""
        kind = self._by_template.get(template)
        if kind is None:
            name, function = _facts(blob())
            if function:
                self.functions.add(template)
            kind = self._by_name.get(name, 0)
            if name and not kind:
                kind = self._by_name[name] = len(self._names)
                self._names.append(name)
            self._by_template[template] = kind
        return kind

    def name(self, kind: int) -> str:
        """Return what people call a kind."""
        return self._names[kind] if 0 <= kind < len(self._names) else self._names[0]


def _facts(blob: bytes) -> tuple[str, bool]:
    """Return the name of a template, and whether it is a function."""
    try:
        template = _template.decode(blob)
    except (msgspec.MsgspecError, ValueError):
        return "", False  # The node says what is wrong with it.
    return template.name, isinstance(template, FunctionTemplate)
