"""An error means the same where it arrives."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import copy
import linecache
import os
import pickle
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, append, further, wait_for


class Private(BaseException):
    """Of the user, and no Exception."""


Raise = tuple[type[BaseException], tuple[Any, ...]]
CONTROL_FLOW: list[tuple[Raise, int | None, str]] = [
    ((SystemExit, (2,)), 2, "called sys.exit(2)"),
    ((SystemExit, (0,)), 0, "called sys.exit(0)"),
    ((SystemExit, ()), 0, "called sys.exit()"),
    ((SystemExit, ("no mesh",)), 1, "called sys.exit('no mesh')"),
    ((KeyboardInterrupt, ()), None, "raised KeyboardInterrupt"),
    ((GeneratorExit, ("x",)), None, "raised GeneratorExit: x"),
    ((asyncio.CancelledError, ()), None, "raised asyncio.CancelledError"),
    ((concurrent.futures.CancelledError, ()), None, "raised concurrent.futures.CancelledError"),
    ((StopIteration, (5,)), None, "raised StopIteration: 5"),
    ((StopAsyncIteration, ()), None, "raised StopAsyncIteration"),
    ((Private, ("mine",)), None, "raised Private: mine"),
]
PATIENCE = 30.0


def leave(what: Raise) -> None:
    kind, arguments = what
    raise kind(*arguments)


def first(x: Any, *_more: Any) -> Any:
    return x


def nested(what: Raise) -> Any:
    return ph.current_session().call(leave, what).result(PATIENCE)


class Leaves:
    """A handler."""

    def __call__(self, what: Raise) -> None:
        leave(what)


def _raised(get: Callable[[], object]) -> BaseException:
    """What comes out of ``get``: nothing that is no error of a task may."""
    try:
        value = get()
    except ph.PilotHitlError as error:
        return error
    raise AssertionError(f"no error but {value!r}")


def _awaited(future: Any) -> object:
    async def wait() -> object:
        return await asyncio.wait_for(future(), PATIENCE)

    return asyncio.run(wait())


def _check(error: BaseException | None, what: Raise, code: int | None, words: str) -> None:
    assert isinstance(error, ph.TaskFailed), repr(error)
    assert not isinstance(error, concurrent.futures.CancelledError)
    assert error.exit_code == code
    assert words in str(error)
    cause = error.__cause__
    assert type(cause) is what[0]
    assert cause.args == what[1]
    assert isinstance(error, RuntimeError) is issubclass(what[0], StopIteration | StopAsyncIteration)


@pytest.mark.parametrize(("what", "code", "words"), further(4, CONTROL_FLOW), ids=lambda value: str(value)[:40])
def test_control_flow_is_a_failure_by_every_way_out(study: Study, what: Raise, code: int | None, words: str) -> None:
    async def gathered() -> list[Any]:
        return list(await asyncio.gather(session.call(leave, what), session.call(abs, -1), return_exceptions=True))

    async def in_executor() -> object:
        return await asyncio.get_running_loop().run_in_executor(ph.PilotExecutor(session), leave, what)

    with study.session() as session:
        future = session.call(leave, what)
        mapped = session.map(leave, [what])
        errors = [
            _raised(lambda: future.result(PATIENCE)),
            future.exception(),
            _raised(lambda: _awaited(lambda: _same(future))),
            _raised(lambda: _awaited(lambda: _same(session.call(leave, what)))),
            _raised(lambda: _awaited(in_executor)),
            _raised(lambda: mapped.results(PATIENCE)),
            mapped[0].exception(),
            _raised(lambda: list(ph.PilotExecutor(session).map(leave, [what]))),
            *(each.exception() for each in ph.as_completed([session.call(leave, what)], PATIENCE)),
            *(each.exception() for each in ph.wait([session.call(leave, what)], PATIENCE, ph.FIRST_EXCEPTION)[0]),
            _raised(lambda: session.call(nested, what).result(PATIENCE)),
        ]
        for error in errors:
            _check(error, what, code, words)
            assert not future.cancelled()
        error, value = asyncio.run(gathered())
        _check(error, what, code, words)
        assert value == 1
        with pytest.raises(ph.DependencyFailed) as caught:
            session.call(first, session.call(first, future)).result(PATIENCE)
        _check(caught.value.__cause__, what, code, words)
        for made in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            _check(made, what, code, words)
            assert str(made) == str(error)
        assert session.call(first, 1).result(PATIENCE) == 1


async def _same(future: Any) -> object:
    return await future


@pytest.mark.parametrize(("what", "code", "words"), further(1, CONTROL_FLOW[::3]), ids=lambda value: str(value)[:40])
def test_control_flow_in_branches_and_bodies(study: Study, what: Raise, code: int | None, words: str) -> None:
    with study.session() as session:
        gate = session.checkpoint("gate", question="?", choices=["a", "b"])
        a, b = gate.branch("a"), gate.branch("b")
        task, other = a.call(leave, what), b.call(first, 1)
        selected = gate.select({a: task, b: other})
        many = gate.select({a: a.map(leave, [what]), b: b.map(first, [1])})

        @gate.on("a")
        def body(_branch: ph.Branch) -> None:
            leave(what)

        @gate.on("a")
        async def coroutine(_branch: ph.Branch) -> None:
            if issubclass(what[0], StopIteration):
                raise StopAsyncIteration(*what[1])  # Python itself makes a RuntimeError of the other one
            leave(what)

        @gate.on("a")
        def elsewhere(_branch: ph.Branch) -> concurrent.futures.Future[None]:
            done: concurrent.futures.Future[None] = concurrent.futures.Future()
            done.set_exception(what[0](*what[1]))
            return done

        study.tool("inbox", "answer", "gate", "a")
        for future in (selected, body, elsewhere):
            _check(_raised(partial(future.result, PATIENCE)), what, code, words)
            _check(future.exception(PATIENCE), what, code, words)
            _check(_raised(partial(_awaited, partial(_same, future))), what, code, words)
        assert isinstance(_raised(lambda: coroutine.result(PATIENCE)), ph.TaskFailed)
        _check(_raised(lambda: many.results(PATIENCE)), what, code, words)
        with pytest.raises(ph.DependencyFailed) as caught:
            a.call(first, task).result(PATIENCE)
        _check(caught.value.__cause__, what, code, words)
        assert isinstance(other.exception(PATIENCE), ph.Discarded)


def test_control_flow_in_a_handler(study: Study) -> None:
    with study.session() as session:
        service = session.start_service(ph.ServiceDescription(name="leaves", handler=Leaves))
        for what, code, words in CONTROL_FLOW:
            for get in (
                lambda what=what: service.request(what).result(PATIENCE),
                lambda what=what: _awaited(lambda: _same(service.request(what))),
            ):
                error = _raised(get)
                assert isinstance(error, ph.HandlerFailed), repr(error)
                assert error.exit_code == code
                assert f"the handler of service 'leaves' {words}" in str(error)
                assert type(error.__cause__) is what[0]
                assert "test_errors.py" in error.detail
        with pytest.raises(ValueError, match="still there"):
            service.request((ValueError, ("still there",))).result(PATIENCE)


@pytest.mark.requires("openmpi", "mpi4py")
@pytest.mark.one_node("a call of two ranks")
def test_control_flow_of_ranks(study: Study) -> None:
    with study.session() as session:
        error = session.options(ranks=2).call(leave, (SystemExit, (4,))).exception(60)
        _check(error, (SystemExit, (4,)), 4, "leave called sys.exit(4)")
        assert session.options(ranks=2).call(first, 1).result(60) == 1


def test_a_script_goes_on(study: Study) -> None:
    said = study.run("""
    def analyse(i):
        if i == 3:
            sys.exit(0)
        return i

    def interrupted():
        raise KeyboardInterrupt

    with ph.Session("study") as session:
        session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2))
        for get in (session.call(interrupted).result, session.map(analyse, range(5)).results):
            try:
                get()
            except Exception as error:
                print(type(error).__name__, str(error).partition(" [")[0])
        print("the rest of the study")
    """)
    assert said.splitlines() == [
        "TaskFailed interrupted raised KeyboardInterrupt",
        "TaskFailed analyse called sys.exit(0)",
        "the rest of the study",
    ]


def test_a_callback_that_leaves_is_nobody_elses_end(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []
    with study.session() as session:
        slow = session.call(_after, str(study.folder / "go"))
        slow.add_done_callback(lambda _future: sys.exit(3))
        slow.add_done_callback(lambda _future: called.append("second"))
        append(str(study.folder / "go"), "go")
        assert slow.result(PATIENCE) == "went"
        wait_for(lambda: called, "the second callback")
        assert _awaited(lambda: _same(session.call(first, 7))) == 7
    assert "a callback raised SystemExit" in caplog.text


def _after(path: str) -> str:
    wait_for(lambda: os.path.exists(path), "the file")
    return "went"


# --- inherited failures ---------------------------------------------------------------------------------------------


def empty() -> None:
    raise ValueError("the mesh is empty")


def fails_from(x: int, least: int) -> int:
    if x >= least:
        raise ValueError(f"no convergence at {x}")
    return x


def _is_short(error: BaseException) -> bool:
    return len(str(error)) < 2000 and len("".join(traceback.format_exception(error))) < 10_000


def test_the_end_of_a_chain_names_the_first_that_failed(study: Study) -> None:
    with study.session() as session:
        root = session.call(empty)
        future = root
        links = []
        for _ in range(2000):
            future = session.call(first, future)
            links.append(future)
        asked_early = links[1500]
        late = [session.call(first, future), session.map(first, links[-3:])[0], session.call(first, links[0])]
        ph.wait(late, PATIENCE)
        late.append(session.submit(ph.TaskDescription(executable="true"), after=[future]))
        for each in (asked_early, future, links[0], *late):
            error = each.exception(PATIENCE)
            assert isinstance(error, ph.DependencyFailed)
            assert f"it depends on empty ({root.task}), which failed: ValueError: the mesh is empty" in str(error)
            assert (error.root, error.cause) == (root.task, "DEPENDENCY")
            assert error.__cause__ is root.exception()
            assert _is_short(error)
        shown = study.tool("task", "show", "-s", "study", future.task)
        assert "the mesh is empty" in " ".join(shown.split())


@pytest.mark.long
def test_ten_thousand_tasks_after_one(study: Study) -> None:
    with study.session() as session:
        chains = []
        for chain in range(100):
            future = session.call(fails_from, 0, 0 if chain == 37 else 9)
            for _ in range(99):
                future = session.call(fails_from, future, 9)
            chains.append(future)
        ph.wait(chains, 60)
        failed = [future for future in chains if future.exception(PATIENCE) is not None]
        assert failed == [chains[37]]
        assert "no convergence at 0" in str(chains[37].exception())
        assert _is_short(chains[37].exception() or ValueError())


def test_several_that_failed(study: Study) -> None:
    with study.session() as session:
        bad = session.map(fails_from, range(6), [3] * 6)
        bad.wait(PATIENCE)
        error = session.call(sum, bad).exception(PATIENCE)
        assert isinstance(error, ph.DependencyFailed)
        assert f"fails_from ({bad[3].task}), which failed: ValueError: no convergence at 3" in str(error)
        assert "2 more tasks that it depends on did not succeed" in "".join(error.__notes__)
        # Two ways to one root are one failure.
        ways = [session.call(first, bad[4]), session.call(first, bad[4])]
        assert "more" not in "".join(getattr(session.call(first, *ways).exception(PATIENCE), "__notes__", []))
        canceled = session.call(_after, str(study.folder / "never"))
        canceled.cancel()
        error = session.call(first, canceled).exception(PATIENCE)
        assert f"it depends on _after ({canceled.task}), which was canceled" in str(error)
        assert isinstance(error.__cause__ if error else None, ph.TaskCanceled)


def test_a_failed_program_is_named_by_what_follows(study: Study) -> None:
    with study.session() as session:
        program = session.submit(_shell("echo too many values >&2; exit 3", name="prepare"))
        error = session.submit(_shell("true", name="solve"), after=[program]).exception(PATIENCE)
        assert str(error).startswith(
            f"solve: it depends on prepare ({program.task}), which failed: "
            "/bin/sh returned exit code 3 (too many values)"
        )
        assert (error.__cause__ if error else None) is program.exception()


def test_inherited_failures_after_a_resume(study: Study) -> None:
    script = """
    def bad():
        raise ValueError("the mesh is empty")

    def use(x):
        return x

    with ph.Session("study") as session:
        session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2))
        first = session.call(bad)
        error = session.call(use, session.call(use, first)).exception(30)
        print(type(error).__name__, error, error.root == first.task, repr(error.__cause__))
        question = session.checkpoint("again", choices=["yes", "no"], show=[f"Again? {error}"])
        if sys.argv[1] == "1":
            question.respond("no")
        print(first.task, question.result(30))
    """
    for run in ("1", "2"):
        told, asked = study.run(script, run).splitlines()
        task, answer = asked.split()
        failed = f"it depends on bad ({task}), which failed: ValueError: the mesh is empty"
        assert told == f"DependencyFailed use: {failed} True ValueError('the mesh is empty')"
        assert answer == "no", "names of tasks do not make it another question"


# --- tracebacks -----------------------------------------------------------------------------------------------------

TRACED = """
import traceback

def inner(x):
    return x / 0  # here

async def outer(x):
    return inner(x)

with ph.Session("study") as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=2))
    for function in (inner, outer):
        error = session.call(function, 1).exception(30)
        print("".join(traceback.format_exception(error)))
"""


def test_tracebacks_have_file_line_and_source_and_nothing_of_ours(study: Study) -> None:
    said = study.run(TRACED)
    script = str(next(study.folder.glob("script*.py")))
    number = 1 + next(at for at, line in enumerate(Path(script).read_text().splitlines()) if "# here" in line)
    inner = f'  File "{script}", line {number}, in inner\n    return x / 0  # here\n'
    assert said.count(inner) == 2
    outer = f'  File "{script}", line {number + 3}, in outer\n    return inner(x)\n'
    assert f"Traceback (most recent call last):\n{outer}" in said
    assert "worker.py" not in said
    assert "asyncio" not in said
    assert "<dynamic-code>" not in said


def test_a_script_that_moved_is_resumed(study: Study) -> None:
    """The name of a function's file travels with it, and is no part of what it is."""
    script = """
    def work(x):
        with open(FOLDER + "/log", "a") as file:
            file.write(f"{x}\\n")
        return x, [square(x) for _ in range(2)], (lambda y: y + 1)(x)

    def square(x):
        return x * x

    with ph.Session("study") as session:
        session.submit_pilot(ph.PilotDescription(resource="local", cores=2))
        print(session.map(work, range(3)).results(30), session.call(work, 9).result(30))
    """
    first_time = study.run(script)
    path = next(study.folder.glob("script*.py"))
    elsewhere = study.folder / "moved"
    elsewhere.mkdir()
    moved = study.run(
        f"""
    import subprocess
    os.rename({str(path)!r}, {str(elsewhere / "other.py")!r})
    ended = subprocess.run([sys.executable, {str(elsewhere / "other.py")!r}], capture_output=True, text=True)
    sys.stdout.write(ended.stdout)
    sys.stderr.write(ended.stderr)
    sys.exit(ended.returncode)
    """
    )
    assert moved == first_time
    assert len(study.lines("log")) == 4


def test_source_that_only_this_process_knows(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: there is no file, and the client has the lines."""
    text = "def cell(x):\n    return 1 / x  # in a cell\n"
    monkeypatch.setitem(linecache.cache, "<ipython-input-7>", (len(text), None, text.splitlines(True), "cell"))
    codes = compile(text, "<ipython-input-7>", "exec").co_consts
    code = next(code for code in codes if isinstance(code, types.CodeType))
    cell = types.FunctionType(code, {"__name__": "__main__", "__builtins__": builtins})
    with study.session() as session, pytest.raises(ZeroDivisionError) as caught:
        session.call(cell, 0).result(PATIENCE)
    assert '  File "<ipython-input-7>", line 2, in cell\n    return 1 / x  # in a cell\n' in str(caught.value.__cause__)


def test_the_same_error_raised_often_stays_as_long(study: Study) -> None:
    """By several threads as well, and when the session was closed."""
    seen: list[tuple[int, int]] = []

    def ask(future: ph.TaskFuture[Any]) -> None:
        for _ in range(5):
            try:
                future.result()
            except (ValueError, ph.TaskFailed, ph.SessionClosed) as error:
                remote = str(error.__cause__).count("Traceback")
                seen.append((len(traceback.extract_tb(error.__traceback__)), remote))

    with study.session() as session:
        failed = [session.call(leave, (SystemExit, (2,))), session.call(empty)]
        left = session.call(_after, str(study.folder / "never"))
        ph.wait(failed, PATIENCE)
        threads = [threading.Thread(target=ask, args=(future,)) for future in (*failed, left, left, left)]
        for thread in threads:
            thread.start()
        for thread in threads[:2]:
            thread.join()
    for thread in threads:
        thread.join()
    assert len(seen) == 25
    assert {frames for frames, _ in seen} == {2}
    assert {remote for _, remote in seen} <= {0, 1}
    for _ in range(3):
        with pytest.raises(ph.SessionClosed) as caught:
            session.call(first, 1)
        frames = len(traceback.extract_tb(caught.value.__traceback__))
        seen.append((frames, 0))
    assert len({frames for frames, _ in seen[-3:]}) == 1


# --- programs -------------------------------------------------------------------------------------------------------


def _shell(line: str, **more: Any) -> ph.TaskDescription:
    return ph.TaskDescription(executable="/bin/sh", arguments=["-c", line], **more)


def test_a_failed_program_tells_what_a_person_needs(study: Study) -> None:
    with study.session() as session:
        future = session.submit(
            _shell("seq 30; echo hello; echo oh no >&2; echo x > partial.txt; exit 3", name="pre-s07")
        )
        with pytest.raises(ph.TaskFailed) as caught:
            future.result(PATIENCE)
        error = caught.value
        assert (error.name, error.program, error.exit_code, error.signal) == ("pre-s07", "/bin/sh", 3, None)
        assert (error.task, error.cause) == (future.task, "EXIT")
        assert os.path.exists(os.path.join(error.sandbox, "partial.txt"))
        assert error.stdout.endswith("\n30\nhello\n")
        assert error.stderr == "oh no\n"
        text = str(error)
        for part in ("pre-s07", "/bin/sh", "exit code 3", "hello", "oh no", "\n    30\n"):
            assert part in text
        # What is of this run alone is in notes, so that the same failure can be compared.
        for part in (error.task, error.host, error.sandbox):
            assert part in "\n".join(error.__notes__)
            assert part not in text
        assert "\n    20\n" not in text  # only the end
        for made in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (str(made), vars(made)) == (text, vars(error))


def test_other_ends_of_programs(study: Study) -> None:
    with study.session() as session:
        died = session.submit(_shell("seq 100000; seq 200000 >&2; kill -SEGV $$")).exception(PATIENCE)
        assert isinstance(died, ph.TaskFailed)
        assert (died.exit_code, died.signal) == (-11, signal.SIGSEGV)
        assert "SIGSEGV" in str(died)
        assert died.stdout.endswith("99999\n100000\n")
        assert died.stderr.endswith("199999\n200000\n")
        assert max(map(len, (died.stdout, died.stderr))) <= 2000
        named = session.submit(_shell("echo out; echo err >&2; exit 1", stdout="o", stderr="e")).exception(PATIENCE)
        assert isinstance(named, ph.TaskFailed)
        assert (named.stdout, named.stderr) == ("out\n", "err\n")
        staged = session.submit(_shell("true", name="s", input_staging=["/does/not/exist > x"])).exception(PATIENCE)
        assert isinstance(staged, ph.TaskFailed)
        assert "/does/not/exist: No such file" in str(staged)
        missing = session.submit(ph.TaskDescription(executable="no-such-program", name="m")).exception(PATIENCE)
        assert isinstance(missing, ph.TaskFailed)
        assert str(missing).startswith("m: program 'no-such-program' cannot be run")
        assert (missing.exit_code, missing.sandbox, missing.stdout) == (None, "", "")


def test_tries_are_counted_as_people_do(study: Study) -> None:
    with study.session() as session:
        once = session.call(empty).exception(PATIENCE)
        notes = "".join(getattr(once, "__notes__", []))
        assert "raised by empty [task.1.000001" in notes
        assert "attempt" not in notes
        often = session.options(retries=2).call(leave, (SystemExit, (1,))).exception(PATIENCE)
        assert ", attempt 3" in "".join(getattr(often, "__notes__", []))
    with study.session() as session:  # a second life of the hub numbers runs in another way
        again = session.call(leave, (SystemExit, (7,))).exception(PATIENCE)
        assert isinstance(again, ph.TaskFailed)
        assert "attempt" not in "".join(again.__notes__)
