"""What was sent to a spawner and never arrived is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pilot_hitl.model.failures import Cause
from tests.behaviour.node.harness import Node


@contextmanager
def losing(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Throw away what asks for processes, as a packet that is lost would."""
    link = node.daemon._spawners.root
    with monkeypatch.context() as patch:
        patch.setattr(link, "spawn", lambda *_args, **_more: link.next_token())
        yield


@pytest.mark.parametrize("grace", [0.0, 0.5])
def test_a_timeout_ends_what_never_arrived(node: Node, monkeypatch: pytest.MonkeyPatch, grace: float) -> None:
    template = node.executable("/bin/echo", timeout=0.5, grace=grace)
    with losing(node, monkeypatch):
        task = node.run(template, "x")
    assert node.failure(task).cause is Cause.TIMEOUT
    assert node.result(node.run(template, "y")).stdout == b"y\n"


def test_so_does_a_cancel(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    template = node.executable("/bin/echo")
    with losing(node, monkeypatch):
        task = node.run(template, "x")
    node.end(task)
    assert node.failure(task).cause is Cause.CANCELED


@pytest.mark.long
def test_without_either_it_is_found_out_and_may_run_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    template = node.executable("/bin/echo")
    long = node.run(node.executable("/bin/sleep"), "15", core=1)
    with losing(node, monkeypatch):
        task = node.run(template, "x")
    failure = node.failure(task)
    assert failure.cause is Cause.PILOT_ENDED
    assert "lost" in failure.message
    assert node.result(long).exit_code == 0, "what runs for long is not taken for lost"
