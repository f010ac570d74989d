"""A function worker is the Python process that libraries expect."""

from __future__ import annotations

import functools
import gc
import json
import locale
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, wait_for

FACTS = """
import asyncio, builtins, gc, json, locale, multiprocessing, os, resource, signal, sys, threading
def facts():
    signals = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
    open_files = {number: os.readlink(f"/proc/self/fd/{number}") for number in map(int, os.listdir("/proc/self/fd"))
                  if os.path.exists(f"/proc/self/fd/{number}") and os.get_inheritable(number)}
    umask = os.umask(0)
    os.umask(umask)
    ours = ("PILOT_HITL_", "PWD", "OLDPWD", "OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
    return {
        "flags": str(sys.flags), "xoptions": sys._xoptions, "warnings": sys.warnoptions,
        "signals": {number: str(signal.getsignal(number)) for number in signals},
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "builtins": sorted(vars(builtins)), "site": "site" in sys.modules,
        "path": [entry for entry in sys.path if entry],
        "inheritable": sorted(open_files), "stdin": os.path.realpath("/proc/self/fd/0"),
        "environment": {name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "umask": umask, "limits": {number: resource.getrlimit(number) for number in range(10)},
        "streams": [(stream.encoding, stream.errors, stream.write_through, stream.mode)
                    for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "originals": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
        "locale": locale.setlocale(locale.LC_ALL), "filesystem": sys.getfilesystemencoding(),
        "stack": threading.stack_size(), "thread": threading.current_thread().name,
        "main": threading.current_thread() is threading.main_thread(), "threads": threading.active_count(),
        "process": multiprocessing.current_process().name, "start": multiprocessing.get_start_method(),
        "policy": type(asyncio.get_event_loop_policy()).__name__, "gc": (gc.isenabled(), gc.get_threshold()),
        "recursion": sys.getrecursionlimit(), "executable": sys.executable, "prefix": sys.prefix,
        "seed": hash("a") if os.environ.get("PYTHONHASHSEED", "random") != "random" else None,
        "trace": (sys.gettrace() is None, sys.getprofile() is None), "interval": sys.getswitchinterval(),
    }
"""


@pytest.mark.only_local("limits and environment are those of a process that is started here; a job has its own")
@pytest.mark.parametrize(
    ("flags", "variables"),
    [([], {}), (["-O", "-X", "dev", "-W", "error::BytesWarning"], {"PYTHONHASHSEED": "3"}), (["-I"], {})],
    ids=["plain", "flags", "isolated"],
)
def test_a_worker_is_like_a_fresh_interpreter(study: Study, flags: list[str], variables: dict[str, str]) -> None:
    script = study.folder / "compare.py"
    where = [str(entry) for entry in sys.path if entry]
    script.write_text(
        f"import sys\nsys.path += [entry for entry in {where!r} if entry not in sys.path]\nimport subprocess\n"
        f"SOURCE = {FACTS!r}\n{FACTS}\nimport pilot_hitl as ph\n"
        "def text(): return json.dumps(facts())\n"
        "with ph.Session('facts', fresh=True) as session:\n"
        f"    session.submit_pilot(ph.PilotDescription(resource={study.backend!r}, cores=1, runtime=10))\n"
        "    there = session.call(text).result(60)\n"
        "flags = subprocess._args_from_interpreter_flags()\n"
        "code = f'import sys; sys.path += {sys.path!r}\\n' + SOURCE + 'print(json.dumps(facts()))'\n"
        "here = subprocess.run([sys.executable, *flags, '-c', code], stdin=subprocess.DEVNULL, text=True,\n"
        "                      capture_output=True, check=True).stdout\n"
        "print(json.dumps([json.loads(here), json.loads(there)]))\n"
    )
    done = subprocess.run(
        [sys.executable, *flags, str(script)],
        env={**os.environ, **study.environment, **variables},
        cwd=study.folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    fresh, worker = json.loads(done.stdout.splitlines()[-1])
    own = worker.pop("path")
    assert [entry for entry in own if entry in set(fresh["path"])] == list(
        dict.fromkeys([str(study.folder), *fresh["path"]] if str(study.folder) in fresh["path"] else fresh["path"])
    )
    assert set(own) == set(fresh.pop("path"))
    assert worker == fresh


# --- signals ----------------------------------------------------------------------------------------------------------


def _feeds_a_filter() -> str:
    subprocess.run(["true"], input=b"x" * 1_000_000, check=False)
    return "lived"


def _writes_to_nobody() -> str:
    ours, theirs = socket.socketpair()
    theirs.close()
    try:
        ours.send(b"x")
    except BrokenPipeError:
        return "lived"
    finally:
        ours.close()
    return "nothing was raised"


def _writes_too_much() -> str:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(b"x" * 1000)
            file.write(b"x" * 1000)
    except OSError:
        return "lived"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    return "nothing was raised"


def _interrupts_itself() -> str:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    except KeyboardInterrupt:
        return "lived"
    return "nothing was raised"


def _ends_a_child(number: int) -> str:
    with subprocess.Popen(["sleep", "20"]) as child:
        child.send_signal(number)
        try:
            return "lived" if child.wait(10) == -number else "another end"
        except subprocess.TimeoutExpired:
            child.kill()
            return "the child ignores it"


def test_signals_are_those_of_python(study: Study) -> None:
    with study.session() as session:
        pids = {session.call(os.getpid).result(30) for _ in range(5)}
        for function in (_feeds_a_filter, _writes_to_nobody, _writes_too_much, _interrupts_itself):
            assert session.call(function).result(30) == "lived", function.__name__
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGQUIT, signal.SIGHUP):
            assert session.call(_ends_a_child, number).result(30) == "lived", number
        assert pids & {session.call(os.getpid).result(30) for _ in range(5)}


def test_tasks_of_a_script_in_the_background_can_be_interrupted(study: Study) -> None:
    script = """
        import signal, subprocess
        def ends(number):
            child = subprocess.Popen(["sleep", "20"])
            child.send_signal(number)
            try:
                return child.wait(5) == -number
            except subprocess.TimeoutExpired:
                child.kill()
                return False
        kill = "import os, signal, sys; os.kill(os.getpid(), int(sys.argv[1]))"
        with ph.Session("background", fresh=True) as s:
            s.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=1, runtime=10))
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
                print(s.call(ends, number).result(30))
                done = s.submit(ph.TaskDescription(executable="/bin/sh", arguments=["-c", f"kill -{number:d} $$; :"]))
                print(f"signal {number:d} " in str(done.exception(30)))
    """
    # As `script &` in a shell without job control does, and nohup.
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    }
    try:
        process = study.start(script)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    out, err = process.communicate(timeout=60)
    assert out.split() == ["True"] * 6, out + err


# --- environments -----------------------------------------------------------------------------------------------------

REPORT = """
import json, os, sys, time
def report():
    import locale
    locale.setlocale(locale.LC_ALL, "")
    try:
        import only_here
        found = only_here.X
    except ImportError:
        found = None
    return json.dumps({
        "hash": hash("a"), "zone": time.strftime("%Z", time.localtime(0)), "names": time.tzname,
        "module": found, "utf8": sys.flags.utf8_mode, "optimize": sys.flags.optimize, "dev": sys.flags.dev_mode,
        "encoding": (sys.stdout.encoding, sys.stdout.errors), "through": sys.stdout.write_through,
        "locale": locale.setlocale(locale.LC_ALL), "threads": os.environ.get("OMP_NUM_THREADS"),
        "given": os.environ.get("GIVEN"), "user": os.path.expanduser("~"), "recursion": sys.getrecursionlimit(),
        "warnings": sys.warnoptions, "bytecode": sys.dont_write_bytecode, "digits": sys.get_int_max_str_digits(),
    })
"""
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "nothing": {"PYTHONHASHSEED": "1"},
    "seed": {"PYTHONHASHSEED": "7"},
    "path": {"PYTHONHASHSEED": "1", "PYTHONPATH": "{folder}/extra"},
    "zone": {"PYTHONHASHSEED": "1", "TZ": "JST-9"},
    "utf8": {"PYTHONHASHSEED": "1", "PYTHONUTF8": "1"},
    "streams": {"PYTHONHASHSEED": "1", "PYTHONIOENCODING": "latin-1:replace", "PYTHONUNBUFFERED": "1"},
    "locale": {"PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    "flags": {"PYTHONHASHSEED": "1", "PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "ignore", "PYTHONDEVMODE": "1"},
    "others": {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "3", "GIVEN": "x=y", "HOME": "/nowhere"},
    "limits": {"PYTHONHASHSEED": "1", "PYTHONINTMAXSTRDIGITS": "1000", "PYTHONDONTWRITEBYTECODE": "1"},
}


def test_an_environment_means_the_same_for_calls_and_programs(study: Study) -> None:
    script = f"""
import json
{REPORT}
SOURCE = {REPORT!r}
os.makedirs(os.path.join(FOLDER, "extra"), exist_ok=True)
with open(os.path.join(FOLDER, "extra", "only_here.py"), "w") as file:
    file.write("X = 'found'")
with ph.Session("environments", fresh=True) as s:
    s.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2, runtime=10))
    for name, environment in {ENVIRONMENTS!r}.items():
        environment = {{key: value.format(folder=FOLDER) for key, value in environment.items()}}
        call = s.options(environment=environment).call(report)
        program = s.submit(ph.TaskDescription(
            executable=sys.executable, arguments=["-W", "error", "-c", SOURCE + "print(report())"],
            environment=environment,
        ))
        print(json.dumps([name, json.loads(call.result(60)), json.loads(program.result(60).stdout)]))
"""
    out = study.run(script, timeout=110)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [name for name, _, _ in lines] == list(ENVIRONMENTS)
    for name, call, program in lines:
        # Programs have as many threads as cores only where they say so themselves.
        assert call == program, name
    assert {name: call["module"] for name, call, _ in lines}["path"] == "found"


def test_a_loader_path_holds_in_calls(study: Study) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is among what the tests need"
    source = study.folder / "only.c"
    source.write_text("int answer(void) { return 42; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(study.folder / "libonly.so"), str(source)], check=True)
    with study.session() as session:
        options = session.options(environment={"LD_LIBRARY_PATH": str(study.folder)})
        assert options.call(_answer).result(30) == 42
        with pytest.raises(OSError, match="libonly"):
            session.call(_answer).result(30)


def _answer() -> int:
    import ctypes

    answer: int = ctypes.CDLL("libonly.so").answer()
    return answer


def test_a_broken_environment_is_named(study: Study) -> None:
    with study.session() as session:
        with pytest.raises(ph.WorkerDied, match=r"did not start(.|\n)*Python"):
            session.options(environment={"PYTHONHOME": "/nowhere"}).call(os.getpid).result(60)
        assert session.call(os.getpid).result(30)


def _given() -> str:
    return os.environ["GIVEN"]


@pytest.mark.long
def test_many_environments_leave_few_processes(study: Study) -> None:
    count = 24
    with study.session() as session:
        calls = [session.options(environment={"GIVEN": str(number)}).call(_given) for number in range(count)]
        assert [call.result(60) for call in calls] == [str(number) for number in range(count)]
        root = psutil.Process(next(each["pid"] for each in study.processes() if each["kind"] == "spawner"))
        wait_for(lambda: len(root.children(recursive=True)) < 16, "the servers of old environments end")


# --- forks ------------------------------------------------------------------------------------------------------------


def _forks(way: str, number: int) -> list[Any]:
    pid = os.fork()
    if pid == 0:
        if way == "exit":
            sys.exit(7)
        if way == "raise":
            raise ValueError("the child failed")
        return ["child", number]
    return ["parent", number, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]


def _square(x: int) -> int:
    return x * x


def test_a_forked_child_is_no_worker(study: Study) -> None:
    with study.session() as session:
        for way, code in (("exit", 7), ("return", 0), ("raise", 1)):
            forking = [session.call(_forks, way, number) for number in range(20)]
            squares = session.map(_square, range(200))
            assert [each.result(30) for each in forking] == [["parent", number, code] for number in range(20)], way
            assert squares.results(30) == [number**2 for number in range(200)]


def _leaves_a_child() -> int:
    pid = os.fork()
    if pid == 0:
        time.sleep(1000)
    return pid


def _dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_that_lives_on_hides_no_death(study: Study) -> None:
    with study.session(cores=1) as session:
        pid = session.call(_leaves_a_child).result(30)
        with pytest.raises(ph.WorkerDied):
            session.call(_dies).result(30)
        wait_for(lambda: not psutil.pid_exists(pid), "the child ends with its worker")


# --- __main__, pools, libraries ---------------------------------------------------------------------------------------


def test_pools_inside_calls_take_functions_of_the_script(study: Study) -> None:
    out = study.run(
        """
        import concurrent.futures as cf, multiprocessing, pickle
        print("the script runs")
        table = None
        class Wrong(Exception):
            pass
        class Counter:
            def __init__(self): self.count = 0
            def add(self, x): self.count += x; return self
        def init(word):
            global table
            table = word
        def helper(x):
            if x < 0:
                raise Wrong(x)
            return x * x, table, __name__
        def put(queue):
            queue.put(Counter().add(5))
        def pools(kind, counter):
            context = multiprocessing.get_context(kind)
            found = []
            with context.Pool(2, init, ("pool",)) as pool:
                found += pool.map(helper, [1, 2])
            with cf.ProcessPoolExecutor(2, mp_context=context, initializer=init, initargs=("executor",)) as pool:
                found += pool.map(helper, [3])
                try:
                    pool.submit(helper, -1).result()
                except Wrong as error:
                    found.append(error.args)
                found.append(pool.submit(counter.add, 3).result().count)
            queue = context.Queue()
            process = context.Process(target=put, args=(queue,))
            process.start()
            found.append(queue.get(timeout=30).count)
            process.join()
            found.append(type(pickle.loads(pickle.dumps(counter))) is type(counter))
            return found
        with ph.Session("pools", fresh=True) as s:
            s.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2, runtime=10))
            for kind in ("fork", "spawn", "forkserver"):
                print(s.call(pools, kind, Counter()).result(100))
        """,
        timeout=110,
    )
    lines = out.splitlines()
    assert lines[0] == "the script runs"
    assert lines.count("the script runs") == 1
    main, fresh = "__main__", "__main__"
    for line in lines[1:]:
        expected = [(1, "pool", main), (4, "pool", main), (9, "executor", fresh), (-1,), 3, 5, True]
        assert line == str(expected)


def _children_of_this_python() -> list[str]:
    code = "import sys, msgspec; print(sys.flags.isolated, sys.flags.no_site, callable(exit))"
    from multiprocessing import util

    flags: list[str] = vars(util)["_args_from_interpreter_flags"]()
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_other_interpreters_find_what_is_installed(study: Study) -> None:
    with study.session() as session:
        assert session.call(_children_of_this_python).result(30) == ["0", "0", "True"]


def _cores() -> tuple[int, str, str]:
    return len(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"], os.environ["LOKY_MAX_CPU_COUNT"]


@pytest.mark.one_node("a call of two cores")
def test_a_call_sees_its_own_cores(study: Study) -> None:
    with study.session() as session:
        for cores in (1, 2):
            bound, threads, processes = session.options(cores=cores).call(_cores).result(30)
            assert (threads, processes) == (str(cores), str(cores))
            assert bound == cores
    with study.session("virtual", cores=64) as session:
        assert session.options(cores=5).call(_cores).result(30)[1:] == ("5", "5")


# --- state ------------------------------------------------------------------------------------------------------------


class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, x: int) -> int:
        self.count += x
        return self.count

    def __call__(self, x: int) -> int:
        return self.add(x)


def _closure() -> Callable[[int], int]:
    seen: list[int] = []

    def count(x: int) -> int:
        seen.append(x)
        return len(seen)

    return count


def _rebinding() -> Callable[[int], int]:
    count = 0

    def add(x: int) -> int:
        nonlocal count
        count += x
        return count

    return add


def _with_default() -> Callable[[int], int]:
    def count(x: int, seen: list[int]) -> int:
        seen.append(x)
        return len(seen)

    made: Any = count
    made.__defaults__ = ([],)
    return cast("Callable[[int], int]", made)


def _adds(counter: _Counter, x: int) -> int:
    return counter.add(x)


def _wrapped() -> Callable[[int], int]:
    inner = _Counter().add

    @functools.wraps(inner)
    def outer(x: int) -> int:
        return inner(x)

    return outer


def test_no_call_sees_what_another_did_to_its_callable(study: Study) -> None:
    functions: dict[str, Callable[[int], int]] = {
        "method": _Counter().add,
        "callable": _Counter(),
        "partial": functools.partial(_adds, _Counter()),
        "partial of a method": functools.partial(_Counter().add),
        "closure": _closure(),
        "nonlocal": _rebinding(),
        "default": _with_default(),
        "wrapped": _wrapped(),
    }
    with study.session(cores=1) as session:
        for name, function in functions.items():
            assert [session.call(function, 1).result(30) for _ in range(3)] == [1, 1, 1], name
            assert session.map(function, [1] * 20).results(30) == [1] * 20, name


def test_caches_and_globals_of_the_script_stay(study: Study) -> None:
    out = study.run(
        """
        import functools
        loads = 0
        @functools.cache
        def load():
            global loads
            loads += 1
            return os.getpid()
        def direct(x): return load() and loads
        def closure(state): return lambda x: load() and loads + len(state) - len(state)
        class Model:
            def run(self, x): return load() and loads
        def in_a_global(x):
            global count
            count = globals().get("count", 0) + 1
            return count
        with ph.Session("caches", fresh=True) as s:
            s.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=1, runtime=10))
            for function in (direct, closure([1]), functools.partial(direct), Model().run, in_a_global):
                print([s.call(function, 1).result(30) for _ in range(3)])
            print(len({s.call(load).result(30) for _ in range(3)}))
        """
    )
    assert out.splitlines() == ["[1, 1, 1]"] * 4 + ["[1, 2, 3]", "1"]


# --- what a call leaves behind ----------------------------------------------------------------------------------------


def _environment(_folder: str) -> None:
    os.environ["LEFT"] = "1"
    del os.environ["HOME"]
    os.environ["PATH"] = "/nowhere"


def _another_environment(_folder: str) -> None:
    vars(os)["environ"] = {"A": "b"}


def _zone(_folder: str) -> None:
    os.environ["TZ"] = "JST-9"
    time.tzset()


def _umask(_folder: str) -> None:
    os.umask(0o777)


def _signals(_folder: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])


def _timers(_folder: str) -> None:
    signal.alarm(1)
    signal.setitimer(signal.ITIMER_VIRTUAL, 50)


def _streams(_folder: str) -> None:
    sys.stdout.close()
    vars(sys)["stderr"] = None
    sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))


def _detached(_folder: str) -> None:
    cast("Any", sys.stdout).detach()


def _reconfigured(_folder: str) -> None:
    cast("Any", sys.stdout).reconfigure(encoding="ascii", line_buffering=True)


def _descriptors(_folder: str) -> None:
    for number in range(3):
        os.close(number)


def _redirected(folder: str) -> None:
    fd = os.open(f"{folder}/out", os.O_WRONLY | os.O_CREAT)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stdout.write("said\n")


def _soft_limits(_folder: str) -> None:
    for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(number, (0, resource.getrlimit(number)[1]))


def _hard_limits(_folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))


def _affinity(_folder: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _niceness(_folder: str) -> None:
    os.nice(5)


def _path(_folder: str) -> None:
    sys.path.insert(0, "/left")
    sys.path = [*sys.path, "/right"]
    sys.argv = ["left"]


def _locale(_folder: str) -> None:
    locale.setlocale(locale.LC_ALL, "C")


def _interpreter(_folder: str) -> None:
    sys.settrace(lambda *_: None)
    sys.setprofile(lambda *_: None)
    gc.disable()
    socket.setdefaulttimeout(0.001)


def _folder_lost(_folder: str) -> None:
    gone = tempfile.mkdtemp()
    os.chdir(gone)
    Path(gone).rmdir()


CHANGES: tuple[Callable[[str], None], ...] = (
    _environment, _another_environment, _zone, _umask, _signals, _timers, _streams, _detached, _reconfigured,
    _descriptors, _redirected, _soft_limits, _affinity, _niceness, _path, _locale, _interpreter, _folder_lost,
    _hard_limits,
)  # fmt: skip


def _looks(stream: Any) -> tuple[Any, ...]:
    return stream.name, stream.encoding, stream.errors, stream.closed, stream.line_buffering


def _state() -> dict[str, Any]:
    umask = os.umask(0)
    os.umask(umask)
    sys.stdout.write("a line\n")
    sys.stdout.flush()
    subprocess.run(["true"], check=True)
    numbers = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
    return {
        "environment": {name: value for name, value in os.environ.items() if name != "PILOT_HITL_TOKEN"},
        "zone": time.tzname,
        "umask": umask,
        "signals": {number: signal.getsignal(number) for number in numbers},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "timers": [signal.getitimer(number) for number in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL)],
        "streams": [_looks(each) for each in (sys.stdin, sys.stdout, sys.stderr)],
        "descriptors": [(os.fstat(number).st_dev, os.fstat(number).st_mode) for number in range(3)],
        "limits": [resource.getrlimit(number) for number in range(10)],
        "affinity": os.sched_getaffinity(0),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "path": sys.path,
        "argv": sys.argv,
        "locale": locale.setlocale(locale.LC_ALL),
        "interpreter": (sys.gettrace(), sys.getprofile(), gc.isenabled(), socket.getdefaulttimeout()),
        "folder": os.getcwd(),
    }


@pytest.mark.one_node("a call of two cores")
def test_what_a_call_changes_is_put_back(study: Study) -> None:
    with study.session() as session:
        # Both cores, so that the same place, and where it may be the same worker, is used each time.
        one = session.options(cores=2)
        before = one.call(_state).result(30)
        for how in CHANGES:
            one.call(how, str(study.folder)).result(30)
            after = one.call(_state).result(30)
            assert {key: value for key, value in after.items() if value != before[key]} == {}, how
            # A large result needs a file of the worker's own.
            assert len(one.call(bytes, 200_000).result(30)) == 200_000, how
    assert (study.folder / "out").read_text() == "said\n"


def test_what_the_import_of_a_module_does_stays(study: Study) -> None:
    (study.folder / "vendored").mkdir()
    (study.folder / "vendored" / "inner.py").write_text("X = 3\n")
    (study.folder / "sets_up.py").write_text(
        "import os, sys\nos.environ['SET_BY_IMPORT'] = 'yes'\n"
        f"sys.path.append({str(study.folder / 'vendored')!r})\n"
        "def late():\n    import inner\n    return os.environ['SET_BY_IMPORT'], inner.X\n"
    )
    out = study.run(
        """
        def lazily(go):
            import sets_up
            os.environ["SET_BY_CALL"] = "yes"
            return sets_up.late() if go else None
        def left():
            return "SET_BY_CALL" in os.environ
        with ph.Session("imports", fresh=True) as s:
            s.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=1, runtime=10))
            print(s.call(lazily, False).result(30), s.call(left).result(30), s.call(lazily, True).result(30))
        """
    )
    assert out.strip() == "None False ('yes', 3)"
