"""Groups of commands: an unknown name is answered with those that there are."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

# Typer keeps its own copy of click or uses the real one, by version; this is the right class either way.
_UsageError: Any = typer.BadParameter.__mro__[1]


class CommandGroup(TyperGroup):
    """A group that says which commands come close to an unknown one, or which there are."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that was asked for."""
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], known)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(known)}"
            raise _UsageError(f"there is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)
