"""What a checkpoint shows: from Python objects to JSON that a person's view can draw."""

from __future__ import annotations

import mimetypes
import os
import stat
from collections.abc import Iterable
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilot_hitl.errors import DescriptionError
from pilot_hitl.futures import TaskFuture
from pilot_hitl.model.canonical import Json, canonical
from pilot_hitl.model.ids import without_ids

if TYPE_CHECKING:
    from pilot_hitl._client import Client

FILE_LIMIT = 1 << 28
"""Bytes of a file that is shown."""
CELLS_LIMIT = 10_000
"""A table with more cells is shown as a file would be: too long to look at."""


class Shown:
    """Items to show.

    Attributes:
        items: JSON objects with ``kind`` (markdown, table, image, file, task) and fields. ``blob`` is the hex digest
            of content in the session's blob folder.
        futures: the tasks among them.
    """

    def __init__(self, client: Client, show: Iterable[object]) -> None:
        """Look at each item once; files are copied now.

        Raises:
            DescriptionError: an item cannot be shown.
        """
        self.items: list[Json] = []
        self.futures: list[TaskFuture[Any]] = []
        self._client = client
        self._content: list[str] = []
        for item in show:
            self._add(item)

    def fingerprint(self, *more: Json) -> bytes:
        """Return 16 bytes that are equal when ``more`` and everything shown are equal, on any run.

        Names of tasks in texts do not count: they are others in each run.
        """
        told = [without_ids(canonical(each)) for each in more]
        return blake2b(canonical([*told, *self._content]).encode(), digest_size=16).digest()

    def _add(self, item: object) -> None:
        if isinstance(item, TaskFuture):
            self._client.future_of(item)
            self.futures.append(item)
            self.items.append({"kind": "task", "task": item.task})
            # On another run the task has another id; its resume key says that it is the same.
            self._content.append(f"task {item._key.hex() or item.task}")
            return
        made = self._item(item)
        self.items.append(made)
        self._content.append(without_ids(canonical(made)))

    def _item(self, item: object) -> Json:
        if isinstance(item, str):
            return {"kind": "markdown", "text": item}
        if isinstance(item, Path):
            return self._file(item)
        if isinstance(item, dict | list | tuple):
            return _table(item)
        if hasattr(item, "savefig"):
            picture = BytesIO()
            item.savefig(picture, format="png", bbox_inches="tight", metadata={"Software": None})
            return self._blob("image", "figure.png", "image/png", picture.getvalue())
        if item is None or isinstance(item, bool | int | float):
            return {"kind": "markdown", "text": f"`{item}`"}
        raise DescriptionError(
            f"show: a {type(item).__name__} cannot be shown; text (Markdown), a dict or list (table), a pathlib.Path, "
            "a matplotlib figure or a future can"
        )

    def _file(self, path: Path) -> Json:
        try:
            # Not waited for: a pipe that nobody writes to must not make the script wait.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DescriptionError(f"show: {path} cannot be read: {error}") from error
        try:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise DescriptionError(f"show: {path} is no file: a device, a pipe or a folder cannot be shown")
            if facts.st_size > FILE_LIMIT:
                raise DescriptionError(
                    f"show: {path} has {facts.st_size} bytes, and at most {FILE_LIMIT} can be shown: show a part of it"
                )
            with os.fdopen(os.dup(handle), "rb") as file:
                content = file.read(FILE_LIMIT + 1)
            if len(content) > FILE_LIMIT:
                raise DescriptionError(f"show: {path} grows beyond {FILE_LIMIT} bytes while it is read: show a copy")
        except OSError as error:
            raise DescriptionError(f"show: {path} cannot be read: {error}") from error
        finally:
            os.close(handle)
        media = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return self._blob("image" if media.startswith("image/") else "file", path.name, media, content)

    def _blob(self, kind: str, name: str, media: str, content: bytes) -> Json:
        digest, size = self._client.blobs.put([content])
        return {"kind": kind, "name": name, "media": media, "blob": digest.hex(), "size": size}


def _table(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Json:
    """Return a table: of a dict of columns or of values, a list of dicts or of rows, or a plain list."""
    if isinstance(value, dict):
        columns = [str(key) for key in value]
        cells = list(value.values())
        if cells and all(isinstance(cell, list | tuple) for cell in cells):
            rows = [list(row) for row in zip(*cells, strict=False)]
        else:
            columns, rows = ["", ""], [[str(key), cell] for key, cell in value.items()]
    elif value and all(isinstance(row, dict) for row in value):
        columns = list(dict.fromkeys(str(key) for row in value for key in row))
        rows = [[row.get(column) for column in columns] for row in value]
    else:
        rows = [list(row) if isinstance(row, list | tuple) else [row] for row in value]
        columns = [""] * max(map(len, rows), default=0)
    if len(rows) * len(columns) > CELLS_LIMIT:
        raise DescriptionError(f"show: a table of {len(rows)} rows and {len(columns)} columns is too long to look at")
    return {"kind": "table", "columns": [*columns], "rows": [[_cell(cell) for cell in row] for row in rows]}


def _cell(cell: object) -> Json:
    if cell is None or isinstance(cell, str | bool | int):
        return cell
    if isinstance(cell, float) and cell - cell == 0:
        return cell
    return str(cell)
