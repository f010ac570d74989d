"""A home that exists only while something is measured, and a session in it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pilot_hitl as ph
from pilot_hitl_benchmarks.processes import of_home

PATIENCE = 10.0
"""Seconds that the processes of a home may take to end before it is removed."""


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Yield a folder for sessions; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="pilot-hitl-bench-"))
    try:
        yield folder
    finally:
        limit = time.monotonic() + PATIENCE
        while of_home(folder) and time.monotonic() < limit:
            time.sleep(0.01)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def session_with(pilot: ph.PilotDescription) -> Iterator[tuple[ph.Session, Path]]:
    """Yield a session with one pilot that is ready, and its home."""
    with temporary_home() as home, ph.Session("bench", home=home) as session:
        session.submit_pilot(pilot).wait_ready(60)
        yield session, home


def nothing(value: object = None) -> object:
    """Return the argument: what is called when only the way to it is of interest."""
    return value
