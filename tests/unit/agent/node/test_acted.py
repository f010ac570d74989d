"""What acts outside and has begun is known to the next life of an agent."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.model.states import State
from pilot_hitl.wire.messages import Report
from pilot_hitl_agent.node.acted import Acted, Attempt

ATTEMPTS = st.tuples(st.integers(1, 2**63), st.integers(0, 2**32), st.integers(0, 2**32))


@given(st.lists(st.one_of(ATTEMPTS, st.none()), max_size=60))
def test_what_has_begun_and_not_ended_outlives_any_number_of_lives(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Attempt | None]
) -> None:
    """None is a death; what is named again has ended."""
    path = tmp_path_factory.mktemp("acted") / "pilots" / "acted"
    acted, present = Acted(path), set[Attempt]()
    for step in steps:
        if step is None:
            acted = Acted(path)
        elif step in present:
            acted.told([Report(*step, State.RUNNING)])
            acted.told([Report(*step, State.DONE)])
            present.discard(step)
        else:
            acted.begin(step)
            present.add(step)
        assert set(acted.attempts()) == present
        assert bool(acted) is bool(present)
    assert set(Acted(path).attempts()) == present


def test_the_table_grows(tmp_path: Path) -> None:
    acted = Acted(tmp_path / "acted")
    many = [(task, 1, 0) for task in range(1, 5001)]
    for each in many:
        acted.begin(each)
    later = Acted(tmp_path / "acted")
    assert sorted(later.attempts()) == many
    for each in many:
        later.ended(each)
    later.close()
    assert not (tmp_path / "acted").exists()


def test_without_room_it_is_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    acted = Acted(tmp_path / "file" / "acted")
    acted.begin((1, 1, 0))
    assert acted.attempts() == [(1, 1, 0)]
    acted.ended((1, 1, 0))
    assert not acted
    acted.close()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
