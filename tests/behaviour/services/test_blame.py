"""A death is blamed on what was in the handler, and on nothing else."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, further


def describe(handler: Any, **more: Any) -> ph.ServiceDescription:
    return ph.ServiceDescription(**{"name": "it", "handler": handler, "backoff": 0.05, "restarts": 20, **more})


def _crash(how: str) -> None:
    if how == "segfault":
        ctypes.string_at(0)
    if how == "exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(600)


class Serves:
    """Ends its process as an item says; writes down each life and each item that it was given."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        with (self.folder / "lives").open("a") as file:
            file.write(f"{os.getpid()}\n")

    def note(self, items: list[Any]) -> None:
        with (self.folder / "calls").open("a") as file:
            file.write(" ".join(map(str, items)) + "\n")


class Single(Serves):
    def __call__(self, item: Any) -> Any:
        self.note([item])
        _crash(str(item))
        return item


class Batches(Serves):
    def __call__(self, batch: list[Any]) -> list[Any]:
        self.note(batch)
        time.sleep(0.05)
        for item in batch:
            _crash(str(item))
        return batch


class Awaits(Serves):
    async def __call__(self, item: Any) -> Any:
        await asyncio.sleep(0.05)
        self.note([item])
        _crash(str(item))
        return item


KINDS: dict[str, tuple[type[Serves], dict[str, Any]]] = {
    "single": (Single, {}),
    "batches": (Batches, {"max_batch": 8}),
    "awaits": (Awaits, {}),
}


@pytest.mark.parametrize("how", further(1, ["segfault", "hang", "exit"]))
@pytest.mark.parametrize("kind", further(1, KINDS))
def test_the_second_death_names_a_request_and_all_others_are_answered(study: Study, kind: str, how: str) -> None:
    handler, more = KINDS[kind]
    bound = {"request_timeout": 1.0} if how == "hang" else {}
    with study.session() as session:
        service = session.start_service(describe(handler, kwargs={"folder": str(study.folder)}, **more, **bound))
        futures = [service.request(item) for item in (*range(20), how, *range(20, 60))]
        poison = futures.pop(20)
        assert [future.result(100) for future in futures] == list(range(60))
        error = poison.exception(100)
        assert type(error) is (ph.ServiceTimeout if how == "hang" else ph.ServiceFailed)
        assert "in the handler both times when a replica" in str(error)
        assert f"request {poison.number & 0xFFFFFFFF} " in str(error)
        assert len(study.lines("lives")) == 3, "two died of it"
        calls = study.lines("calls")
        assert calls.count(how) == 1 + (kind != "batches"), "the second time alone"


def test_what_may_not_run_again_runs_once_and_what_waited_is_answered(study: Study) -> None:
    with study.session() as session:
        folder = {"folder": str(study.folder)}
        service = session.start_service(describe(Single, kwargs=folder, idempotent=False)).wait_ready(60)
        futures = [service.request(item) for item in range(20)]
        # What was answered is here: an answer that is still on its way ends with its replica.
        assert [future.result(60) for future in futures] == list(range(20))
        poison, *more = [service.request(item) for item in ("exit", *range(20, 60))]
        futures += more
        with pytest.raises(ph.ServiceFailed, match="not idempotent"):
            poison.result(60)
        assert [future.result(60) for future in futures] == list(range(60))
        assert sorted(study.lines("calls")) == sorted(["exit", *map(str, range(60))]), "each once"


def test_answers_that_were_lost_with_their_replica_do_not_run_again(study: Study) -> None:
    """A client that does not read for long: answers lie in the replica's socket when it dies."""
    with study.session() as session:
        folder = {"folder": str(study.folder)}
        service = session.start_service(describe(Single, kwargs=folder, idempotent=False)).wait_ready(60)
        service.request("first").result(60)
        futures = [service.request(item) for item in range(3000)]
        os.kill(int(study.lines("lives")[0]), signal.SIGKILL)
        ends = [future.exception(60) for future in futures]
        ran = study.lines("calls")
        assert len(ran) == len(set(ran)), "none ran twice"
        assert all(end is None or isinstance(end, ph.ServiceFailed) for end in ends)
        assert sum(end is None for end in ends) <= len(ran) - 1


def test_a_replica_that_is_killed_from_outside_costs_no_request(study: Study) -> None:
    with study.session(cores=3) as session:
        folder = {"folder": str(study.folder)}
        service = session.start_service(describe(Batches, kwargs=folder, replicas=2, max_batch=8))
        service.wait_ready(60, replicas=2)
        futures = service.requests(range(200))
        os.kill(int(study.lines("lives")[0]), signal.SIGKILL)
        assert [future.result(60) for future in futures] == list(range(200))
