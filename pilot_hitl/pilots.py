"""Pilots as a script sees them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from pilot_hitl.errors import PilotFailed, PilotHitlError, fresh
from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.resources import NodeInventory
from pilot_hitl.model.states import PilotState

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl._silence import Wanted
    from pilot_hitl.wire.messages import PilotUpdate


class Pilot:
    """A pilot that was asked for. Safe to use from several threads.

    Attributes:
        description: what was asked.
        number: its number in the session, 0 until the hub gave one.
        state: as last heard.
        message: why it is in this state, where there is something to say.
        nodes: what it has, once it is active.
    """

    def __init__(self, client: Client, token: int, description: PilotDescription) -> None:
        """Start NEW; the session submits it."""
        self.description = description
        self.number = 0
        self.state = PilotState.NEW
        self.message = ""
        self.nodes: list[NodeInventory] = []
        self.token = token
        self._client = client
        self._condition = threading.Condition()
        self._error: BaseException | None = None

    @property
    def name(self) -> str:
        """Its name, by which ``TaskDescription.pilot`` may ask for it."""
        return self.description.name or (f"pilot.{self.number}" if self.number else "pilot")

    def offer(self) -> list[NodeInventory]:
        """Return what it has or, on this machine, will have; empty while nobody can say."""
        asked = self.description
        if self.nodes or asked.resource != "local" or asked.noop:
            return self.nodes
        cores, gpus = list(range(asked.cores or len(os.sched_getaffinity(0)))), list(range(asked.gpus))
        return [NodeInventory(name="local", cores=cores, gpus=gpus, memory=asked.memory, pinned=False)]

    def cancel(self, reason: str = "") -> None:
        """End it; its unfinished tasks are bound again elsewhere. Returns at once.

        Raises:
            PilotFailed: it was refused.
        """
        self._client.cancel_pilot(self.wait_number(), reason)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until its agent reports for duty.

        Raises:
            PilotFailed: it ended before; the message carries the batch system's own words.
            TimeoutError: it is not active within ``timeout`` seconds.
        """
        with self._condition:
            arrived = self._client.silence.hold(
                self._condition, lambda: self._error is not None or self.state >= PilotState.ACTIVE, timeout, self._want
            )
        self._check()
        if not arrived:
            raise TimeoutError(f"{self.name} is {self.state.name} after {timeout} s: {self.message or 'no word yet'}")
        if self.state.final and self.state is not PilotState.DONE:
            raise PilotFailed(f"{self.name} ({self.description.resource}) is {self.state.name}: {self.message}")

    def wait_number(self, timeout: float | None = 60) -> int:
        """Wait until the hub gave it a number, and return that.

        Raises:
            PilotFailed: it was refused.
            TimeoutError: there is no number within ``timeout`` seconds.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._error is not None or self.number > 0, timeout):
                raise TimeoutError(f"{self.name}: no word of the hub within {timeout} s")
        self._check()
        return self.number

    def _want(self, wanted: Wanted) -> None:
        """Say what is waited for, see :class:`Wanted`."""
        words = f"{self.name} ({self.description.resource}) is {self.state.name}"
        wanted.said[f"{words} {self.message}"] = f"{words}: {self.message or 'its agent has not reported yet'}"

    def _check(self) -> None:
        if self._error is not None:
            raise fresh(self._error)

    def __repr__(self) -> str:
        return f"<Pilot {self.name} on {self.description.resource}: {self.state.name}>"

    def update(self, update: PilotUpdate) -> None:
        """Take in what the hub says; called by the session."""
        with self._condition:
            self.number = update.pilot or self.number
            self.state = update.state
            self.message = update.message
            self.nodes = update.nodes or self.nodes
            self._condition.notify_all()

    def fail(self, error: BaseException) -> None:
        """Take in that it was refused or that the session ended; called by the session."""
        with self._condition:
            if not self.state.final:
                refused = isinstance(error, PilotHitlError) and not self.number
                self._error = PilotFailed(f"{self.name}: {error}") if refused else error
                self.state = PilotState.FAILED if refused else self.state
            self._condition.notify_all()
