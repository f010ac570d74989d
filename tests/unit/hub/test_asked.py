"""Questions that rest in the file are as those that are held in memory: nobody can tell them apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_hitl.hub.peers import Client
from pilot_hitl.wire import messages as m
from tests.unit.hub.test_live import World

TIMES = ("opened_at", "answered_at", "ended_at", "extended_at", "deadline_at")
TOLD = (m.CheckpointUpdate, m.Refused, m.Reply)


class Step(NamedTuple):
    """What one of two scripts does about one of two questions."""

    what: str
    script: int
    question: int
    version: int = 1
    value: str = "yes"
    on_change: str = "ask"


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["ask", "ask", "ask", "answer", "answer", "answer", "withdraw", "extend", "look", "come back"]),
        st.integers(0, 1),
        st.integers(0, 1),
        st.integers(1, 2),
        st.sampled_from(["yes", "yes", "no", "bad"]),
        st.sampled_from(["ask", "keep", "error"]),
    ),
    min_size=20,
    max_size=40,
)


class Told(World):
    """Two scripts that share a session, and all that they are told, without times."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.scripts = [self.client, Client(b"d", "owner", self.live, 2)]
        self.live.clients.append(self.scripts[1])
        self.asked: dict[tuple[int, int], int] = {}
        self.askers: dict[int, set[int]] = {}
        """By number of the question."""
        self.handles = 0
        self.found: list[Any] = []

    def take(self, step: Step) -> None:
        client, gates = self.scripts[step.script], self.live.gates
        number = step.question + 1
        handle = self.asked.get((step.script, step.question), 0)
        if step.what == "ask":
            self.handles += 1
            handle = client.incarnation << 32 | self.handles
            self.asked[step.script, step.question] = handle
            asked = f"version {step.version}"
            gates.ask(
                client,
                m.Ask(
                    handle, bytes([step.question]) * 16, f"gate {step.question}", 0, asked, '{"enum":["yes","no"]}',
                    ['"yes"', '"no"'], fingerprint=asked.encode(), on_change=step.on_change, assignees=["ana"],
                ),
            )  # fmt: skip
        elif step.what == "answer":
            gates.answer(client, m.Answer(1, number, step.version, step.value, by="ana"))
        elif step.what == "withdraw":
            gates.withdraw(m.Withdraw(handle))
        elif step.what == "extend":
            gates.extend(client, m.Extend(1, number, 100.0 * step.version, "ana", step.version))
        elif step.what == "come back":
            gates.remind(client)
        elif number in gates:
            self.found.append(timeless(gates.view(number)))
        told = [message for each in self.scripts for message in each.outbox]
        if step.what == "ask" and not any(isinstance(each, m.Refused) for each in told):
            self.askers.setdefault(gates.number_of(handle), set()).add(handle)
        if any(isinstance(each, m.CheckpointUpdate) for each in told) and step.what != "come back":
            heard = {each.handle for each in told if isinstance(each, m.CheckpointUpdate)}
            assert heard == self.askers[gates.number_of(min(heard))], "all who asked hear of it"
        for each in self.scripts:
            self.found += [timeless(plain(message)) for message in each.outbox if isinstance(message, TOLD)]
            each.outbox.clear()

    def all(self) -> list[Any]:
        return [timeless(self.live.gates.view(number)) for number in self.live.gates]

    def held(self) -> set[int]:
        return set(self.live.gates._asked._asks)


def plain(message: m.Message) -> Any:
    facts = {name: getattr(message, name) for name in message.__struct_fields__}
    for name in ("record", "body"):
        if facts.get(name):
            facts[name] = json.loads(facts[name])
    return {"message": type(message).__name__, **facts}


def timeless(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: bool(value) if key in TIMES else timeless(value) for key, value in found.items()}
    return [timeless(each) for each in found] if isinstance(found, list) else found


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("home")


@settings(max_examples=10)
@given(STEPS)
def test_what_rests_on_disk_is_as_what_is_held(homes: Callable[[], Path], steps: list[Step]) -> None:
    held, rests = Told(homes()), Told(homes())
    for step in steps:
        held.take(step)
        rests.take(step)
        rests.live.commit()
        assert rests.found == held.found
        assert rests.held() == {number for number, _ in open_ones(rests)}
    assert rests.all() == held.all()
    held.live.commit()
    assert held.held() == rests.held()
    before = held.all()
    for world in (held, rests):
        world.reopen()
    assert rests.all() == held.all() == before
    assert rests.held() == held.held() == {number for number, _ in open_ones(rests)}
    for world in (held, rests):
        world.live.close()


def open_ones(world: World) -> list[tuple[int, dict[str, Any]]]:
    views = [(number, world.live.gates.view(number)) for number in world.live.gates]
    return [(number, view) for number, view in views if view["state"] in ("PENDING", "OPEN")]
