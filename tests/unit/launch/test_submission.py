"""Silence of a batch system: never two jobs of one pilot, never one that nobody knows, and in the end one."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pilot_hitl.launch.submission import LAST_PAUSE, SETTLE, Stage, Submission


@dataclass
class Job:
    """A job that the controller has, or will have: what was sent to it may wait for it."""

    number: int
    arrives: float
    canceled: bool = False


class Silent(RuleBasedStateMachine):
    """A hub that does what a Submission says; a controller that answers or does not, and takes jobs late or never."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.way = Submission(self.now)
        self.jobs: list[Job] = []
        self.known: Job | None = None

    def _here(self) -> list[Job]:
        """The jobs that run or wait: one of a try that was given up ends by itself as soon as it starts."""
        return [job for job in self.jobs if job.arrives <= self.now and not job.canceled]

    @rule(seconds=st.sampled_from([0.5, 2.0, SETTLE, LAST_PAUSE]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.way.stage is Stage.ASKED and self.way.at <= self.now)
    @rule(ready=st.booleans())
    def prepare(self, ready: bool) -> None:
        if ready:
            self.way.sent()
        else:
            self.way.delayed(self.now)

    @precondition(lambda self: self.way.stage is Stage.SENT)
    @rule()
    def submit(self) -> None:
        self.known = Job(self.way.number, self.now)
        self.jobs.append(self.known)
        self.way.known(self.now)

    @precondition(lambda self: self.way.stage is Stage.SENT)
    @rule(taken=st.booleans(), late=st.sampled_from([0.0, 1.0, SETTLE - 1.0, 10 * SETTLE]))
    def submit_without_an_answer(self, taken: bool, late: float) -> None:
        if taken:
            self.jobs.append(Job(self.way.number, self.now + late))
        self.way.lost()

    @precondition(lambda self: self.way.stage is Stage.SENT)
    @rule(taken=st.booleans())
    def hub_dies_while_it_submits(self, taken: bool) -> None:
        if taken:
            self.jobs.append(Job(self.way.number, self.now + 1.0))
        self.way = Submission(self.now, self.way.number)
        self.way.lost()

    @precondition(lambda self: self.way.stage in (Stage.LOST, Stage.QUEUED))
    @rule()
    def the_queue_answers(self) -> None:
        for job in self._here():
            if job.number < self.way.number and job is not self.known:
                job.canceled = True
        if self.way.stage is Stage.QUEUED:
            return
        found = next((job for job in self._here() if job.number == self.way.number), None)
        if found is not None:
            self.known = found
            self.way.known(self.now)
        elif self.way.absent(self.now):
            self.way.again(self.now)

    @invariant()
    def never_two_jobs_of_the_present_try(self) -> None:
        assert len([job for job in self.jobs if job.number == self.way.number]) <= 1

    @invariant()
    def every_job_is_found_or_ends(self) -> None:
        for job in self._here():
            assert job is self.known or job.number < self.way.number or self.way.stage is Stage.LOST

    def teardown(self) -> None:
        """A controller that answers from now on: there is one job, and it is known."""
        for _ in range(20):
            self.now += LAST_PAUSE
            if self.way.stage is Stage.ASKED:
                self.way.sent()
            if self.way.stage is Stage.SENT:
                self.submit()
            self.the_queue_answers()
        assert self.way.stage is Stage.QUEUED
        assert self._here() == [self.known]


Silent.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_silence = Silent.TestCase


def test_pauses_grow_up_to_a_minute() -> None:
    way, pauses = Submission(), []
    for _ in range(8):
        way.delayed(0.0)
        pauses.append(way.at)
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_an_answer_from_before_the_job_was_known_says_nothing() -> None:
    way = Submission()
    way.sent()
    way.known(100.0)
    assert not way.missing(99.0)
    assert not way.missing(100.5)
    assert way.missing(105.0)


def test_the_second_answer_is_due_when_it_says_something() -> None:
    way = Submission()
    due: list[float | None] = []
    way.sent()
    due.append(way.settles)
    way.lost()
    due.append(way.settles)  # the queue has not answered yet
    assert not way.absent(100.0)
    due.append(way.settles)
    assert not way.absent(100.0 + SETTLE - 0.1)
    assert way.absent(100.0 + SETTLE)
    way.again(120.0)
    assert [*due, way.settles] == [None, None, 100.0 + SETTLE, None]


def test_what_waited_for_an_answer_does_not_wait_on_when_there_is_one() -> None:
    way = Submission()
    for _ in range(8):
        way.delayed(0.0)
    way.answered(20.0)
    assert way.at == 20.0
    way.delayed(20.0)
    assert way.at == 22.0, "its next pause is the first one again"
    way.answered(30.0)
    assert way.at == 22.0, "what is due is not put off"


def test_an_answer_that_cannot_be_read_is_kept_until_the_next_one() -> None:
    way = Submission()
    way.lost("no line of it is a job id")
    assert way.unread
    way.lost()
    assert not way.unread
