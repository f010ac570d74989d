"""Commands run beside the loop: outcome, output, and the limit, with real processes."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Iterator

import pytest

from pilot_hitl.hub.commands import Commands, Finished
from pilot_hitl.hub.watch import Watch


@pytest.fixture
def commands() -> Iterator[tuple[Commands, Watch]]:
    watch = Watch()
    made = Commands(watch)
    yield made, watch
    made.close()
    watch.close()


def _until(commands: Commands, watch: Watch, done: list[Finished], count: int = 1) -> None:
    end = time.monotonic() + 20
    while len(done) < count and time.monotonic() < end:
        due = commands.next_deadline()
        wait = 1.0 if due is None else max(0.0, min(1.0, due - time.time()))
        ready, _, _ = select.select(watch.descriptors, [], [], wait)
        for descriptor in ready:
            watch.fired(descriptor)
        commands.timers(time.time())
    assert len(done) == count


def test_code_and_output(commands: tuple[Commands, Watch]) -> None:
    done: list[Finished] = []
    script = "import os, sys; print(os.environ['HERE']); sys.stderr.write('oh'); sys.exit(3)"
    commands[0].run([sys.executable, "-c", script], {"HERE": "there"}, done.append)
    assert not done
    _until(*commands, done)
    assert done == [Finished(3, "there\n", "oh")]
    assert done[0].said == "oh\nthere"


def test_much_output_is_no_deadlock(commands: tuple[Commands, Watch]) -> None:
    done: list[Finished] = []
    commands[0].run([sys.executable, "-c", "print('x' * 3_000_000)"], {}, done.append)
    _until(*commands, done)
    assert len(done[0].out) == 3_000_001


def test_a_command_that_hangs_is_killed_with_its_children(commands: tuple[Commands, Watch]) -> None:
    done: list[Finished] = []
    commands[0].run(["/bin/sh", "-c", "sleep 60 & sleep 60"], {"PATH": "/bin:/usr/bin"}, done.append, limit=0.3)
    _until(*commands, done)
    assert done[0].silent
    assert done[0].code == -9
    assert "no answer within 0.3 s" in done[0].err


def test_a_program_that_is_not_there(commands: tuple[Commands, Watch]) -> None:
    done: list[Finished] = []
    commands[0].run(["/nowhere/sbatch"], {}, done.append)
    assert not done, "never called back from within run"
    _until(*commands, done)
    assert done[0].code == 127
    assert "/nowhere/sbatch cannot be run: No such file" in done[0].err
