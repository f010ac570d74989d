from __future__ import annotations

from typing import Any

import pytest

import pilot_hitl as ph
from pilot_hitl.wire import messages as m
from tests.unit.client.fakehub import FakeHub


def double(x: Any) -> Any:
    return 2 * x


def pick(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x


def test_a_sequence_in_order(session: ph.Session, hub: FakeHub) -> None:
    sequence = session.map(double, range(1000))
    assert len(sequence) == 1000
    assert sequence.results(5) == list(range(0, 2000, 2))
    assert sequence[-1].result() == 1998
    assert [each.result() for each in sequence[10:13]] == [20, 22, 24]
    assert [each.result() for each in sequence] == list(range(0, 2000, 2))
    assert sequence[5] is sequence[5]
    assert sequence.done()
    assert len(hub.of(m.Submit)) < 10
    with pytest.raises(IndexError):
        sequence[1000]


def test_any_iterables(session: ph.Session) -> None:
    assert session.map(pow, (x for x in (2, 3)), [3, 2, 1]).results(5) == [8, 9]
    assert session.map(double, ["a", (1,), 1.5]).results(5) == ["aa", (1, 1), 3.0]
    assert session.map(double, []).results(5) == []
    assert session.map(double, [10**6000]).results(5) == [2 * 10**6000]
    with pytest.raises(ph.DescriptionError):
        session.map(double)


def test_large_elements_travel_in_small_bulks(session: ph.Session, hub: FakeHub) -> None:
    texts = [chr(97 + index) * 30_000 for index in range(10)]
    assert session.map(double, texts).results(5) == [text * 2 for text in texts]
    assert all(len(submit.bodies) < 200_000 for submit in hub.of(m.Submit))


def test_elements_with_futures_depend_on_them(session: ph.Session, hub: FakeHub) -> None:
    first = session.map(double, range(3))
    second = session.map(double, [*first, 10, 20])
    assert second.results(5) == [0, 4, 8, 20, 40]
    assert [submit.count for submit in hub.of(m.Submit) if submit.deps] == [1, 1, 1]
    assert second[1].result() == 4


def test_elements_and_calls_are_keyed_alike(session: ph.Session, hub: FakeHub) -> None:
    session.map(double, [1, 2]).results(5)
    session.map(double, [1, "a"]).results(5)
    keys = b"".join(submit.keys for submit in hub.of(m.Submit))
    assert len({keys[at : at + 16] for at in range(0, len(keys), 16)}) == 4


def test_the_first_error_is_raised_and_the_rest_can_be_read(session: ph.Session) -> None:
    sequence = session.map(pick, range(6))
    with pytest.raises(ValueError, match="three"):
        sequence.results(5)
    assert sequence[5].result() == 5
    assert isinstance(sequence[3].exception(), ValueError)


def test_live_futures_end_with_their_elements(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    sequence = session.map(double, range(5))
    live = sequence[2]
    assert not live.done()
    with pytest.raises(TimeoutError):
        sequence.results(0.01)
    assert not sequence.wait(0.01)
    hub.release()
    assert live.result(5) == 4
    assert sequence.wait(5)
    assert sequence.pending == 0


def test_cancel_ends_what_has_not_ended(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    sequence = session.map(double, range(5))
    assert sequence.cancel()
    with pytest.raises(ph.TaskCanceled):
        sequence.results(5)
    assert sequence[4].cancelled()
    assert not sequence.cancel()


def test_waiting_runs(session: ph.Session, hub: FakeHub) -> None:
    hub.hold = True
    sequence = session.map(double, range(6))
    first = sequence.runs()[0][0]
    hub.tell(m.Outcomes([m.Outcome(first + at, ph.State.DONE) for at in (0, 3)]))
    assert sequence[3].result(5) is None
    assert sequence.waiting() == [(first + 1, 2), (first + 4, 2)]


def test_interleaved_submits_keep_their_places(session: ph.Session) -> None:
    def source() -> Any:
        for index in range(600):
            if index % 200 == 0:
                session.call(double, -1)
            yield index

    sequence = session.map(double, source())
    assert sequence.results(5) == list(range(0, 1200, 2))
    assert len(sequence.runs()) > 1
    assert sequence[599].result() == 1198


def test_finished_maps_are_let_go(session: ph.Session) -> None:
    for _ in range(5):
        session.map(double, range(3)).results(5)
    session.flush()
    assert session._client._runs == ([], [])


def test_an_executor_is_one_of_the_standard_library(session: ph.Session, hub: FakeHub) -> None:
    with ph.PilotExecutor(session) as executor:
        assert executor.submit(double, 2).result(5) == 4
        assert list(executor.map(double, range(3), timeout=5, chunksize=10)) == [0, 2, 4]
        hub.hold = True
        values = executor.map(double, range(3), timeout=0.01)
        with pytest.raises(TimeoutError):
            next(values)
        pending = executor.submit(double, 1)
        executor.shutdown(cancel_futures=True)
        assert pending.cancelled()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(double, 1)
