"""An agent's turns."""

from __future__ import annotations

from typing import Any

import pytest

from pilot_hitl_agent.agent import ROUNDS, Agent


class Chatty:
    """A node that answers whatever it is told."""

    def __init__(self) -> None:
        self.told = 0
        self._answers: list[Any] = []

    def handle(self, mail: list[Any]) -> None:
        self.told += 1
        self._answers += mail

    def drain(self) -> list[Any]:
        answers, self._answers = self._answers, []
        return answers


def test_nodes_that_always_have_something_to_say_do_not_keep_an_agent_from_the_world(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node, agent = Chatty(), object.__new__(Agent)
    vars(agent).update(_office=None, _nodes={0: node}, _near={0: node}, _mail={0: ["word"]})
    monkeypatch.setattr(Agent, "_hear", lambda self, message: self._post(0, message))
    agent._talk_with_nodes()
    assert node.told == ROUNDS
    assert vars(agent)["_mail"] == {0: ["word"]}
    assert agent._timeout() == 0, "the next turn follows at once"
