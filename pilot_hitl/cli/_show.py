"""How results are shown: JSON, tables on a terminal, plain aligned columns anywhere else.

Text of other people is shown here, so control characters, which a terminal would obey, are replaced first.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

from pilot_hitl.model.canonical import Json, cut

Row: TypeAlias = Mapping[str, Json]

CELL = 400
"""Characters of a cell of a table; --json has all."""
NARROW = 60
"""A terminal with fewer columns gets one line a field instead of a table."""
_TIMES = frozenset({"began", "ended", "opened", "deadline", "at", "time"})
_EPOCH_2001 = 1e9
_UNSAFE = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "�")
# Marks that turn the direction of writing can make a text look like another.
_UNSAFE |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\N{REPLACEMENT CHARACTER}")


def clean(text: str) -> str:
    """Return the text without what a terminal would obey; newlines and tabs stay."""
    return text.translate(_UNSAFE).encode("utf-8", "replace").decode()


def put(text: str = "") -> None:
    """Write a line of text."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(clean(text).encode(encoding, "replace").decode(encoding) + "\n")


def note(text: str) -> None:
    """Write a line for a person on stderr, where it disturbs no reader of the result."""
    sys.stdout.flush()
    sys.stderr.write(clean(text) + "\n")


def put_json(value: Json) -> None:
    """Write a value as JSON, never wrapped or coloured. Pure ASCII, so that every locale can carry it."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def put_rows(rows: Sequence[Row], columns: Sequence[str], nothing: str) -> None:
    """Write a table.

    Of ``columns`` those are shown that any row has; when fewer than two are known, all that the rows have.
    ``nothing`` is said when there are no rows.
    """
    if not rows:
        put(nothing)
        return
    names = [name for name in columns if _said(rows, name)]
    if len(names) < 2:
        every = list(dict.fromkeys(key for row in rows for key in row))
        names = [name for name in every if _said(rows, name)] or every
    cells = [[cut(cell(name, row.get(name)), CELL) for name in names] for row in rows]
    if not sys.stdout.isatty():
        _aligned([name.upper() for name in names], cells)
    elif shutil.get_terminal_size().columns < NARROW:
        _blocks(names, cells)
    else:
        _table([name.replace("_", " ") for name in names], cells)


def put_table(titles: Sequence[str], rows: Sequence[Sequence[Json]], nothing: str) -> None:
    """Write a table of somebody's own: titles as they are, also alike or empty ones, and numbers with all digits.

    ``nothing`` is said when there are no rows.
    """
    if not rows:
        put(nothing)
        return
    wide = max(len(titles), *map(len, rows))
    shown = [*titles, *[""] * (wide - len(titles))]
    cells = [[cut(_in_full(value), CELL) for value in [*row, *[""] * (wide - len(row))]] for row in rows]
    if not sys.stdout.isatty():
        _aligned(shown, cells)
    elif shutil.get_terminal_size().columns < NARROW:
        _blocks(shown, cells)
    else:
        _table(shown, cells)


def put_object(value: Row, title: str = "") -> None:
    """Write one object, a line a field; lists of objects in it become tables."""
    if title:
        put(title)
    nested = {key: rows for key, item in value.items() if (rows := _objects(item))}
    plain = {key: item for key, item in value.items() if key not in nested and item not in (None, "", [], {})}
    width = max((len(key) for key in plain), default=0)
    for key, value_ in plain.items():
        lines = cell(key, value_).splitlines() or [""]
        put(f"{key.replace('_', ' '):<{width}}  {lines[0]}")
        for line in lines[1:]:
            put(f"{'':<{width}}  {line}")
    for key, rows in nested.items():
        put()
        put(f"{key.replace('_', ' ')}:")
        put_rows(rows, (), "")


def cell(name: str, value: Json) -> str:
    """Return how a value is written in a table."""
    if value is None or (name in _TIMES and value == 0):  # it did not come to that
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and value >= _EPOCH_2001 and (name.endswith("_at") or name in _TIMES):
        return datetime.fromtimestamp(value).astimezone().isoformat(" ", "seconds")
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | dict):
        return _inside(value)
    return str(value)


def _in_full(value: Json) -> str:
    return repr(value) if isinstance(value, float) else cell("", value)


def _inside(value: list[Json] | dict[str, Json]) -> str:
    """Return what is in a list or an object, in one line that is no JSON; what nests stands in brackets."""
    if isinstance(value, list):
        return ", ".join(f"({cell('', item)})" if isinstance(item, list | dict) else cell("", item) for item in value)
    return ", ".join(
        f"{clean(key)} ({cell(key, item)})" if isinstance(item, list | dict) and item
        else f"{clean(key)} {cell(key, item)}".rstrip()
        for key, item in value.items()
    )  # fmt: skip


def _said(rows: Sequence[Row], name: str) -> bool:
    return any(row.get(name) not in (None, "", [], {}) for row in rows)


def _objects(value: Json) -> list[Row]:
    if not isinstance(value, list) or not value:
        return []
    rows: list[Row] = [item for item in value if isinstance(item, dict)]
    return rows if len(rows) == len(value) else []


def _aligned(names: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    lines = [[" ".join(name.split()) for name in names]] if any(names) else []
    lines += [[" ".join(text.split()) for text in row] for row in cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(names))]
    for line in lines:
        put("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip())


def _blocks(names: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    for index, row in enumerate(cells):
        if index:
            put()
        for name, text in zip(names, row, strict=True):
            if text:
                put(f"{name}: {text}" if name else text)


def _table(names: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(names))
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for row in cells:
        table.add_row(*(Text(text) for text in row))
    Console(highlight=False).print(table)
