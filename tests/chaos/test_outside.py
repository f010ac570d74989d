"""What acts outside acts once, whoever is killed before anybody heard that it had begun."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, append, further, wait_for

LINE = 'echo $0 >> "$1/ran"; while ! test -e "$1/go-$0"; do sleep 0.02; done'


def act(name: str, folder: str) -> None:
    import time

    append(f"{folder}/ran", name)
    while not Path(folder, f"go-{name}").exists():
        time.sleep(0.02)


def submit(session: ph.Session, kind: str, name: str, folder: str) -> Any:
    if kind == "call":
        return session.options(effects="outside").call(act, name, folder)
    arguments = ["-c", LINE, name, folder]
    return session.submit(ph.TaskDescription(executable="/bin/sh", arguments=arguments, effects="outside"))


@pytest.mark.only_local("it stops and kills processes of this machine")
@pytest.mark.parametrize(
    ("kind", "hub"), further(1, [("call", "dies"), ("program", "dies"), ("program", "lives"), ("call", "lives")])
)
def test_one_that_had_begun_while_nobody_listened(study: Study, kind: str, hub: str) -> None:
    """The hub does not hear that the second begins, and the agent that knows it is killed."""
    with study.session(cores=1) as session:
        tasks = [submit(session, kind, name, str(study.folder)) for name in ("first", "second", "third")]
        wait_for(lambda: study.lines("ran") == ["first"], "the first one runs")
        wait_for(lambda: "held ahead" in tasks[1].explain(), "the second is there")
        pids = {each["kind"]: each["pid"] for each in study.processes() if each["kind"] in ("hub", "agent")}
        os.kill(pids["hub"], signal.SIGSTOP)
        (study.folder / "go-first").touch()
        wait_for(lambda: study.lines("ran") == ["first", "second"], "the second one has begun")
        os.kill(pids["agent"], signal.SIGKILL)
        os.kill(pids["hub"], signal.SIGCONT if hub == "lives" else signal.SIGKILL)
        for name in ("second", "third"):
            (study.folder / f"go-{name}").touch()
        with suppress(ph.TaskLost):  # its end may have been on its way
            tasks[0].result(60)
        with pytest.raises(ph.TaskLost):
            tasks[1].result(60)
        tasks[2].result(60)
        assert study.lines("ran") == ["first", "second", "third"]
