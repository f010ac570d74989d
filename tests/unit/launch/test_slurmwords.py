"""What Slurm's commands say, as the hub reads it. The texts are those of Slurm 22.05."""

from __future__ import annotations

from typing import Any

import pytest

from pilot_hitl.launch import slurmwords as words
from pilot_hitl.launch.slurmwords import JobView
from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.states import PilotState


@pytest.mark.parametrize(
    ("said", "job"),
    [
        ("42\n", "42"),
        ("42;cluster\n", "42"),
        ("Welcome to cluster 7!\n 42 \nQuota: 12 of 100\n", "42"),
        ("42\n42\n", "42"),
        ("sbatch wrapper v3\nSubmitted batch job 42\n", "42"),
    ],
)
def test_the_id_is_found_in_noise(said: str, job: str) -> None:
    assert words.parse_id(said) == job


@pytest.mark.parametrize(
    ("said", "why"), [("", "“nothing”"), ("hello 42 there", "no line"), ("42\n43\n", "any of 42, 43")]
)
def test_an_id_that_nobody_can_know_is_quoted(said: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        words.parse_id(said)


def test_the_queue() -> None:
    said = (
        "motd: be nice|to|each|other\n"
        "4_5|14|PENDING|1795635981|1795636101|1||pilot-hitl:abc/s/4|Priority\n"
        "1|1|RUNNING|1795635861|1795635981|2|n[1-2]|(null)|None\n"
        "3|3|PENDING|N/A|N/A|2||pilot-hitl:abc/s/3|(ReqNodeNotAvail, UnavailableNodes:n1|n2)\n"
    )
    found = words.parse_queue(said)
    assert set(found) == {"4_5", "1", "3"}
    assert found["1"] == JobView(
        id="1", state="RUNNING", started=1795635861, ends=1795635981, count=2, nodes="n[1-2]", reason="None"
    )
    assert (found["3"].started, found["3"].reason) == (0, "ReqNodeNotAvail, UnavailableNodes:n1|n2")
    assert found["3"].waits
    assert found["1"].lives
    assert "nodes that it needs are down" in words.waiting_words(found["3"])
    assert words.waiting_words(found["1"]) == "job 1 runs on n[1-2]; its agent has not reported yet"


@pytest.mark.parametrize(
    ("reason", "asked", "said"),
    [
        ("PartitionTimeLimit", {"runtime": 99.0}, "runtime=99.0: the partition allows less"),
        ("PartitionNodeLimit", {"nodes": 9}, "nodes=9: "),
        ("PartitionConfig", {"nodes": 1, "cores": 77}, "nodes=1, cores=77: "),
        ("QOSMaxWallDurationPerJobLimit", {}, "it is beyond a limit"),
        ("InvalidAccount", {}, "project: "),
        ("Resources", {}, ""),
        ("QOSMaxJobsPerUserLimit", {}, ""),
    ],
)
def test_a_job_that_can_never_run(reason: str, asked: dict[str, Any], said: str) -> None:
    description = PilotDescription(resource="slurm", **asked)
    found = words.hopeless(JobView(id="1", state="PENDING", reason=reason), description)
    assert found.startswith(said) if said else not found
    assert not words.hopeless(JobView(id="1", state="RUNNING", reason=reason), description)


@pytest.mark.parametrize(
    ("state", "reported", "outcome", "said"),
    [
        ("COMPLETED", True, PilotState.DONE, "job 7 ended"),
        ("COMPLETED", False, PilotState.FAILED, "before its agent reported"),
        ("TIMEOUT", True, PilotState.DONE, "reached its wall time"),
        ("TIMEOUT", False, PilotState.FAILED, "before its agent reported"),
        ("CANCELLED", True, PilotState.CANCELED, "canceled by somebody"),
        ("NODE_FAIL", True, PilotState.FAILED, "NODE_FAIL"),
        ("PREEMPTED", True, PilotState.FAILED, "PREEMPTED"),
        ("BOOT_FAIL", False, PilotState.FAILED, "BOOT_FAIL"),
        ("DEADLINE", False, PilotState.FAILED, "DEADLINE"),
        ("OUT_OF_MEMORY", True, PilotState.FAILED, "OUT_OF_MEMORY"),
        ("FAILED", True, PilotState.FAILED, "FAILED"),
        ("SOMETHING_NEW", True, PilotState.FAILED, "SOMETHING_NEW"),
        ("", True, PilotState.FAILED, "no longer knows"),
    ],
)
def test_what_an_end_means(state: str, reported: bool, outcome: PilotState, said: str) -> None:
    found, message = words.verdict("7", state, reported=reported, stopped=False)
    assert found is outcome
    assert said in message
    assert words.verdict("7", state, reported=reported, stopped=True)[0] is PilotState.DONE


@pytest.mark.parametrize(
    ("said", "asked", "remedy"),
    [
        ("Invalid partition name specified", {"queue": "x"}, "refused queue='x'.*sinfo -s"),
        (
            "Invalid account or account/partition combination specified",
            {"project": "y"},
            "refused project='y'.*sacctmgr",
        ),
        ("Invalid qos specification", {"qos": "q"}, "refused qos='q'"),
        ("Requested time limit is invalid (missing or exceeds some limit)", {}, "refused runtime=60"),
        ("Invalid feature specification", {"constraint": "c"}, "refused constraint='c'"),
        ("Requested node configuration is not available", {"gpus": 100}, "refused gpus=100: .*sinfo"),
        ("Something else", {}, "refused the pilot: “.*Something else”"),
    ],
)
def test_refusals_name_value_words_and_remedy(said: str, asked: dict[str, Any], remedy: str) -> None:
    description = PilotDescription(resource="slurm", **asked)
    line = f"sbatch: error: Batch job submission failed: {said}"
    found = words.refusal(line, description, "login1")
    assert line in found
    assert "\n" not in found
    with pytest.raises(AssertionError, match=remedy):
        raise AssertionError(found)


def test_where_the_controller_is() -> None:
    config = words.parse_config(
        "Configuration data as of now\nSlurmctldHost[0]         = vm(10.2.0.1)\nMaxArraySize = 10001\n"
    )
    assert words.controller(config) == ("10.2.0.1", True)
    assert words.controller({"SlurmctldHost": "head"}) == ("head", False)
    assert words.controller({}) == ("", False)
    assert config["MaxArraySize"] == "10001"


def test_accounting() -> None:
    assert words.parse_accounting("7|CANCELLED by 0|0:15\nnoise\n8|COMPLETED|0:0\n") == {
        "7": ("CANCELLED", "0:15"),
        "8": ("COMPLETED", "0:0"),
    }


@pytest.mark.parametrize(
    ("said", "silent"),
    [
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", True),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", True),
        ("squeue: error: Zero Bytes were transmitted or received", True),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("sbatch: error: Batch job submission failed: Resource temporarily unavailable", True),
        ("sbatch: error: Batch job submission failed: Requested time limit is invalid", False),
        ("sbatch: error: invalid partition specified: x", False),
        ("", False),
    ],
)
def test_what_is_no_answer(said: str, silent: bool) -> None:
    assert words.is_unreachable(said) == silent
