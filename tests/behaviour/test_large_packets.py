"""Arguments, environments and results of any size reach their process, whatever the kernel's sockets take at a time."""

from __future__ import annotations

import os
import sys

import pytest

import pilot_hitl as ph
from pilot_hitl_agent.node import packets
from tests.behaviour.studies import Study, further

SIZES = [1_000, 30_000, 58_000, 200_000, 420_000, 500_000, 600_000, 5_000_000]


@pytest.fixture(autouse=True, params=further(1, [212_992, 4_608, None], ids=["default", "least", "large"]))
def buffer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets as large as we ask for where that is allowed, as the kernel gives by default, and its smallest."""
    if request.param is None:
        monkeypatch.delenv(packets.BUFFER_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(packets.BUFFER_VARIABLE, str(request.param))


def echo(data: bytes) -> bytes:
    return data


def length(data: bytes) -> int:
    return len(data)


def grow(size: int) -> bytes:
    return b"x" * size


def test_calls_with_arguments_and_results(study: Study) -> None:
    with study.session() as session:
        for size in SIZES:
            count = 40 if size < 1_000_000 else 5
            there = session.map(length, [b"x" * size] * count)
            back = session.map(grow, [size] * count)
            both = session.call(echo, os.urandom(size))
            assert [future.result(60) for future in there] == [size] * count
            assert {len(future.result(60)) for future in back} == {size}
            assert len(both.result(60)) == size


def words(total: int) -> list[str]:
    """Return arguments of this many bytes altogether."""
    return ["x" * 14] * (total // 15)


@pytest.mark.parametrize(("total", "count"), [(39_000, 30), (900_000, 2)])
def test_executables_with_long_argument_lists(study: Study, total: int, count: int) -> None:
    script = "import sys; print(len(sys.argv), len(' '.join(sys.argv)))"
    arguments = words(total)
    with study.session() as session:
        description = ph.TaskDescription(executable=sys.executable, arguments=["-c", script, *arguments])
        right = f"{len(arguments) + 1} {len(' '.join(['-c', *arguments]))}\n"
        assert {future.result(90).stdout for future in session.submit([description] * count)} == {right}


def test_what_no_program_takes_fails_alone(study: Study) -> None:
    """An argument list that is too long for the kernel ends its own task, and nothing that waits behind it."""
    with study.session() as session:
        echoes = [ph.TaskDescription(executable="/bin/echo", arguments=[str(number)]) for number in range(100)]
        too_long = ph.TaskDescription(executable="/bin/echo", arguments=words(2_900_000))
        first, *others = session.submit([too_long, *echoes])
        middle = session.submit([*echoes, too_long, *echoes])
        assert [future.result(60).stdout for future in others] == [f"{number}\n" for number in range(100)]
        error = first.exception(60)
        assert isinstance(error, ph.TaskFailed)
        assert "too long" in str(error)
        assert "too long" in str(middle[100].exception(60))
        assert {future.result(60).exit_code for future in (*middle[:100], *middle[101:])} == {0}


def test_environments(study: Study) -> None:
    """1.5 MB of variables are legal, 3 MB are not."""
    large = {f"V{number}": "x" * 1_000 for number in range(1_500)}
    with study.session() as session:
        count = ["-c", "import os; print(sum(name[0] == 'V' and name[1:].isdigit() for name in os.environ))"]
        legal = session.submit(ph.TaskDescription(executable=sys.executable, arguments=count, environment=large))
        twice = {**large, **{f"W{name}": value for name, value in large.items()}}
        too_large = session.submit(ph.TaskDescription(executable="/bin/true", environment=twice))
        behind = session.submit([ph.TaskDescription(executable="/bin/true")] * 10)
        assert legal.result(60).stdout == "1500\n"
        assert "too long" in str(too_large.exception(60))
        assert {future.result(60).exit_code for future in behind} == {0}
