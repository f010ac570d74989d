"""Services: replicas of a pilot that answer scripts and tasks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

import pilot_hitl as ph
from pilot_hitl._channel import Channel
from pilot_hitl.wire.servicing import ServiceUpdate
from tests.behaviour.services import handlers
from tests.behaviour.studies import Study, further, wait_for


def describe(handler: Any, **more: Any) -> ph.ServiceDescription:
    return ph.ServiceDescription(**{"name": "it", "handler": handler, "backoff": 0.05, **more})


def test_a_lone_request_is_answered(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Double, kwargs={"factor": 3}, max_batch=8))
        assert service.request(7).result(30) == 21
        assert service.state is ph.ServiceState.READY


def test_a_handler_can_be_named_and_a_function_serves(study: Study) -> None:
    with study.session(cores=3) as session:
        named = session.start_service(describe("tests.behaviour.services.handlers:Odd", name="named"))
        function = session.start_service(describe(lambda item: item + 1, name="function"))
        assert named.request("x").result(30) == "x"
        assert function.request(1).result(30) == 2


def test_waiting_requests_are_served_together_and_a_lone_one_is_not_held(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Double, kwargs={"wait": 0.05}, max_batch=16))
        service.request(0).result(30)
        first = service.request(1)
        wait_for(lambda: service.info()["replicas"][0]["metrics"]["busy_s"] > 0 or first.done(), "it is busy")
        results = [future.result(30) for future in [service.request(item) for item in range(40)]]
        assert results == [2 * item for item in range(40)]
        sizes = service.call("seen")
        assert sizes[0] == 1
        assert max(sizes) <= 16
        assert sum(sizes) == 42
        assert len(sizes) < 15


def test_ten_thousand_requests_before_a_replica_is_ready(study: Study) -> None:
    with study.session(cores=0) as session:
        service = session.start_service(describe(handlers.Double, max_batch=64, max_queue=256))
        futures = [service.request(item) for item in range(10_000)]
        assert service.pending == 10_000
        study.pilot(session, cores=2)
        assert [future.result(60) for future in futures] == [2 * item for item in range(10_000)]


def test_the_handlers_own_error_is_raised(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Odd))
        with pytest.raises(KeyError, match="no such thing") as caught:
            service.request("raise").result(30)
        assert "handlers.py" in "".join(caught.value.__notes__)
        with pytest.raises(ph.HandlerFailed, match="cannot travel"):
            service.request("unpicklable").result(30)
        assert service.request("fine").result(30) == "fine"


@pytest.mark.parametrize("kind", further(1, ["few", "many", "text", "one"]))
def test_a_wrong_shape_or_count_is_told_to_each(study: Study, kind: str) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Batches, kwargs={"kind": kind}, max_batch=4))
        for future in service.requests([1, 2, 3]):
            with pytest.raises(ph.BadReply, match="one result an item"):
                future.result(30)


def test_a_handler_that_cannot_be_set_up_is_tried_and_given_up(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Broken, restarts=2))
        waiting = service.request(1)
        with pytest.raises(ph.ServiceFailed, match=r"model\.pt is missing") as caught:
            waiting.result(60)
        assert "FileNotFoundError" in caught.value.detail
        assert service.state is ph.ServiceState.FAILED
        assert service.info()["replicas"][0]["starts"] == 3
        with pytest.raises(ph.ServiceFailed):
            service.request(2).result(10)


@pytest.mark.parametrize("how", ["hang", "die"])
def test_a_request_survives_a_replica_that_hangs_or_dies(study: Study, how: str) -> None:
    with study.session() as session:
        place = str(study.folder / "once")
        description = describe(handlers.Once, kwargs={"place": place, "how": how}, request_timeout=0.5)
        service = session.start_service(description)
        assert service.request("again").result(60) == "again"
        assert service.info()["replicas"][0]["starts"] == 2


@pytest.mark.parametrize(("how", "error"), [("hang", ph.ServiceTimeout), ("die", ph.ServiceFailed)])
def test_what_may_not_run_again_is_told(study: Study, how: str, error: type[Exception]) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Odd, idempotent=False, request_timeout=0.5))
        with pytest.raises(error, match="not idempotent"):
            service.request(how).result(60)
        assert service.request("next").result(60) == "next"


def test_kill_of_a_replica_under_load_loses_nothing(study: Study) -> None:
    with study.session(cores=3) as session:
        service = session.start_service(describe(handlers.Slow, kwargs={"wait": 0.005}, replicas=2, max_batch=8))
        service.wait_ready(30, replicas=2)
        futures = service.requests(range(2000))
        for _ in range(3):
            pids = [replica["pid"] for replica in service.info()["replicas"] if replica["endpoint"]]
            os.kill(pids[0], signal.SIGKILL)
            wait_for(lambda: service.info()["ready"] == 2, "it is started again")
        assert [future.result(60)[0] for future in futures] == list(range(2000))


def test_more_than_the_queue_holds_is_refused(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Slow, kwargs={"wait": 0.2}, max_queue=4, max_batch=2))
        service.wait_ready(30)
        futures = [service.request(item) for item in range(40)]
        ends = [future.exception(30) for future in futures]
        assert sum(end is None for end in ends) >= 4
        assert {type(end) for end in ends if end is not None} == {ph.Overloaded}
        # Those that are gathered wait for room instead.
        assert len(service.map(range(20))) == 20


def test_stop_finishes_what_waits_and_takes_nothing_new(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Slow, kwargs={"wait": 0.1}, max_batch=2))
        service.wait_ready(30)
        futures = [service.request(item) for item in range(10)]
        service.stop(timeout=30)
        assert [future.result(10)[0] for future in futures] == list(range(10))
        assert service.state is ph.ServiceState.STOPPED
        with pytest.raises(ph.ServiceStopped):
            service.request(11).result(10)
        again = session.start_service(describe(handlers.Slow, max_batch=2))
        assert again.request(12).result(30)[0] == 12


def test_what_was_requested_as_soon_as_a_replica_was_ready_is_answered_before_it_stops(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, returned, early = Channel.update, threading.Event(), list[bool]()

    def slowly(self: Channel, news: ServiceUpdate) -> None:
        if news.replicas and news.replicas[0].endpoint:
            # The script is not told of a replica to which its requests could not be sent yet.
            early.append(returned.wait(0.3))
        update(self, news)

    monkeypatch.setattr(Channel, "update", slowly)
    with study.session() as session:
        service = session.start_service(describe(handlers.Slow, kwargs={"wait": 0.1}, max_batch=2)).wait_ready(30)
        returned.set()
        futures = [service.request(item) for item in range(10)]
        service.stop(timeout=30)
        assert [future.result(10)[0] for future in futures] == list(range(10))
    assert early[0] is False


def test_methods_are_called_alone_and_on_all_replicas(study: Study) -> None:
    with study.session(cores=3) as session:
        service = session.start_service(describe(handlers.Double, replicas=2, max_batch=8)).wait_ready(30, replicas=2)
        pids = {future.result(30) for future in service.broadcast(5, method="train")}
        assert len(pids) == 2
        assert service.map(range(100)) == [5 * item for item in range(100)]
        with pytest.raises(ph.HandlerFailed, match="no public method"):
            service.call("nothing")


def test_tasks_request_too(study: Study) -> None:
    with study.session(cores=3) as session:
        session.start_service(describe(handlers.Double, max_batch=8)).wait_ready(30)

        def ask(item: int) -> int:
            value: int = ph.service("it").request(item).result(30)
            return value

        assert [future.result(60) for future in session.map(ask, range(20))] == [2 * item for item in range(20)]
        code = "import pilot_hitl as ph; print(ph.service('it').request(21).result(30))"
        task = ph.TaskDescription(executable=sys.executable, arguments=["-c", code])
        with pytest.raises(ph.UnknownService, match="there are: it"):
            session.service("other")
        assert session.submit(task).result(60).stdout.strip() == "42"


def test_a_task_that_waits_for_a_service_lends_its_core(study: Study) -> None:
    with study.session(cores=2) as session:
        session.start_service(describe(handlers.Double, kwargs={"wait": 2.0})).wait_ready(30)

        def ask(item: int) -> tuple[int, float]:
            value: int = ph.service("it").request([item]).result(30)[0]
            return value, time.time()

        asked = session.call(ask, 4)
        meanwhile = session.options(backfill=True).call(time.time)
        ended = meanwhile.result(30)
        value, answered = asked.result(30)
        assert value == 8
        assert ended < answered, "it ran on the core of the task that waited"


def test_many_threads_and_an_event_loop(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Double, max_batch=32)).wait_ready(30)
        sums: list[int] = []

        def ask() -> None:
            sums.append(sum(service.request(item).result(30) for item in range(200)))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sums == [199 * 200] * 8

        async def gather() -> list[int]:
            return list(await asyncio.gather(*(asyncio.wrap_future(service.request(item)) for item in range(200))))

        assert asyncio.run(gather()) == [2 * item for item in range(200)]
        done, not_done = ph.wait([service.request(item) for item in range(50)], 30)
        assert (len(done), len(not_done)) == (50, 0)
        assert sorted(future.result() for future in ph.as_completed([service.request(i) for i in range(9)], 30)) == [
            2 * item for item in range(9)
        ]


def test_arrays_travel_whole_and_may_be_changed(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Double, max_batch=4))
        array = np.arange(1 << 17, dtype=float)
        future = service.request(array)
        array[:] = 0
        found = future.result(30)
        assert found.sum() == 2 * sum(range(1 << 17))
        found[0] = 5  # it is the caller's own


def test_a_request_has_a_timeout(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Slow, kwargs={"wait": 3.0}, max_batch=1))
        service.wait_ready(30)
        began = time.monotonic()
        first = service.request(1, timeout=0.2)
        with pytest.raises(ph.ServiceTimeout):
            first.result(30)
        with pytest.raises(TimeoutError):
            service.request(2).result(0.1)
        assert time.monotonic() - began < 3


def test_the_hub_may_die_while_a_service_runs(study: Study) -> None:
    with study.session(cores=3) as session:
        service = session.start_service(describe(handlers.Slow, replicas=2, max_batch=8)).wait_ready(30, replicas=2)
        before = {item[1] for item in service.map(range(100))}
        hub = next(process["pid"] for process in study.processes() if process["kind"] == "hub")
        os.kill(hub, signal.SIGKILL)
        assert len(service.map(range(100))) == 100
        wait_for(lambda: service.info()["ready"] == 2, "both replicas are known again")
        assert {item[1] for item in service.map(range(100))} <= before
        assert [replica["starts"] for replica in service.info()["replicas"]] == [1, 1]
        os.kill(next(iter(before)), signal.SIGKILL)
        wait_for(lambda: service.info()["ready"] == 2, "it is started again")
        service.stop(timeout=30)


def test_the_command_line_shows_asks_and_stops(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(describe(handlers.Double, max_batch=4)).wait_ready(30)
        assert [row["service"] for row in json.loads(study.tool("service", "list", "--json"))] == ["it"]
        asked = json.loads(study.tool("service", "request", "it", "21", "-s", "study", "--json"))
        assert asked["answer"] == 42
        shown = json.loads(study.tool("service", "show", "it", "-s", "study", "--json"))
        metrics = shown["replicas"][0]["metrics"]
        assert metrics["requests"] == 1
        assert metrics["bootstrap"].keys() == {"launch_s", "init_s", "publish_s"}
        assert {metrics[part]["count"] for part in ("communication", "service", "inference")} == {1}
        assert "READY" in study.tool("service", "list")
        assert "it of study: READY" in study.tool("service", "show", "it", "-s", "study")
        study.tool("service", "stop", "it", "-s", "study")
        wait_for(lambda: service.state is ph.ServiceState.STOPPED, "it is stopped")
        assert "no service 'other'" in study.tool("service", "show", "other", "-s", "study", code=1)


@pytest.mark.parametrize("policy", further(1, ["refuse", "allow", "defer"]))
def test_requests_of_tasks_that_speculate(study: Study, policy: str) -> None:
    def ask(item: int) -> int:
        value: int = ph.service("it").request(item).result(60)
        return value

    with study.session(cores=3) as session:
        service = session.start_service(describe(handlers.Double, max_batch=8, speculative=policy)).wait_ready(30)
        gate = session.checkpoint("go", question="Go on?", choices=["yes", "no"])
        yes, no = gate.branch("yes").call(ask, 1), gate.branch("no").call(ask, 2)
        assert session.call(ask, 3).result(60) == 6, "needed tasks are served whatever the policy"
        if policy == "allow":
            wait_for(lambda: sum(service.call("seen")) == 3, "speculative requests are served too")
        else:
            time.sleep(0.5)  # long enough for a request that is wrongly served
            assert sum(service.call("seen")) == 1
        (request,) = study.inbox()
        study.tool("inbox", "answer", request["id"], "yes")
        assert yes.result(60) == 2
        with pytest.raises(ph.Discarded):
            no.result(60)
        assert sum(service.call("seen")) == (3 if policy == "allow" else 2)


def test_a_detached_service_is_found_by_the_next_run(study: Study) -> None:
    script = """
        def answer(item):
            return os.getpid()

        with ph.Session("study", on_exit=sys.argv[1]) as session:
            if len(sys.argv) > 2:
                session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2))
            service = session.start_service(ph.ServiceDescription(name="it", handler=answer))
            print(service.request(1).result(30))
    """
    pids = {study.run(script, *arguments) for arguments in (("detach", "new"), ("detach",), ("stop",))}
    assert len(pids) == 1


def test_drain_does_not_wait_for_services(study: Study) -> None:
    with study.session(on_exit="drain") as session:
        service = session.start_service(describe(handlers.Double, max_batch=4))
        assert service.request(1).result(30) == 2


def test_a_forked_child_leaves_the_channel_to_its_parent(study: Study) -> None:
    script = """
        with ph.Session("study") as session:
            session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2))
            service = session.start_service(ph.ServiceDescription(name="it", handler=lambda item: item + 1))
            waiting = service.request(1)
            if (child := os.fork()) == 0:
                try:
                    waiting.result(10)
                except ph.SessionClosed:
                    os._exit(7)
                os._exit(1)
            print(waiting.result(30), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert study.run(script).split() == ["2", "7"]
