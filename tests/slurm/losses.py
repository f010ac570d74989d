"""A study under load on four nodes, and what must hold when something was lost under it."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections import defaultdict
from pathlib import Path

import msgspec

from tests.behaviour.studies import Study, wait_for
from tests.slurm.cluster import Cluster

LEASE = 5.0
CORES = 16
PROGRAM = """\
say() {
    local form='{"at": %s, "x": %s, "what": "%s", "node": "%s", "attempt": %s}\\n'
    printf "$form" $(date +%s.%N) $1 $2 $(hostname) $$ >>$0.said
}
say $1 began
(setsid sleep 907 >/dev/null 2>&1 &)
sleep 0.5
say $1 ended
echo $1
"""
"""Leaves a process in a session of its own, whose parent has ended."""
SCRIPT = """
import json, socket, uuid
options = json.loads(sys.argv[1])
END = time.monotonic() + options["patience"]

def say(file, **what):
    with open(f"{FOLDER}/{file}", "a") as out:
        out.write(json.dumps({"at": time.time(), **what}) + "\\n")

def work(kind, x, seconds):
    mine = dict(x=x, node=socket.gethostname(), attempt=uuid.uuid4().hex)
    say(kind, what="began", **mine)
    time.sleep(seconds)
    say(kind, what="ended", **mine)
    return x * 3

def short(x):
    return work("calls", x, 0.4)

def outside(x):
    return work("outside", x, 12)

with ph.Session("loss") as session:
    description = ph.PilotDescription(resource=BACKEND, nodes=4, exclusive=True, lease=options["lease"],
        runtime=options["runtime"], renew=options["renew"], requeue=options["requeue"])
    pilot = session.submit_pilot(description)
    pilot.wait_ready(60)
    for _ in range(options["pilots"] - 1):
        session.submit_pilot(description)  # waits until the nodes are free
    once = [session.options(effects="outside", key=f"outside{x}").call(outside, x) for x in range(16)]
    began = 0
    while began < 16:
        time.sleep(0.05)
        if os.path.exists(f"{FOLDER}/outside"):
            with open(f"{FOLDER}/outside") as file:
                began = file.read().count("began")
    calls = session.map(short, range(options["calls"]))
    tasks = session.submit([
        ph.TaskDescription(executable="/bin/sh", arguments=[f"{FOLDER}/tasks", str(x)])
        for x in range(options["tasks"])])
    say("fault", what="loaded")
    for x, future in enumerate(calls):
        assert future.result(END - time.monotonic()) == x * 3
        say("returned", x=x)
    for x, task in enumerate(tasks):
        assert task.result(END - time.monotonic()).stdout == f"{x}\\n"
    for x, future in enumerate(once):
        try:
            say("verdicts", x=x, verdict="done" if future.result(END - time.monotonic()) == x * 3 else "wrong")
        except ph.TaskError as error:
            say("verdicts", x=x, verdict=type(error).__name__, message=str(error))
    say("pilot", state=pilot.state.name, message=pilot.message)
print("right")
"""


class Line(msgspec.Struct):
    """What a task, or the script, said about a call."""

    at: float
    x: int = -1
    what: str = ""
    node: str = ""
    attempt: str | int = ""
    verdict: str = ""
    message: str = ""
    state: str = ""


class Loss:
    """A study that runs, on a cluster that is about to lose something."""

    def __init__(
        self, study: Study, cluster: Cluster, *, seconds: float = 30.0, runtime: float = 10.0, patience: float = 200.0,
        pilots: int = 1, renew: bool = False, requeue: bool = False,
    ) -> None:  # fmt: skip
        """Start; ``seconds`` is how long the load would take with nothing lost."""
        self.study = study
        self.cluster = cluster
        self.patience = patience
        self.calls = int((seconds - 12) * CORES / 0.4)
        self.tasks = 24
        options = {
            "calls": self.calls,
            "tasks": self.tasks,
            "runtime": runtime,
            "patience": patience,
            "pilots": pilots,
            "renew": renew,
            "requeue": requeue,
            "lease": LEASE,
        }
        (study.folder / "tasks").write_text(PROGRAM)
        self.script = study.start(SCRIPT, json.dumps(options))
        wait_for(lambda: self.lines("fault") or self.script.poll() is not None, "the load", 90)
        assert self.script.poll() is None, self.script.communicate()

    def lines(self, name: str) -> list[Line]:
        """Return what was said."""
        return [msgspec.json.decode(line, type=Line) for line in self.study.lines(name)]

    @property
    def folder(self) -> Path:
        """Of the first pilot."""
        return self.study.home / "sessions" / "loss" / "pilots" / "1"

    @property
    def agent(self) -> str:
        """The node of the first pilot's agent."""
        return (self.folder / "agent.pid").read_text().split()[1]

    @property
    def job(self) -> str:
        """Of the first pilot."""
        return (self.folder / "job").read_text().split()[0]

    def follower(self) -> str:
        """Return a node that has no agent and is not the first one."""
        return next(node for node in self.cluster.names[1:] if node != self.agent)

    def running(self, node: str) -> list[str]:
        """Return command lines of programs of tasks on a node, and of what they left."""
        found = []
        for process in self.cluster.processes_on(node):
            words = " ".join(process.cmdline())
            if "907" in words or "/bin/sh" in words or "sleep" in words:
                found.append(f"{process.pid} {words[:100]}")
        return found

    def progress(self) -> int:
        """Count the calls that ended."""
        return sum(line.what == "ended" for line in self.lines("calls"))

    def end(self) -> None:
        """Wait until the script ended well."""
        try:
            out, err = self.script.communicate(timeout=self.patience + 30)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"stuck with {self.progress()} of {self.calls} calls: {self.cluster.jobs()}") from None
        assert (self.script.returncode, out) == (0, "right\n"), err

    # --- what must hold ---------------------------------------------------------------------------------------------

    def check(self, *, again: bool = True) -> None:
        """Nothing is lost, nothing counts twice. ``again``: whether anything may have run a second time."""
        self._each_is_done("calls", self.calls, again=again)
        self._each_is_done("tasks.said", self.tasks, again=again)
        returned = {line.x: line.at for line in self.lines("returned")}
        late = [line for line in self.lines("calls") if line.what == "began" and line.at > returned[line.x]]
        assert not late, "what had returned ran again"
        self._outside_ran_once()

    def _each_is_done(self, kind: str, count: int, *, again: bool) -> None:
        attempts: dict[int, dict[str | int, list[Line]]] = defaultdict(lambda: defaultdict(list))
        for line in self.lines(kind):
            attempts[line.x][f"{line.node}/{line.attempt}"].append(line)
        assert attempts.keys() == set(range(count))
        for x, each in attempts.items():
            assert any(lines[-1].what == "ended" for lines in each.values()), f"{kind} {x} was never done"
            if not again:
                assert len(each) == 1, f"{kind} {x} ran {len(each)} times"
            spans = sorted((lines[0].at, lines[-1].at, attempt) for attempt, lines in each.items())
            for (_, ended, first), (began, _, second) in itertools.pairwise(spans):
                assert ended <= began, f"{kind} {x}: {first} still ran when {second} began"

    def _outside_ran_once(self) -> None:
        lines = self.lines("outside")
        assert sorted(line.x for line in lines if line.what == "began") == list(range(CORES))
        ended = {line.x for line in lines if line.what == "ended"}
        verdicts = {line.x: line for line in self.lines("verdicts")}
        for x, line in verdicts.items():
            assert line.verdict in {"done", "TaskLost"}, line
            assert line.verdict == "TaskLost" or x in ended, line

    def lost(self) -> dict[str, int]:
        """Return how many of the calls that may not run again were lost, by node."""
        where = {line.x: line.node for line in self.lines("outside") if line.what == "began"}
        found: dict[str, int] = defaultdict(int)
        for line in self.lines("verdicts"):
            if line.verdict == "TaskLost":
                found[where[line.x]] += 1
        return dict(found)

    def nodes_since(self, at: float) -> set[str]:
        """Return the nodes where calls began after a moment."""
        return {line.node for line in self.lines("calls") if line.what == "began" and line.at > at}
