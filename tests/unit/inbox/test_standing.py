"""Which of one person's waiting answers counts: the last that could, unless it was taken back."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.inbox.spool import SpooledAnswer, Taken
from pilot_hitl.inbox.standing import Standing, standings

S = Standing


def given_(at: float, value: str = "1", uid: int = 1, generation: int = 1, checkpoint: int = 1) -> Taken:
    answer = SpooledAnswer(checkpoint=checkpoint, generation=generation, value=value, withdraws=not value)
    return Taken(answer=answer, path=Path(str(at)), uid=uid, at=at)


def said(*waiting: Taken) -> list[Standing]:
    return [placed.standing for placed in standings(waiting, lambda taken: taken.answer.value != "bad")]


def test_the_last_answer_of_a_person_counts() -> None:
    assert said(given_(1), given_(2), given_(3)) == [S.REPLACED, S.REPLACED, S.COUNTS]
    assert said(given_(3), given_(1)) == [S.REPLACED, S.COUNTS], "in order of time"


def test_people_questions_and_versions_are_apart() -> None:
    assert said(given_(1), given_(2, uid=2), given_(3, generation=2), given_(4, checkpoint=2)) == [S.COUNTS] * 4


def test_what_could_never_count_replaces_nothing() -> None:
    assert said(given_(1), given_(2, "bad")) == [S.COUNTS, S.UNFIT]


def test_an_answer_is_taken_back_and_given_again() -> None:
    assert said(given_(1), given_(2, ""), given_(3)) == [S.WITHDRAWN, S.WITHDRAWS, S.COUNTS]
    assert said(given_(1, ""), given_(2, uid=2), given_(3, "")) == [S.IDLE, S.COUNTS, S.IDLE]


ANSWERS = st.builds(
    given_,
    st.integers(0, 1000).map(float),
    st.sampled_from(["1", "2", "bad", ""]),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 2),
)


@given(st.lists(ANSWERS, max_size=12))
def test_every_answer_has_one_standing_and_every_author_at_most_one_that_counts(waiting: list[Taken]) -> None:
    placed = standings(waiting, lambda taken: taken.answer.value != "bad")
    assert sorted(id(each.taken) for each in placed) == sorted(map(id, waiting))
    assert [each.taken.at for each in placed] == sorted(each.at for each in waiting)
    whose = [
        (each.taken.uid, each.taken.answer.checkpoint, each.taken.answer.generation)
        for each in placed
        if each.standing is S.COUNTS
    ]
    assert len(whose) == len(set(whose))
    for each in placed:
        ended = each.standing in (S.REPLACED, S.WITHDRAWN)
        assert (each.by is not None) == ended
        if each.by is not None:
            assert each.by.answer.withdraws == (each.standing is S.WITHDRAWN)
            assert each.by.at >= each.taken.at
