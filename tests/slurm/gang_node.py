"""One node of a gang, without an agent: started by srun on every node of a test's job, it runs a real daemon.

    gang_node.py FOLDER

``FOLDER/spec.json`` says what all nodes are to run: ``executable``, ``arguments``, ``template`` (fields), ``layout``
(``[node, ranks]`` in order of ranks), ``end`` (how to end it once all ranks are up, as ``[mode, grace]``) and ``marks``
(files that ranks make when they are up). Each node writes ``node.N.json``.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.ids import make_id
from pilot_hitl.model.resources import NodeInventory, Slot
from pilot_hitl.model.templates import ExecutableBody, ExecutableResult, ExecutableTemplate
from pilot_hitl.wire.node import (
    Change,
    ChangeKind,
    Changes,
    End,
    Ends,
    Launch,
    Launches,
    LeadEnded,
    NodeTemplate,
    Share,
)
from pilot_hitl_agent.node import spawner
from pilot_hitl_agent.node.daemon import NodeDaemon
from pilot_hitl_agent.node.settings import NodeSettings

LIMIT = 60.0
TASK = make_id(1, 1)


class GangNode:
    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.node = int(os.environ["SLURM_NODEID"])
        self.name = os.environ["SLURMD_NODENAME"]
        self.folder = folder
        self.spec = spec
        mark = f"{spec['mark']}/{self.node}"
        inventory = NodeInventory(name=self.name, cores=list(range(4)), gpus=[0, 1], pinned=False)
        settings = NodeSettings(
            node=self.node, inventory=inventory, session="study", pilot=1, home=str(folder / "home"), mark=mark,
            session_folder=str(folder), pilot_folder=str(folder / "pilot"), blobs=str(folder / "blobs"),
            work=str(folder / "work"), environment={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        ours, theirs = spawner.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        self.spawner = subprocess.Popen(
            [sys.executable, "-I", "-S", spawner.__file__, "--serve", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={"PATH": os.environ["PATH"], "PILOT_HITL_MARK": mark},
        )
        theirs.close()
        self.mark = mark
        self.daemon = NodeDaemon(settings, socket.socket(fileno=ours.detach()))
        self.changes: list[Change] = []

    def layout(self) -> tuple[Share, ...]:
        """As the agent would tell it; hosts by the job's node list."""
        names = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
            capture_output=True, text=True, check=True, timeout=20,
        ).stdout.split()  # fmt: skip
        shares = []
        for node, ranks in self.spec["layout"]:
            slots = tuple(Slot(node, 1 << core, *self.spec.get("slot", ())) for core in range(ranks))
            address = next(line.split()[0] for line in Path(self.spec["hosts"]).read_text().splitlines()
                           if line.split()[1:2] == [names[node]]) if self.spec.get("hosts") else ""  # fmt: skip
            shares.append(Share(node, names[node], address, slots))
        return tuple(shares)

    def turn(self, wait: float) -> None:
        due = self.daemon.next_deadline()
        if due is not None:
            wait = max(0.0, min(wait, due - time.monotonic()))
        if select.select([self.daemon.fileno()], [], [], wait)[0]:
            self.daemon.on_readable()
        self.daemon.on_timer()
        for message in self.daemon.drain():
            if isinstance(message, Changes):
                self.changes.extend(message.changes)

    def end(self, mode: Any, grace: float, cause: Cause) -> None:
        self.daemon.handle([Ends([End(TASK, mode, grace, Failure(cause, "test"))])])
        self.turn(0)

    def finished(self) -> Change | None:
        return next((change for change in self.changes if change.kind is ChangeKind.FINISHED), None)

    def run(self) -> None:
        spec, layout = self.spec, self.layout()
        share = next(share for share in layout if share.node == self.node)
        fields = {"executable": spec["executable"], "name": "gang", "timeout": 15.0, **spec.get("template", {})}
        blob = msgspec.msgpack.encode(ExecutableTemplate(**fields))
        body = msgspec.msgpack.encode(ExecutableBody(spec.get("arguments", [])))
        ranks = sum(len(each.slots) for each in layout)
        launch = Launch(TASK, 1, 0, 1, 1, (1, 0), 0, share.slots, body, [], ranks, layout)
        self.daemon.handle([NodeTemplate(1, blob), Launches([launch])])
        limit, leads, asked = time.monotonic() + LIMIT, launch.leads(self.node), False
        while self.finished() is None and time.monotonic() < limit:
            self.turn(0.02)
            if spec.get("end") and not asked and all((self.folder / mark).exists() for mark in spec["marks"]):
                asked = True
                self.end(spec["end"][0], spec["end"][1], Cause.CANCELED)
            # What an agent does when it hears of the leading part's end.
            if not leads and (self.folder / "lead.json").exists():
                self.daemon.handle([LeadEnded([TASK])])
        change = self.finished()
        found = {"node": self.node, "kinds": [each.kind.name for each in self.changes], "failure": None, "out": "",
                 "cause": "", "left": self.left(), "took": time.monotonic() - limit + LIMIT}  # fmt: skip
        if change is not None:
            if change.payload:
                result = msgspec.msgpack.decode(change.payload, type=ExecutableResult)
                found["out"], found["code"] = result.stdout.decode(), result.exit_code
                found["err"] = result.stderr.decode()
            if change.failure is not None:
                found["failure"], found["cause"] = change.failure.message, change.failure.cause.name
        self.write(f"node.{self.node}.json", found)
        if leads:
            self.write("lead.json", found)
        self.daemon.close(0.5)
        self.spawner.wait(20)

    def left(self) -> list[str]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and spawner.variable_of(int(entry), "PILOT_HITL_ATTEMPT"):
                try:
                    found.append(Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode())
                except OSError:
                    continue
        return found

    def write(self, name: str, content: dict[str, Any]) -> None:
        (self.folder / f"{name}.new.{self.node}").write_text(json.dumps(content))
        (self.folder / f"{name}.new.{self.node}").rename(self.folder / name)


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    GangNode(FOLDER, json.loads((FOLDER / "spec.json").read_text())).run()
