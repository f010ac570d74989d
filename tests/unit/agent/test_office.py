"""The office of an agent: members that come and go within one turn, and how it ends its job."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.wire import cluster as wc
from pilot_hitl.wire.codec import encode
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.pilotconfig import PilotConfig
from pilot_hitl.wire.sockets import dealer
from pilot_hitl_agent.cluster.claims import Claims
from pilot_hitl_agent.cluster.inventory import Whereabouts
from pilot_hitl_agent.cluster.office import Office
from pilot_hitl_agent.cluster.roster import Joined, Lost

INVENTORY = NodeInventory(name="n0", cores=[0, 1])


def office_on(node: int, folder: Path) -> Office:
    """Return the office of the agent on a node of four."""
    config = PilotConfig(
        home=str(folder / "home"), session="s", pilot=1, folder=str(folder), session_folder=str(folder), endpoint="",
        keys="", nodes=[], environment={}, cwd="/", sys_path=[], runtime=10.0, noop=True, hub_timeout=60.0, mark="m",
        system="slurm", count=4, ends_at=time.time() + 600,
    )  # fmt: skip
    here = Whereabouts(
        node=node,
        nodes=4,
        name=f"n{node}",
        job="42/0",
        number="42",
        address="127.0.0.1",
        machine="",
        inventory=INVENTORY,
    )
    made = Office(config, here, Claims(folder, "42/0"), 1)
    assert made.claim()
    return made


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = office_on(0, tmp_path)
    made.attach(zmq.Poller())
    yield made
    made.close()
    made.context.term()


def test_who_comes_and_goes_within_one_turn_was_there(office: Office, tmp_path: Path) -> None:
    claim = Claims(tmp_path, "42/0").latest()
    assert claim is not None
    socket = dealer(office.context, keyring(tmp_path / "home"), b"member")
    socket.connect(claim.endpoint)
    hello = wc.MemberHello(3, INVENTORY, "10.0.0.4", "m3", 1, 1, 0, 1)
    socket.send(encode([hello, wc.MemberBye("it is cut off from an agent that goes on")]))
    happened: list[object] = []
    end = time.monotonic() + 20
    while len(happened) < 2 and time.monotonic() < end:
        happened += office.turn(time.monotonic(), hub_heard=time.monotonic())
    socket.close(linger=0)
    assert [type(it) for it in happened] == [Joined, Lost]
    assert office.addresses[3] == "10.0.0.4"


@pytest.mark.parametrize("node", [0, 2])
def test_only_a_job_that_runs_is_canceled(node: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One that is being requeued has been told to end as well, and is to run again.
    said = tmp_path / "said"
    command = tmp_path / "scancel"
    command.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{said}\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    office = office_on(node, tmp_path)
    office.end_job()
    office.close()
    office.context.term()
    words = said.read_text().split() if said.exists() else []
    # The first node's end is the job's: that is where the batch script waits.
    assert words == ([] if node == 0 else ["--quiet", "--state=RUNNING", "42"])
    assert json.loads((tmp_path / "agents" / "1").read_text())["node"] == node
