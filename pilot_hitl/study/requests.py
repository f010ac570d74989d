"""Requests to people among the tasks of a study: when they open, who keeps resources for what follows, how they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from pilot_hitl.model.states import CheckpointState, State, Truth
from pilot_hitl.study import instructions as do
from pilot_hitl.study.checkpoints import Checkpoint, Checkpoints, refusal, stale
from pilot_hitl.study.conditions import NUMBER_MASK

if TYPE_CHECKING:
    from pilot_hitl.study import events as ev
    from pilot_hitl.study.bulk import Bulk, Table
    from pilot_hitl.study.conditions import Condition, Conditions
    from pilot_hitl.study.pilots import Pilot

HELD, HELD_FAILED, DONE = int(State.HELD), int(State.HELD_FAILED), int(State.DONE)


class Requests:
    """What the study core knows and does about checkpoints.

    Methods that can close a checkpoint return the conditions which that decided; the core acts upon them.
    """

    def __init__(
        self,
        tasks: Table,
        conditions: Conditions,
        pilots: dict[int, Pilot],
        emit: Callable[[do.Instruction], None],
        join: Callable[[Condition, Condition], Condition],
    ) -> None:
        """Share what the core knows; ``emit`` takes instructions, ``join`` makes conditions and announces them."""
        self.all = Checkpoints()
        self.restored: list[Checkpoint] = []
        """PENDING ones of an earlier life of the hub, not looked at yet."""
        self._tasks = tasks
        self._conditions = conditions
        self._pilots = pilots
        self._emit = emit
        self._join = join
        self._shown: dict[int, list[Checkpoint]] = {}
        self._asked_by: dict[int, list[int]] = {}
        self._lends = True
        self.lingering: list[Checkpoint] = []
        """Answered ones whose reservations have not ended."""
        self.abandoned: list[int] = []
        """Requests whose asking task has ended; the core withdraws them at the end of its step."""

    # --- asking -------------------------------------------------------------------------------------------------------

    def ask(self, event: ev.AskPeople, now: float) -> list[Condition]:
        """Make a request, or find the one that was asked before; ask it again when it changed or was withdrawn."""
        checkpoint = self.all.get(event.checkpoint) if event.checkpoint else None
        if checkpoint is None:
            checkpoint = self.all.add(event, self._conditions.always)
        elif self.asks_again(event):
            self._unreserve(checkpoint)
            checkpoint.ask_again(event, self._conditions.always)
            self.all.reopened(checkpoint)
            if checkpoint.reopened:
                self._conditions.reopen(checkpoint.number, checkpoint.reopened)
            self._save(checkpoint)
        elif checkpoint.state is CheckpointState.PENDING:
            checkpoint.ask, checkpoint.asker = event, event.asker
        else:
            checkpoint.asker = event.asker
            if not checkpoint.state.closed:
                if event.parent:
                    self._asked_by.setdefault(event.parent, []).append(checkpoint.number)
                # Its clock runs on, as it was asked or as somebody extended it.
                checkpoint.ask = msgspec.structs.replace(event, deadline=checkpoint.ask.deadline)
            self._save(checkpoint)
            return []
        return self._place(checkpoint, now)

    def asks_again(self, event: ev.AskPeople) -> bool:
        """Return whether people have to be asked (once more) for this event, because it is another question.

        ``on_change="keep"`` keeps an answer; of a question without one nobody may see another text than he answers.
        """
        checkpoint = self.all.get(event.checkpoint)
        if checkpoint is None:
            return False
        changed = checkpoint.ask.fingerprint != event.fingerprint
        keeps = event.on_change != "ask" and checkpoint.state.closed
        return checkpoint.state is CheckpointState.WITHDRAWN or (changed and not keeps)

    def restore(self, event: ev.RestoreCheckpoint) -> list[Condition]:
        """Take in a request of an earlier life of the hub. A PENDING one is looked at by :meth:`settle`."""
        checkpoint = self.all.add(event.ask, self._conditions.always)
        checkpoint.state, checkpoint.answer = event.state, event.answer
        checkpoint.opened, checkpoint.generation = event.opened, event.generation
        checkpoint.reopened = event.reopened
        if event.reopened:
            self._conditions.reopen(checkpoint.number, event.reopened)
        if event.state is CheckpointState.PENDING:
            self.restored.append(checkpoint)
        elif event.state is CheckpointState.OPEN:
            checkpoint.open(event.opened)
            if event.deadline >= 0:
                checkpoint.deadline = event.deadline
            if event.ask.parent:
                self._asked_by.setdefault(event.ask.parent, []).append(checkpoint.number)
        elif event.state is not CheckpointState.WITHDRAWN and event.answer:
            return self._conditions.answer(checkpoint.number, event.answer)
        else:
            return self._conditions.close(checkpoint.number)
        return []

    def settle(self, now: float) -> list[Condition]:
        """Open or withdraw what was restored, now that tasks and conditions are restored too."""
        restored, self.restored = self.restored, []
        decided: list[Condition] = []
        for checkpoint in restored:
            if checkpoint.state is CheckpointState.PENDING:
                decided += self._place(checkpoint, now)
        return decided

    def _place(self, checkpoint: Checkpoint, now: float) -> list[Condition]:
        """Find out what a PENDING request waits for, and open it when that is nothing."""
        ask = checkpoint.ask
        try:
            inside = self._conditions.named(ask.condition)
        except KeyError:
            return self._close(checkpoint, CheckpointState.WITHDRAWN, "", now)
        if ask.parent and (asker := self._tasks.find(ask.parent)) is not None:
            inside = self._join(inside, asker.condition)
            if asker.states[ask.parent - asker.first] >= DONE:
                return self._close(checkpoint, CheckpointState.WITHDRAWN, "", now)
            self._asked_by.setdefault(ask.parent, []).append(checkpoint.number)
        missing = set()
        for dep in ask.deps:
            bulk = self._tasks.find(dep)
            if bulk is None:
                continue
            inside = self._join(inside, bulk.condition)
            state = bulk.states[dep - bulk.first]
            if state < HELD or state == HELD_FAILED:
                missing.add(dep)
                self._shown.setdefault(dep, []).append(checkpoint)
        checkpoint.inside, checkpoint.missing = inside, missing or None
        if inside.truth is Truth.FALSE or self._waits_for_itself(checkpoint):
            return self._close(checkpoint, CheckpointState.WITHDRAWN, "", now)
        if inside.truth is Truth.UNDECIDED:
            inside.checkpoints.append(checkpoint.number)
        self._open_if_possible(checkpoint, now)
        if checkpoint.state is CheckpointState.PENDING:
            self._save(checkpoint)
        return []

    def _waits_for_itself(self, checkpoint: Checkpoint) -> bool:
        """Return whether a request can only open once it has been answered, which will never be."""
        todo, seen = [checkpoint], set()
        while todo:
            inside = todo.pop().inside
            if inside.truth is not Truth.UNDECIDED:
                continue
            for number in {term.checkpoint & NUMBER_MASK for term in inside.terms}:
                if number == checkpoint.number:
                    return True
                other = self.all.get(number)
                if other is not None and other.state is CheckpointState.PENDING and number not in seen:
                    seen.add(number)
                    todo.append(other)
        return False

    def asker_ended(self, task: int) -> None:
        """Note that nobody waits any more for what a task asked."""
        if self._asked_by and (asked := self._asked_by.pop(task, None)) is not None:
            self.abandoned += asked

    def abandon(self, number: int, now: float) -> list[Condition]:
        """Withdraw what an ended task had asked, unless another try of the question has taken it over."""
        checkpoint = self.all.get(number)
        if checkpoint is None or checkpoint.state.closed:
            return []
        asker = self._tasks.state_of(checkpoint.ask.parent) if checkpoint.ask.parent else None
        if asker is None or asker < DONE:
            return []
        return self._close(checkpoint, CheckpointState.WITHDRAWN, "", now)

    def extend(self, event: ev.ExtendDeadline, now: float) -> None:
        """Move the deadline of a request that is not closed."""
        checkpoint = self.all.get(event.checkpoint)
        old = stale(checkpoint, event.generation) if checkpoint is not None and event.generation else None
        if checkpoint is None or checkpoint.state.closed or old is not None:
            code, message = old or refusal(checkpoint)
            self._emit(do.RefuseAnswer(event.token, event.checkpoint, "", code, message))
            return
        if checkpoint.state is CheckpointState.OPEN:
            checkpoint.deadline = now + event.seconds if event.seconds else 0.0
        checkpoint.ask = msgspec.structs.replace(checkpoint.ask, deadline=event.seconds)
        self._save(checkpoint, event.token)

    def arrived(self, task: int, now: float) -> None:
        """Note that a shown task has a value, or never will."""
        for checkpoint in self._shown.pop(task, ()) if self._shown else ():
            if checkpoint.state is CheckpointState.PENDING and checkpoint.missing and task in checkpoint.missing:
                checkpoint.missing.discard(task)
                self._open_if_possible(checkpoint, now)

    def resume(self, condition: Condition, now: float) -> list[Condition]:
        """Open, or withdraw, what was asked inside a condition that is decided now."""
        decided: list[Condition] = []
        inside, condition.checkpoints = condition.checkpoints, []
        for number in inside:
            checkpoint = self.all.get(number)
            if checkpoint is None or checkpoint.state is not CheckpointState.PENDING:
                continue
            if checkpoint.inside is not condition:
                continue  # It was asked again elsewhere.
            if condition.truth is Truth.TRUE:
                self._open_if_possible(checkpoint, now)
            else:
                decided += self._close(checkpoint, CheckpointState.WITHDRAWN, "", now)
        return decided

    def _open_if_possible(self, checkpoint: Checkpoint, now: float) -> None:
        if checkpoint.missing or checkpoint.inside.truth is not Truth.TRUE:
            return
        checkpoint.open(now)
        self._save(checkpoint)
        self._reserve(checkpoint)

    # --- answering ----------------------------------------------------------------------------------------------------

    def answer(self, event: ev.AnswerGiven, now: float) -> list[Condition]:
        """Take the first answer in time to the question as it is now; refuse every other one."""
        checkpoint = self.all.get(event.checkpoint)
        decided: list[Condition] = []
        if checkpoint is not None and (old := stale(checkpoint, event.generation)) is not None:
            self._emit(do.RefuseAnswer(event.token, event.checkpoint, event.value, *old))
            return []
        if checkpoint is not None and checkpoint.state is CheckpointState.OPEN:
            if not checkpoint.deadline or event.at <= checkpoint.deadline:
                return self._close(checkpoint, CheckpointState.ANSWERED, event.value, now, event.token)
            decided = self._expire(checkpoint, now)
        code, message = refusal(checkpoint)
        self._emit(do.RefuseAnswer(event.token, event.checkpoint, event.value, code, message))
        return decided

    def withdraw(self, event: ev.WithdrawCheckpoint, now: float) -> list[Condition]:
        """Take a request back, or end its reservation."""
        checkpoint = self.all.get(event.checkpoint)
        if checkpoint is None:
            return []
        if event.reservation_only:
            self._unreserve(checkpoint)
        elif not checkpoint.state.closed:
            return self._close(checkpoint, CheckpointState.WITHDRAWN, "", now)
        return []

    def tick(self, now: float) -> list[Condition]:
        """Let deadlines and lingering reservations pass."""
        decided = self.settle(now)
        for checkpoint in self.all.due(now):
            decided += self._expire(checkpoint, now)
        for checkpoint in self.all.lapsed(now):
            self._unreserve(checkpoint)
        return decided

    def _expire(self, checkpoint: Checkpoint, now: float) -> list[Condition]:
        return self._close(checkpoint, CheckpointState.EXPIRED, checkpoint.ask.default, now)

    def _close(
        self, checkpoint: Checkpoint, state: CheckpointState, answer: str, now: float, token: int = 0
    ) -> list[Condition]:
        checkpoint.close(state, answer, now)
        self._save(checkpoint, token)
        if answer:
            if checkpoint.reserved_on:
                self.lingering.append(checkpoint)
            return self._conditions.answer(checkpoint.number, answer)
        return self._conditions.close(checkpoint.number)

    def _save(self, checkpoint: Checkpoint, token: int = 0) -> None:
        self._emit(
            do.SaveCheckpoint(
                checkpoint.number,
                checkpoint.state,
                checkpoint.answer,
                checkpoint.opened,
                checkpoint.deadline,
                checkpoint.generation,
                checkpoint.reopened,
                token,
            )
        )

    # --- reservations -------------------------------------------------------------------------------------------------

    def kept_for(self, bulk: Bulk, pilot: int) -> int:
        """Return the answered request whose reserved slots on a pilot a needed bulk may use, 0 for none.

        That is: what assumed the answer, and plain work that was submitted after it. Older work waits, as before.
        """
        terms = bulk.condition.terms
        for checkpoint in self.lingering:
            if checkpoint.reserved_on != pilot:
                continue
            named = any(term.checkpoint & NUMBER_MASK == checkpoint.number for term in terms)
            if named or (not terms and bulk.at >= checkpoint.closed):
                return checkpoint.number
        return 0

    def pilot_ready(self, pilot: Pilot) -> None:
        """Tell a pilot (again) what it keeps; give it what no other pilot keeps."""
        for checkpoint in self.all:
            if checkpoint.reserved_on == pilot.number and checkpoint.reserve is not None:
                self._emit(do.KeepReservation(pilot.number, checkpoint.number, checkpoint.reserve, self._lends))
            else:
                self._reserve(checkpoint)

    def pilot_lost(self, pilot: int) -> None:
        """Reservations lapse with their pilot; another one takes over those of open requests."""
        for checkpoint in self.all:
            if checkpoint.reserved_on == pilot:
                checkpoint.reserved_on = 0
                self._reserve(checkpoint)

    def _reserve(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state is not CheckpointState.OPEN or checkpoint.reserve is None or checkpoint.reserved_on:
            return
        for pilot in self._pilots.values():
            if pilot.active:
                checkpoint.reserved_on = pilot.number
                self._emit(do.KeepReservation(pilot.number, checkpoint.number, checkpoint.reserve, self._lends))
                return

    def lend(self, *, lends: bool) -> None:
        """Let reserved slots be lent to lower tiers, or to nobody, from now on."""
        if lends == self._lends:
            return
        self._lends = lends
        for checkpoint in self.all:
            if checkpoint.reserved_on and checkpoint.reserve is not None:
                kept = do.KeepReservation(checkpoint.reserved_on, checkpoint.number, checkpoint.reserve, lends)
                self._emit(kept)

    def _unreserve(self, checkpoint: Checkpoint) -> None:
        checkpoint.unreserve_at = 0.0
        if checkpoint in self.lingering:
            self.lingering.remove(checkpoint)
        if checkpoint.reserved_on:
            self._emit(do.KeepReservation(checkpoint.reserved_on, checkpoint.number, None))
            checkpoint.reserved_on = 0
        checkpoint.reserve = None
