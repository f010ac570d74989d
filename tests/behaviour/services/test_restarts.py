"""What a replica's next life knows, and which description answers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, wait_for


def describe(handler: Any, **more: Any) -> ph.ServiceDescription:
    return ph.ServiceDescription(**{"name": "it", "handler": handler, "backoff": 0.05, "restarts": 20, **more})


class Model:
    """Writes down everything that it is told, in order."""

    def __init__(self, version: str = "none") -> None:
        self.version = version
        self.told: list[Any] = []

    def __call__(self, _: object) -> tuple[str, list[Any], int]:
        return self.version, self.told, os.getpid()

    def load(self, weights: Any) -> int:
        self.told.append(float(np.sum(weights)))
        return os.getpid()

    async def tune(self, step: str) -> int:
        self.told.append(step)
        return os.getpid()

    def bad(self, item: object) -> None:
        if Path(str(item)).exists():
            raise ValueError("no such weights")


def kill(service: Any, replica: int = 0) -> None:
    """Kill a replica, and wait until it serves again."""
    before = service.info()["replicas"][replica]
    os.kill(before["pid"], signal.SIGKILL)
    wait_for(
        lambda: (now := service.info()["replicas"][replica])["endpoint"] and now["pid"] != before["pid"],
        "it is started again",
    )


def test_what_is_kept_is_known_before_anybody_is_answered(study: Study, capfd: pytest.CaptureFixture[str]) -> None:
    with study.session(cores=3) as session:
        service = session.start_service(describe(Model, replicas=2)).wait_ready(60, replicas=2)
        large = np.ones(1 << 17)
        for item, method, keep in (
            (1.0, "load", False),
            (2.0, "load", True),
            ("a", "tune", "first"),
            (large, "load", True),
            ("b", "tune", "second"),
        ):
            assert len({future.result(60) for future in service.broadcast(item, method=method, keep=keep)}) == 2
        everything = [1.0, 2.0, "a", float(1 << 17), "b"]
        assert service.request(0).result(60)[1] == everything
        assert service.info()["kept"] == ["first", "load()", "second"]
        waiting = service.request(0)
        kill(service, 0)
        waiting.result(60)
        kill(service, 1)
        kept = ["a", float(1 << 17), "b"]
        for _ in range(20):
            assert service.request(0).result(60)[1] == kept
        view = service.replicas[0]
        assert (view.starts, view.failures) == (2, 1)
        assert view.loss is not None
        assert "signal 9" in view.loss.message
        assert "signal 9" in service.info()["replicas"][1]["last_failure"]
    told = [line for line in capfd.readouterr().err.splitlines() if "is started again" in line]
    assert len(told) == 2
    assert "pilot-hitl: replica 1 of service 'it' is started again (its process ended: " in told[0]


def test_what_is_kept_outlives_the_hub_and_ends_with_its_description(study: Study) -> None:
    with study.session(cores=3) as session:
        service = session.start_service(describe(Model)).wait_ready(60)
        for future in service.broadcast(3.0, method="load", keep="weights"):
            future.result(60)
        hub = next(process["pid"] for process in study.processes() if process["kind"] == "hub")
        os.kill(hub, signal.SIGKILL)
        wait_for(lambda: service.info()["ready"] == 1, "it is known again")
        kill(service)
        assert service.request(0).result(60)[1] == [3.0]
        again = session.start_service(describe(Model, kwargs={"version": "v2"}))
        assert again.request(0).result(60)[:2] == ("v2", [])


def test_what_is_kept_and_cannot_be_taken_in_is_named(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(Model, restarts=1)).wait_ready(60)
        place = study.folder / "bad"
        for future in service.broadcast(str(place), method="bad", keep=True):
            future.result(60)
        place.touch()
        os.kill(service.info()["replicas"][0]["pid"], signal.SIGKILL)
        with pytest.raises(ph.ServiceFailed, match=r"kept as 'bad\(\)' could not be taken in: ValueError: no such wei"):
            service.wait_ready(0.1) if service.state.final else service.request(0).result(60)


class Other:
    def __call__(self, item: object) -> object:
        time.sleep(0.02)
        return "other", item


def test_requests_of_a_handle_are_answered_by_what_it_described(study: Study) -> None:
    with study.session(cores=3) as session:
        first = session.start_service(describe(Model, kwargs={"version": "v1"}))
        same = session.start_service(describe(Model, kwargs={"version": "v1"}))
        assert first.request(0).result(60)[0] == "v1"
        old = [first.request(0) for _ in range(50)]
        second = session.start_service(describe(Model, kwargs={"version": "v2"}))
        new = [second.request(0) for _ in range(50)]
        assert {future.result(60)[0] for future in new} == {"v2"}
        for future in old:
            error = future.exception(60)
            assert future.result()[0] == "v1" if error is None else isinstance(error, ph.ServiceStopped)
        with pytest.raises(ph.ServiceStopped, match=r"described anew: send requests to the service that start_service"):
            first.request(0).result(60)
        third = session.start_service(describe(Other))
        assert third.request(1).result(60) == ("other", 1)
        assert session.service("it").request(2).result(60) == ("other", 2)
        fourth = session.start_service(describe(Model, kwargs={"version": "v1"}))
        assert fourth.request(0).result(60)[0] == "v1", "as the first one, and yet another"
        for handle in (first, same, second, third):
            with pytest.raises(ph.ServiceStopped):
                handle.request(0).result(60)


def test_what_a_replica_has_is_answered_before_its_description_ends(study: Study) -> None:
    with study.session(cores=3) as session:
        first = session.start_service(describe(Other, max_batch=1)).wait_ready(60)
        futures = [first.request(item) for item in range(20)]
        wait_for(futures[0].done, "they are under way")
        second = session.start_service(describe(Model))
        assert second.request(0).result(60)[0] == "none"
        ends = [future.exception(60) for future in futures]
        assert all(end is None or isinstance(end, ph.ServiceStopped) for end in ends)
        assert [future.result() for future in futures[:2]] == [("other", 0), ("other", 1)]
        assert sum(end is None for end in ends) >= 2


def test_tasks_follow_the_name_and_take_a_service_as_argument(study: Study) -> None:
    def ask(item: int) -> Any:
        return ph.service("it").request(item).result(60)

    def ask_this(service: Any, item: int) -> Any:
        return service.request(item).result(60)

    with study.session(cores=3) as session:
        first = session.start_service(describe(Model, kwargs={"version": "v1"}))
        assert session.call(ask, 1).result(60)[0] == "v1"
        assert session.call(ask_this, first, 1).result(60)[0] == "v1"
        session.start_service(describe(Model, kwargs={"version": "v2"}))
        assert session.call(ask, 2).result(60)[0] == "v2", "the worker that asked before is no reason to refuse"


@pytest.mark.parametrize("description", ["again", "refused"])
def test_a_description_that_is_refused_leaves_the_service_as_it_is(study: Study, description: str) -> None:
    with study.session(cores=2) as session:
        first = session.start_service(describe(Model, kwargs={"version": "v1"})).wait_ready(60)
        if description == "refused":
            with pytest.raises(ph.DescriptionError):
                session.start_service(describe(Model, max_batch=0))
        else:
            assert session.start_service(describe(Model, kwargs={"version": "v1"})) is first
        assert first.request(0).result(60)[0] == "v1"
