"""Tasks that act outside of their sandboxes: where each was sent is on disk before it is sent.

So a hub that was killed leaves a word of every such task that may be running, and the next one neither sends it
anywhere else nor forgets that it may have had effects. ``docs/specs/reconnect.md`` says what becomes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pilot_hitl.hub.store import Store
from pilot_hitl.model.states import State
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.wire.messages import Report


class Outside:
    """What is known of one session's tasks of that kind.

    Attributes:
        pilots: those to which an earlier hub sent what was restored.
        unwritten: whether something was sent that is not on disk: nothing leaves for agents before it is.
    """

    def __init__(self, store: Store) -> None:
        """Note in ``store``."""
        self._store = store
        self._sent: set[int] = set()
        self.pilots: set[int] = set()
        self.unwritten = False

    def restored(self) -> Iterator[ev.RestoreBindings]:
        """Yield what an earlier hub sent and nobody gave back, by agents' lives; ended tasks are among it."""
        lives: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for task, pilot, binding, run in self._store.rows(
            "SELECT b.* FROM bound b WHERE pilot>0 AND NOT EXISTS (SELECT 1 FROM outcome o WHERE o.task=b.task)"
        ):
            lives.setdefault((pilot, binding), []).append((task, run))
            self._sent.add(task)
        self.pilots = {pilot for pilot, _ in lives}
        for (pilot, binding), attempts in sorted(lives.items()):
            yield ev.RestoreBindings(pilot, binding, tuple(attempts))

    def sent(self, order: do.Dispatch) -> None:
        """Note attempts that are about to be sent."""
        for task in range(order.first, order.first + order.count):
            self._store.put("bound", task, order.pilot, order.epoch, order.run)
            self._sent.add(task)
        self.unwritten = True

    def heard(self, reports: Sequence[Report]) -> None:
        """Note what was given back without having run; what ended has an outcome."""
        if not self._sent:
            return
        for report in reports:
            if report.task in self._sent and (report.state.final or report.state is State.QUEUED):
                self._sent.discard(report.task)
                if report.state is State.QUEUED:
                    self._store.put("bound", report.task, 0, 0, 0)

    def life_over(self, pilot: int) -> None:
        """An agent's life is over, and the core has decided what becomes of its tasks."""
        if self._sent:
            self._store.put("unbound", pilot)
