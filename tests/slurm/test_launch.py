"""Pilots that are jobs, from the hub's side: submitted, watched, renewed, canceled, and every refusal in words."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import pilot_hitl as ph
from pilot_hitl.model.states import PilotState
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.requires("slurm", "netns")
PATIENCE = 60


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home that every node sees, and that no process uses at the end."""
    # Short: socket paths are.
    with tempfile.TemporaryDirectory(prefix="phl", ignore_cleanup_errors=True) as folder:
        place = Path(folder) / "home"
        monkeypatch.setenv("PILOT_HITL_HOME", str(place))
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield place
        _until(lambda: not _processes(place), 30)


@pytest.fixture
def site(slurm_nodes: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Four nodes that are hosts of their own, and are all idle at the end."""
    assert not home.exists()
    _use(slurm_nodes, monkeypatch)
    yield slurm_nodes
    slurm_nodes.wait_idle()


def _use(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])


def _processes(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("PILOT_HITL_HOME") == str(home):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit, "in vain"
        time.sleep(0.05)


def _slurm(**asked: Any) -> ph.PilotDescription:
    return ph.PilotDescription(**{"resource": "slurm", "nodes": 1, "runtime": 5, "lease": 5, **asked})


def _pilots(session: ph.Session) -> dict[int, dict[str, Any]]:
    return {row["pilot"]: row for row in session.query("pilots")}


def _hub(home: Path) -> int:
    return int(json.loads((home / "hub/hub.lock").read_text())["pid"])


def _where(seconds: float) -> tuple[str, int]:
    time.sleep(seconds)
    return socket.gethostname(), int(os.environ["PILOT_HITL_PILOT"])


def _tool(*words: str) -> str:
    command = [sys.executable, "-m", "pilot_hitl", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_hundred_calls_on_four_nodes(site: Cluster) -> None:
    with ph.Session("study") as session:
        pilot = session.submit_pilot(_slurm(nodes=4))
        assert len(session.map(_where, [0.05] * 100)) == 100
        pilot.wait_ready(PATIENCE)
        assert [node.name for node in pilot.nodes] == site.names
        hosts = {host for host, _ in (call.result(PATIENCE) for call in session.map(_where, [0.1] * 100))}
        assert hosts == set(site.names)
        (row,) = json.loads(_tool("pilot", "list", "-s", "study", "--json"))
        assert row["job"] in {line.split()[0] for line in site.jobs()}
        assert (row["state"], row["nodes"], row["cores"]) == ("ACTIVE", site.names, 16)
    assert pilot.state is PilotState.DONE
    site.wait_idle(20)


def test_equal_pilots_are_one_array_and_end_one_by_one(site: Cluster) -> None:
    with ph.Session("study") as session:
        pilots = session.submit_pilots([_slurm(name=f"p{index}") for index in range(4)])
        for pilot in pilots:
            pilot.wait_ready(PATIENCE)
        rows = _pilots(session)
        array = {row["job"].partition("_")[0] for row in rows.values()}
        assert len(array) == 1
        assert [row["job"].partition("_")[2] for row in rows.values()] == ["1", "2", "3", "4"]
        used = Counter(call.result(PATIENCE)[1] for call in session.map(_where, [0.05] * 100))
        assert set(used) == {1, 2, 3, 4}

        pilots[1].cancel("enough")
        _until(lambda: pilots[1].state.final)
        assert (pilots[1].state, pilots[1].message) == (PilotState.CANCELED, f"enough (job {rows[2]['job']})")
        assert {line.split()[0] for line in site.jobs()} == {rows[number]["job"] for number in (1, 3, 4)}

        pinned = session.options(pilot="p2").call(_where, 60)
        _until(lambda: session.query("session")["states"].get("RUNNING"))
        site.run("scancel", rows[3]["job"])
        with pytest.raises(ph.TaskLost, match="pilot 3"):
            pinned.result(PATIENCE)
        assert pilots[2].state is PilotState.CANCELED
        assert "was canceled by somebody" in pilots[2].message
        assert session.options(pilot="p3").call(_where, 0).result(PATIENCE)[1] == 4


def test_a_pilot_outlives_its_hub_and_is_known_again(site: Cluster, home: Path) -> None:
    with ph.Session("study") as session:
        session.submit_pilot(_slurm(nodes=2)).wait_ready(PATIENCE)
        calls = session.map(_where, [0.3] * 60)
        _until(lambda: session.query("session")["states"].get("DONE"))
        job = _pilots(session)[1]["job"]
        os.kill(_hub(home), signal.SIGKILL)
        assert {call.result(PATIENCE)[1] for call in calls} == {1}
        assert _pilots(session)[1]["job"] == job
        # Between sbatch and its word nobody knows the job's id: the next hub finds it, and submits no other.
        late = session.submit_pilot(_slurm(name="late"))
        late.wait_number()
        os.kill(_hub(home), signal.SIGKILL)
        late.wait_ready(PATIENCE)
        assert len(site.jobs()) == 2


@pytest.mark.usefixtures("site")
def test_a_pending_pilot_says_why_and_is_canceled_at_once() -> None:
    with ph.Session("study") as session:
        session.submit_pilot(_slurm(nodes=4)).wait_ready(PATIENCE)
        second = session.submit_pilot(_slurm(nodes=1, name="second"))
        _until(lambda: "Resources" in second.message or "Priority" in second.message)
        assert second.state.name == "PENDING"
        second.cancel()
        _until(lambda: second.state.final, 10)
        assert second.state.name == "CANCELED"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"queue": "nosuch"}, "refused queue='nosuch'.*Invalid partition name.*sinfo -s"),
        ({"nodes": 9}, "nodes=9"),
        ({"constraint": "fast"}, "refused constraint='fast'.*Invalid feature"),
        ({"queue": "short", "runtime": 60}, "PartitionTimeLimit.*runtime=60"),
        ({"reservation": "mine"}, "refused reservation='mine'"),
        ({"gpus": 99}, "gpus=99.*Requested node configuration is not available"),
        ({"system_args": ["--bogus"]}, "system_args=.*unrecognized option '--bogus'"),
        ({"pre_launch": ["echo it breaks >&2; false"]}, "FAILED.*it breaks"),
    ],
)
def test_what_slurm_refuses_reaches_who_waits(site: Cluster, asked: dict[str, Any], words: str) -> None:
    with ph.Session("study") as session:
        pilot = session.submit_pilot(_slurm(**asked))
        call = session.call(_where, 0)
        with pytest.raises(ph.PilotFailed, match=words):
            pilot.wait_ready(20)
        with pytest.raises(ph.PilotFailed, match="no pilot is left"):
            call.result(20)
        _until(lambda: not site.jobs())  # one that could never start is taken back, and said first


@pytest.mark.requires("slurmdbd")
@pytest.mark.usefixtures("home")
def test_an_account_that_is_not_there(slurm_accounts: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(slurm_accounts, monkeypatch)
    with ph.Session("study") as session:
        with pytest.raises(ph.PilotFailed, match=r"refused project='nosuch'.*Invalid account.*sacctmgr"):
            session.submit_pilot(_slurm(project="nosuch")).wait_ready(20)
        session.submit_pilot(_slurm(project=slurm_accounts.account)).wait_ready(PATIENCE)
    slurm_accounts.wait_idle()


@pytest.mark.usefixtures("home")
def test_no_slurm_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with ph.Session("study") as session, pytest.raises(ph.PilotFailed, match="there is no sbatch on"):
        session.submit_pilot(_slurm()).wait_ready(20)


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        ("echo 'Welcome, 7 users'; sbatch_real; echo 'Quota: 12 %'", ""),
        ("sbatch_real >/dev/null; echo 'no number here'", ""),  # the queue tells by the job's comment
        ("echo 1; echo 2", "any of 1, 2 could be the job id"),
        ("echo hello", "“hello”, but no line of it is a job id"),
    ],
)
def test_a_wrapper_that_makes_noise(
    site: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch, noise: str, words: str
) -> None:
    wrapper = home.parent / "bin" / "sbatch"
    wrapper.parent.mkdir()
    real = site.run("which", "sbatch").strip()
    wrapper.write_text(f'#!/bin/bash\nwords=("$@")\nsbatch_real() {{ {real} "${{words[@]}}"; }}\n{noise}\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    with ph.Session("study") as session:
        pilot = session.submit_pilot(_slurm())
        if not words:
            pilot.wait_ready(PATIENCE)
            return
        # Not before the queue has said twice that there is no job.
        with pytest.raises(ph.PilotFailed, match=f"no job of it: .*{words}"):
            pilot.wait_ready(PATIENCE)


def test_while_the_controller_is_away_nothing_is_concluded(site: Cluster) -> None:
    with ph.Session("study") as session:
        pilot = session.submit_pilot(_slurm(nodes=2))
        pilot.wait_ready(PATIENCE)
        waits = session.submit_pilot(_slurm(nodes=4, name="waits"))
        _until(lambda: "Resources" in waits.message)
        site.stop_slurmctld()
        try:
            assert len([call.result(PATIENCE) for call in session.map(_where, [0.05] * 20)]) == 20
            late = session.submit_pilot(_slurm(name="late"))
            _until(lambda: "does not answer" in late.message)
            assert "scontrol ping" in _tool("pilot", "list", "--json")
            waits.cancel()
            time.sleep(3)
            assert [row["state"] for row in _pilots(session).values()] == ["ACTIVE", "PENDING", "NEW"]
        finally:
            site.start_slurmctld()
        _until(lambda: waits.state is PilotState.CANCELED)
        assert session.call(_where, 0).result(PATIENCE)[1] in (1, 3)
        late.wait_ready(2 * PATIENCE)
        assert len(site.jobs()) == 2, "one job each"


@pytest.mark.long
@pytest.mark.parametrize("known", [True, False], ids=["asked to take it", "asked who it is"])
def test_a_controller_that_stands_still_is_waited_for(site: Cluster, known: bool) -> None:
    """What was on its way is found by its comment, or submitted once: whether it heard of the job nobody can say."""
    with ph.Session("study") as session:
        if known:
            session.submit_pilot(_slurm()).wait_ready(PATIENCE)
        site.pause_slurmctld()
        try:
            late = session.submit_pilot([_slurm(name=f"late{number}") for number in range(2)])
            _until(lambda: all("does not answer" in each.message for each in late))
            assert {each.state for each in late} == {PilotState.NEW}
        finally:
            site.resume_slurmctld()
        for each in late:
            each.wait_ready(2 * PATIENCE)
        assert {session.options(pilot=each.name).call(_where, 0).result(PATIENCE)[1] for each in late} == {
            each.number for each in late
        }
        assert len(site.jobs()) == 2 + known, "one job each"


@pytest.mark.long
def test_a_hub_that_dies_while_the_controller_stands_still(site: Cluster, home: Path) -> None:
    with ph.Session("study") as session:
        session.submit_pilot(_slurm()).wait_ready(PATIENCE)
        site.pause_slurmctld()
        try:
            late = session.submit_pilot(_slurm(name="late"))
            _until(lambda: late.number)
            os.kill(_hub(home), signal.SIGKILL)
            time.sleep(2)
        finally:
            site.resume_slurmctld()
        late.wait_ready(2 * PATIENCE)
        assert len(site.jobs()) == 2, "one job each"


@pytest.mark.long
def test_a_pilot_that_is_given_up_while_nobody_answers_leaves_no_job(site: Cluster) -> None:
    with ph.Session("study") as session:
        session.submit_pilot(_slurm()).wait_ready(PATIENCE)
        site.pause_slurmctld()
        try:
            late = session.submit_pilot(_slurm(name="late"))
            _until(lambda: "does not answer" in late.message)
            late.cancel()
        finally:
            site.resume_slurmctld()
        _until(lambda: late.state is PilotState.CANCELED)
        assert len(site.jobs()) == 1


def test_a_job_that_is_requeued_goes_on_as_the_same_pilot(site: Cluster) -> None:
    with ph.Session("study") as session:
        pilot = session.submit_pilot(_slurm(nodes=2, requeue=True))
        pilot.wait_ready(PATIENCE)
        calls = session.map(_where, [0.3] * 60)
        _until(lambda: session.query("session")["states"].get("DONE"))
        job = _pilots(session)[1]["job"]
        site.run("scontrol", "requeue", job)
        _until(lambda: pilot.state is PilotState.PENDING)
        _until(lambda: "BeginTime" in pilot.message)
        assert {call.result(100)[1] for call in calls} == {1}
        assert _pilots(session)[1]["job"] == job


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("site")
def test_a_pilot_renews_itself() -> None:
    with ph.Session("study") as session:
        first = session.submit_pilot(_slurm(runtime=1, renew=True, name="row"))
        first.wait_ready(PATIENCE)
        _until(lambda: first.state is PilotState.DONE, 110)
        rows = _pilots(session)
        assert rows[1]["successor"] == 2
        assert rows[2]["lineage"] == 1
        assert rows[2]["message"].startswith("succeeds pilot 1")
        assert session.options(pilot="row").call(_where, 0).result(PATIENCE)[1] >= 2


def test_ctrl_c_keeps_a_batch_pilot_for_the_next_run(site: Cluster) -> None:
    def script() -> None:
        with ph.Session("study") as session:
            session.submit_pilot(_slurm()).wait_ready(PATIENCE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        script()
    assert len(site.jobs()) == 1
    with ph.Session("study") as session:
        assert session.call(_where, 0).result(PATIENCE)[1] == 1
    site.wait_idle(20)


def _nested(count: int) -> tuple[str, list[int]]:
    session = ph.current_session()
    return socket.gethostname(), [call.result(60) for call in session.map(abs, range(-count, 0))]


def test_code_in_tasks_reaches_the_hub_from_other_hosts(site: Cluster, home: Path) -> None:
    with ph.Session("study") as session:
        session.submit_pilot(_slurm(nodes=2)).wait_ready(PATIENCE)
        for call in [session.call(_nested, count) for count in range(2, 8)]:
            host, values = call.result(PATIENCE)
            assert host in site.names
            assert values == list(range(len(values), 0, -1))
        assert "ACTIVE" in session.call(_tool, "pilot", "list", "-s", "study").result(PATIENCE)
        address = json.loads((home / "hub/address.json").read_text())
        assert address["tcp"].startswith("tcp://10.")
        assert address["host"] == socket.gethostname()
        hubs = [each for each in _processes(home) if "pilot_hitl.hub" in each.cmdline()]
        assert [each.pid for each in hubs] == [_hub(home)], "no hub was started on a node"
