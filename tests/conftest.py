"""What every test may use: parts of the machine (``requires``)."""

from __future__ import annotations

import compileall
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests import parts, seeds

# The same stories in every run, so that a failure is the change's; a run with a seed (see seeds.py) tells others.
# No deadline: how long an example takes says something of the machine, not of the code.
settings.register_profile("steady", derandomize=True, deadline=None, max_examples=seeds.examples(100))
settings.register_profile("searching", derandomize=False, deadline=None, max_examples=100)
settings.load_profile("steady" if seeds.given() is None else "searching")

# A shell without job control starts what it puts into the background with these two ignored, and what ignores a signal
# hands that on to all its children: scripts of tests, which are interrupted as somebody at a terminal would.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
# The same with nohup; but this run shall outlive its terminal. A handler is not handed on.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN or "PYTEST_XDIST_WORKER" in os.environ:
    signal.signal(signal.SIGHUP, lambda *_: None)

# Pytest's own copies of the tests' modules. The environment stays as it is: scripts of tests edit their modules.
sys.dont_write_bytecode = False

RequirePart = Callable[[str], None]
PACKAGES = ("pilot_hitl", "agent", "services", "benchmarks")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        # The tests start thousands of processes, and where PYTHONDONTWRITEBYTECODE is set (in many containers) each of
        # them would compile what it imports of a module that has changed since somebody last ran it without.
        for name in PACKAGES:
            compileall.compile_dir(Path(__file__).parent.parent / name, quiet=2)
    if (seed := seeds.given()) is not None:
        config.option.hypothesis_seed = str(seed)


def _require(part: str) -> None:
    reason = parts.missing(part)
    if reason is None:
        return
    if parts.all_required():
        pytest.fail(f"missing, and {parts.REQUIRE_ALL} is set: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # At collection, so that a misspelt part is an error even in a run that deselects the test.
    for item in items:
        for mark in item.iter_markers("requires"):
            unknown = sorted(set(mark.args) - set(parts.PROBES))
            if unknown or not mark.args or mark.kwargs:
                raise pytest.UsageError(f"{item.nodeid}: requires() takes names of tests/parts.py, not {mark}")
    for item in items:
        if any("netns" in mark.args for mark in item.iter_markers("requires")):
            # So `make test` is the same with and without root, and -m long is all that it leaves out.
            item.add_marker("long")
    if not parts.long_ones():
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    # First, and so in one process: a cluster takes seconds to come up, and each process has its own.
    items.sort(key=lambda item: not any("slurm" in mark.args for mark in item.iter_markers("requires")))
    if (seed := seeds.given()) is not None:
        seeds.shuffle(items, seed)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # First of all set-up: no fixture should build on a part that is not there.
    for mark in item.iter_markers("requires"):
        for part in mark.args:
            _require(part)


@pytest.fixture(scope="session")
def require_part() -> RequirePart:
    """``require_part("slurm")``, for tests that learn only while they run what they need."""
    return _require
