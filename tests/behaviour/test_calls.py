"""Function calls against real workers."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, append, wait_for


class Custom(Exception):
    """An error with arguments that its base does not know."""

    def __init__(self, code: int, *, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return _custom, (self.code, self.text)


def _custom(code: int, text: str) -> Custom:
    return Custom(code, text=text)


class CannotBeRebuilt(Exception):
    """Pickles, but its constructor wants more than ``args``."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text}: {code}")


class CannotBePickled(Exception):
    def __init__(self) -> None:
        super().__init__("with a lock")
        self.lock = threading.Lock()


def square(x: int) -> int:
    return x * x


def raise_custom() -> NoReturn:
    raise Custom(17, text="ünï\ncode")


def raise_odd(which: str) -> NoReturn:
    if which == "rebuilt":
        raise CannotBeRebuilt(3, "odd")
    raise CannotBePickled


def end(how: str, log: str) -> str:
    append(log, os.getpid())
    if how == "exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "abort":
        os.abort()
    if how == "sys.exit":
        sys.exit(4)
    return "lived"


def test_values_of_any_kind(study: Study) -> None:
    values = [None, True, 1 << 90, 0.1, "ünï\n\0", b"\xff", (1, [2, {"x": {3}}]), float("inf"), range(3), Path("/x")]
    with study.session() as session:
        assert session.map(_same, values).results() == values
        assert session.call(_keywords, 1, timeout=2, key=3, cores=4, name="n").result() == (1, 2, 3, 4, "n")
        assert session.call(lambda x: x + 1, 41).result() == 42
        grown = 5
        assert session.call(lambda: grown * 2).result() == 10


def _same(x: Any) -> Any:
    return x


def _keywords(first: int, *, timeout: int, key: int, cores: int, name: str) -> tuple[int, int, int, int, str]:
    return first, timeout, key, cores, name


def test_fifty_megabytes_each_way(study: Study) -> None:
    data = os.urandom(50_000_000)
    with study.session() as session:
        task = session.call(_turned, data)
        assert task.result() == data[::-1]
        # As a dependency it does not come back to this process first.
        assert session.call(len, session.call(_turned, data)).result() == len(data)


def _turned(data: bytes) -> bytes:
    return data[::-1]


def test_errors_arrive_as_they_are(study: Study) -> None:
    with study.session() as session:
        with pytest.raises(Custom, match="ünï") as caught:
            session.call(raise_custom).result()
        assert (caught.value.code, caught.value.text) == (17, "ünï\ncode")
        assert "raise_custom" in str(caught.value.__cause__)
        for which, word in (("rebuilt", "odd: 3"), ("pickled", "with a lock")):
            with pytest.raises(ph.TaskFailed, match=word) as odd:
                session.call(raise_odd, which).result()
            assert "raise_odd" in odd.value.stderr
        with pytest.raises(ph.PayloadError):
            session.call(threading.Lock).result()
        with pytest.raises(ph.PayloadError):
            session.call(square, threading.Lock())
        with pytest.raises(KeyError):
            session.call({}.__getitem__, "x").result()
        assert session.call(square, 3).result() == 9


def test_workers_that_die(study: Study) -> None:
    log = str(study.folder / "pids")
    with study.session() as session:
        others = session.map(square, range(500))
        for how in ("exit", "kill", "abort"):
            with pytest.raises(ph.WorkerDied):
                session.call(end, how, log).result(30)
        with pytest.raises((SystemExit, ph.TaskFailed)):
            session.call(end, "sys.exit", log).result(30)
        assert others.results() == [x * x for x in range(500)]
        # A lost worker may be another's fault, so the first one costs no retry.
        assert len(study.lines("pids")) == 7
        with pytest.raises(ph.WorkerDied):
            session.options(retries=2).call(end, "exit", log).result(30)
        assert len(study.lines("pids")) == 11
        assert session.call(end, "not", log).result(30) == "lived"


def test_every_equal_call_is_a_task(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session() as session:
        calls = [session.call(append, log, "same") for _ in range(1000)]
        mapped = session.map(append, [log] * 1000, ["same"] * 1000)
        for call in calls:
            call.result()
        mapped.results()
        assert len(study.lines("log")) == 2000


def test_what_calls_print_goes_nowhere_near_the_results(study: Study) -> None:
    with study.session() as session:
        assert session.map(_talks, range(4)).results() == list(range(4))


def _talks(x: int) -> int:
    print("x" * 2_000_000)
    sys.stderr.write("y" * 1_000_000)
    subprocess.run(["/bin/sh", "-c", "head -c 1000000 /dev/zero; echo >&2 z"], check=True)
    os.write(1, b"\xff\0" * 1000)
    return x


@pytest.mark.one_node("a call of two cores")
def test_options(study: Study) -> None:
    with study.session() as session:
        options = session.options(environment={"STUDY": "a b"}, sandbox=str(study.folder / "box"), cores=2)
        assert options.call(_surroundings).result() == ("a b", str(study.folder / "box"))
        assert session.call(_surroundings).result()[0] is None
        with pytest.raises(ph.TaskTimeout):
            session.options(timeout=0.3, grace=0.1).call(time.sleep, 60).result(20)
        with pytest.raises(ph.TaskTimeout):
            session.options(timeout=0.3, grace=0.1).call(_stubborn).result(20)
        assert session.call(square, 5).result() == 25
        flaky = session.options(retries=3).call(_flaky, str(study.folder / "tries"))
        assert flaky.result() == 3


def _surroundings() -> tuple[str | None, str]:
    return os.environ.get("STUDY"), str(Path.cwd())


def _stubborn() -> None:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


def _flaky(log: str) -> int:
    append(log, "x")
    tries = len(Path(log).read_text().splitlines())
    if tries < 3:
        raise ValueError(tries)
    return tries


def test_dependencies(study: Study) -> None:
    with study.session() as session:
        a, b = session.call(square, 2), session.call(square, 3)
        assert session.call(_add, {"x": [a, (b,)]}, more=[a]).result() == 17
        chain = session.call(square, 0)
        for _ in range(200):
            chain = session.call(_add_one, chain)
        assert chain.result() == 200
        assert session.call(sum, session.map(square, range(50))).result() == sum(x * x for x in range(50))
        assert session.map(_add_one, [a, b, 1]).results() == [5, 10, 2]
        bad = session.call(raise_custom)
        after = session.call(_add_one, session.call(_add_one, bad))
        with pytest.raises(ph.DependencyFailed) as caught:
            after.result()
        assert caught.value.__cause__ is bad.exception()
        done = session.submit(ph.TaskDescription(executable="echo", arguments=["hello"]))
        assert session.call(_stdout, done).result() == "hello\n"


def _add(table: dict[str, Any], more: list[int]) -> int:
    first, (second,) = table["x"]
    total: int = first + second + sum(more)
    return total


def _add_one(x: int) -> int:
    return x + 1


def _stdout(done: ph.Completed) -> str:
    return done.stdout


def test_cancel_kills_what_a_call_started(study: Study) -> None:
    log = str(study.folder / "pids")
    with study.session() as session:
        task = session.options(grace=0.2).call(_forks, log)
        waiting = session.map(time.sleep, [50] * 30)
        pids = wait_for(lambda: len(lines := study.lines("pids")) >= 2 and lines, "it forked")
        assert task.cancel()
        assert waiting.cancel()
        with pytest.raises(ph.TaskCanceled):
            task.result(20)
        with pytest.raises(cf.CancelledError):
            task.result(20)
        assert all(isinstance(each.exception(20), ph.TaskCanceled) for each in waiting)
        wait_for(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids), "nothing of it lives")
        assert session.call(square, 4).result(20) == 16


def _forks(log: str) -> None:
    for new in (True, False):
        child = subprocess.Popen(["sleep", "6002"], start_new_session=new)
        append(log, child.pid)
    time.sleep(60)


def test_executor_and_waiting(study: Study) -> None:
    with study.session() as session:
        with ph.PilotExecutor(session) as pool:
            futures = [pool.submit(square, x) for x in range(20)]
            assert {future.result() for future in ph.as_completed(futures)} == {x * x for x in range(20)}
            assert list(pool.map(square, range(20))) == [x * x for x in range(20)]
            done, pending = cf.wait(futures)
            assert (len(done), len(pending)) == (20, 0)
            never = pool.submit(time.sleep, 60)
            with pytest.raises(TimeoutError):
                never.result(0.05)
            with pytest.raises(TimeoutError):
                list(pool.map(time.sleep, [60], timeout=0.1))
            never.cancel()
        with pytest.raises(RuntimeError):
            pool.submit(square, 1)
        slow, fast = session.call(time.sleep, 60), session.call(square, 6)
        first, rest = ph.wait([slow, fast], return_when=ph.FIRST_COMPLETED)
        assert (first, rest) == ({fast}, {slow})
        slow.cancel()
        called = threading.Event()
        session.call(square, 1).add_done_callback(lambda _: called.set())
        assert called.wait(10)

        async def together() -> list[int]:
            return await asyncio.gather(*(session.call(square, x) for x in range(10)))

        assert asyncio.run(together()) == [x * x for x in range(10)]


@pytest.mark.one_node("a rank of forty cores")
def test_two_pilots_and_more_cores_than_there_are(study: Study) -> None:
    with study.session(cores=0) as session:
        early = session.call(square, 3)
        assert session.explain(early)
        with pytest.raises(TimeoutError):
            early.result(0.2)
        small = study.pilot(session, cores=1, name="small")
        big = study.pilot(session, cores=24, name="big")
        assert early.result(20) == 9
        wide = session.submit(ph.TaskDescription(executable="true", cores_per_rank=20))
        assert wide.result(20).exit_code == 0
        many = [session.call(time.sleep, 0.2) for _ in range(20)]
        for each in many:
            each.result(20)
        bound = session.options(pilot="small").call(square, 7)
        assert bound.result(20) == 49
        small.wait_ready(20)
        small.cancel()
        later = session.map(square, range(100))
        assert later.results(30) == [x * x for x in range(100)]
        big.cancel()


def test_all_pilots_of_a_site_serve_what_asks_for_it(study: Study) -> None:
    with study.session(cores=0) as session:
        there = [study.pilot(session, cores=1, site="there") for _ in range(2)]
        elsewhere = study.pilot(session, cores=1, site="elsewhere")
        for pilot in (*there, elsewhere):
            pilot.wait_ready(20)
        ran_on = session.options(site="there").map(_pilot_of_mine, range(12)).results(40)
        assert set(ran_on) == {pilot.number for pilot in there}
        with pytest.raises(ph.DescriptionError, match="nowhere"):
            session.options(site="nowhere").call(square, 2)
        last = session.options(site="elsewhere").call(time.sleep, 30)
        elsewhere.cancel()
        with pytest.raises(ph.TaskLost, match="site 'elsewhere'"):
            last.result(20)


def _pilot_of_mine(_index: int) -> int:
    time.sleep(0.2)
    return int(os.environ["PILOT_HITL_PILOT"])


@pytest.mark.one_node("alternatives of one GPU and two cores")
def test_one_gpu_or_two_cores(study: Study) -> None:
    with study.session(cores=0) as session:
        study.pilot(session, cores=3, gpus=1)
        either = ph.TaskDescription(
            executable="sh",
            arguments=["-c", "echo $OMP_NUM_THREADS:$CUDA_VISIBLE_DEVICES; sleep 1"],
            gpus_per_rank=1,
            alternatives=[ph.Resources(cores=2)],
        )
        got = [session.submit(either).result(30).stdout.strip()]
        pair = [session.submit(either) for _ in range(2)]
        got += [task.result(30).stdout.strip() for task in pair]
        assert sorted(got) == ["1:0", "1:0", "2:"]
        neither = session.options(gpus=2, alternatives=[ph.Resources(cores=4)])
        with pytest.raises(ph.CannotFit, match="or 1 x 4 cores"):
            neither.call(square, 2)
        assert session.options(gpus=2, alternatives=[ph.Resources(cores=3)]).call(square, 3).result(30) == 9


def test_a_pilot_that_is_canceled_gives_its_work_back(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(cores=2) as session:
        tasks = [session.call(_slow, log, index) for index in range(8)]
        wait_for(lambda: study.lines("log"), "something runs")
        session._client.pilots[0].cancel()
        study.pilot(session, cores=2)
        assert [task.result(40) for task in tasks] == list(range(8))


def _slow(log: str, index: int) -> int:
    append(log, index)
    time.sleep(0.4)
    return index


def test_twenty_thousand_calls(study: Study) -> None:
    with study.session() as session:
        calls = [session.call(square, x) for x in range(20_000)]
        assert [call.result() for call in calls] == [x * x for x in range(20_000)]


@pytest.mark.long
def test_a_hundred_thousand_by_map(study: Study) -> None:
    with study.session() as session:
        assert sum(session.map(square, range(100_000)).results()) == sum(x * x for x in range(100_000))


def test_a_large_map_without_processes_in_little_memory(study: Study) -> None:
    count = int(os.environ.get("PILOT_HITL_TEST_MAP", "200000"))
    out = study.run(
        """
        def nothing(x): return x
        with ph.Session("million") as session:
            session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2, noop=True))
            values = session.map(nothing, range(int(sys.argv[1]))).results()
            assert values == [None] * int(sys.argv[1])
        # Not getrusage: its maximum is inherited from the process that started this one.
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(int(peak.split()[1]) // 1024)
        """,
        str(count),
        timeout=110,
    )
    assert int(out) < 150 + 850 * count / 1_000_000
