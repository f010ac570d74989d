"""A home that exists only while something is measured, and a session in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pilot_hitl as ph


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Yield a folder for sessions; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="pilot-hitl-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)  # What its processes wrote while they ended.


@contextmanager
def session_with(pilot: ph.PilotDescription) -> Iterator[tuple[ph.Session, Path]]:
    """Yield a session with one pilot that is ready, and its home."""
    with temporary_home() as home, ph.Session("bench", home=home) as session:
        session.submit_pilot(pilot).wait_ready(60)
        yield session, home


def nothing(value: object = None) -> object:
    """Return the argument: what is called when only the way to it is of interest."""
    return value
