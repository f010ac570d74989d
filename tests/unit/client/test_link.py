"""Leaving a hub that ends, or that is another one by then."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot_hitl import _hubprocess, _link
from pilot_hitl._hubprocess import HubProcess
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.places import runtime_folder
from tests.unit.client.fakehub import FakeHub


class EndingHub(FakeHub):
    """Its process is seen to end ``late`` seconds before its last word arrives."""

    late = 0.0

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(["sleep", "1000"])
        self.forgets = 0
        super().__init__(home)

    def _on_bye(self, bye: m.Bye) -> None:
        if self.forgets:
            self.forgets -= 1
            self.do(lambda: self.send(m.Reconnect()))  # after the frame was acknowledged
        elif self.late:
            self.process.kill()
            self.process.wait()
            threading.Timer(self.late, self.tell, [m.Closed()]).start()
        else:
            super()._on_bye(bye)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        super().stop()


@pytest.fixture
def ending(home: Path) -> Iterator[EndingHub]:
    hub = EndingHub(home)
    yield hub
    hub.stop()


def _open(hub: EndingHub) -> _link.Link:
    process = HubProcess(hub.process.pid, False, f"ipc://{runtime_folder(hub.home)}/hub.sock")
    link = _link.Link(hub.home, process, lambda _: m.Hello("study", "owner"), lambda _: None, lambda _: None)
    link.open()
    return link


def test_the_last_word_of_a_hub_that_has_ended_is_heard(ending: EndingHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hubprocess, "LAST_WORDS", 60_000)
    ending.late = 0.1
    assert _open(ending).leave([m.Bye("stop", "")], 60)
    assert len(ending.hellos) == 1, "no other hub was looked for"


def test_goodbye_is_said_again_to_a_hub_that_forgot_us(ending: EndingHub) -> None:
    ending.forgets = 1
    link = _open(ending)
    assert link.leave([m.Bye("stop", "")], 60)
    assert (len(ending.of(m.Bye)), len(ending.hellos)) == (2, 2)
