"""Where the demo's sessions live: the home that was asked for, or one of the demo's own."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pilot_hitl.cli._tool import hub_runs
from pilot_hitl.wire.places import HOME_VARIABLE, runtime_folder

LOCAL = "local"
"""The resource whose pilots run on this machine, and so see its temporary folder."""
HUB_PATIENCE = 15.0
"""Seconds that the hub of a home has to end after its last session."""


class Home(NamedTuple):
    """Where the sessions live. ``kept``: it is still there when the demo has ended."""

    folder: Path
    kept: bool


@contextmanager
def home(wanted: str, *, keep: bool, resource: str = LOCAL) -> Iterator[Home]:
    """Give the home that was asked for, or a new one: below the temporary folder, or the user's for other resources.

    A new one is removed, with its hub, unless ``keep`` is set and the demo came to its end: what was interrupted has
    nothing to show.
    """
    given = wanted or os.environ.get(HOME_VARIABLE, "")
    if given:
        yield Home(Path(given).expanduser().absolute(), kept=True)
        return
    shared = None if resource == LOCAL else Path.home()
    folder = Path(tempfile.mkdtemp(prefix="pilot-hitl-demo-", dir=shared))
    finished = False
    try:
        yield Home(folder, kept=keep)
        finished = True
    finally:
        if not (keep and finished):
            remove(folder)
        else:
            hub_ended(folder)


def remove(folder: Path) -> None:
    """Remove a home once its hub, which ends with its last session, has let go of it."""
    if not hub_ended(folder):
        sys.stderr.write(f"pilot-hitl: the hub of {folder} still runs, so the folder stays\n")
        return
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(runtime_folder(folder), ignore_errors=True)


def hub_ended(folder: Path, patience: float = HUB_PATIENCE) -> bool:
    """Wait until no hub of this home runs; return False when one still does after ``patience`` seconds."""
    end = time.monotonic() + patience
    while hub_runs(folder):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
