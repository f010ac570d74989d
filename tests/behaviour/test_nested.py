"""Tasks that submit tasks and wait for them: on a pilot that is full of such tasks, too."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import pilot_hitl as ph
from tests.behaviour.studies import Study, append, wait_for


def _leaf(value: int) -> int:
    return value * 10


def _parent(value: int) -> int:
    return ph.current_session().call(_leaf, value).result() + 1


def _parent_of_many(value: int) -> int:
    return sum(ph.current_session().map(_leaf, range(value)).results())


def test_a_task_waits_for_its_child_on_a_pilot_of_one_core(study: Study) -> None:
    with study.session(cores=1) as session:
        assert session.call(_parent, 4).result(30) == 41
        assert session.call(_parent_of_many, 5).result(30) == 100


def test_every_core_waits_for_a_child(study: Study) -> None:
    with study.session(cores=2) as session:
        assert session.map(_parent, range(6)).results(60) == [10 * n + 1 for n in range(6)]


@pytest.mark.one_node("tasks of two cores")
def test_tasks_of_all_cores_wait_for_children_of_all_cores(study: Study) -> None:
    with study.session(cores=2) as session:
        assert session.options(cores=2).map(_parent_of_big, range(3)).results(60) == [0, 10, 20]
        assert session.options(cores=2).map(_parent_of_many, range(3)).results(60) == [0, 0, 10]


def _parent_of_big(value: int) -> int:
    return ph.current_session().options(cores=2).call(_leaf, value).result()


def test_a_task_on_a_borrowed_core_waits_for_its_child(study: Study) -> None:
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        lender = session.call(_asks)
        wait_for(lambda: "asks people" in lender.explain(), "it lends its core")
        borrower = gate.branch("a").call(_asks_then_calls)
        wait_for(lambda: "asks people" in borrower.explain(), "it borrowed the core, and waits as well")
        gate.respond("a")
        for answer in ("yes", "y"):
            for each in study.inbox():
                if answer in each["choices"]:
                    study.tool("inbox", "answer", each["id"], answer)
        assert borrower.result(30) == 90
        assert lender.result(30) == "yes"


def _asks_then_calls() -> int:
    ph.checkpoint("second", choices=["y", "n"]).result()
    return ph.current_session().call(_leaf, 9).result()


def test_a_child_goes_before_speculation_on_the_cores_that_its_parent_lends(study: Study) -> None:
    go, busy = study.folder / "go", study.folder / "busy"
    with study.session(cores=1) as session:
        gate = session.checkpoint("gate", choices=["a", "b"])
        parent = session.call(_waits_then_calls, str(go))
        guess = gate.branch("a").options(grace=0.2).call(_for_ever, str(busy))
        wait_for(busy.exists, "the guess has the cores that the waiting task lends")
        go.touch()
        assert parent.result(30) == 70
        gate.respond("b")
        assert guess.exception(20) is not None


def _waits_then_calls(path: str) -> int:
    with ph.lend_resources():
        while not Path(path).exists():
            time.sleep(0.02)
        return ph.current_session().call(_leaf, 7).result()


def _for_ever(path: str) -> None:
    Path(path).touch()
    while True:
        time.sleep(0.05)


def test_a_task_that_waits_for_a_person_lends_its_core(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(cores=1) as session:
        task = session.call(_asks)
        found = wait_for(study.inbox, "the question is there")
        assert f"it asks people: 'inside' ({found[0]['id']})" in task.explain()
        session.options(backfill=True).call(append, log, "meanwhile").result(30)
        study.tool("inbox", "answer", found[0]["id"], "yes")
        assert task.result(30) == "yes"
        assert study.lines("log") == ["meanwhile"]


def _asks() -> object:
    return ph.checkpoint("inside", choices=["yes", "no"]).result()


def test_a_branch_that_asks_goes_on_when_the_other_that_lent_it_its_core_is_discarded(study: Study) -> None:
    log = str(study.folder / "log")
    with study.session(cores=1) as session:
        outer = session.checkpoint("outer", choices=["a", "b"])
        tasks = {answer: outer.branch(answer).call(_asks_for_more, log, answer) for answer in "ab"}
        wait_for(
            lambda: all("asks people" in task.explain() for task in tasks.values()), "one runs on the other's core"
        )
        time.sleep(0.5)  # a wait lends only when it takes long
        _, second = study.lines("log")
        outer.respond(second)
        (inner,) = wait_for(study.inbox, "its own question opens")
        study.tool("inbox", "answer", inner["id"], "n")
        assert tasks[second].result(30) == 20


def _asks_for_more(log: str, name: str) -> int:
    append(log, name)
    gate = ph.checkpoint("inner", choices=["y", "n"])
    results = {answer: gate.branch(answer).call(_leaf, value) for answer, value in (("y", 1), ("n", 2))}
    value: int = gate.select(results).result()
    return value
