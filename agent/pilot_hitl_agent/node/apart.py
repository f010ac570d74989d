"""Folders of calls that run ahead of a decision: each attempt has one of its own, and nobody else looks into it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pilot_hitl.model.ids import task_name
from pilot_hitl.wire.node import Launch
from pilot_hitl_agent.node.sandboxes import Sandboxes


class Apart:
    """Makes the folders of one node's speculative calls, and knows what is to become of what they leave there."""

    def __init__(self, tasks: Path, node: int) -> None:
        """Make folders below ``tasks``, where those of executables are too; ``node`` is the number of this node."""
        self._sandboxes = Sandboxes(tasks)
        self._node = node
        self._folders: dict[int, tuple[str, Launch]] = {}
        self._kept: dict[int, list[str]] = {}
        self._dropped = 0
        self.unwanted: list[str] = []
        """What may be removed; whoever does it empties this."""

    def __bool__(self) -> bool:
        """Return whether any attempt is apart now."""
        return bool(self._folders)

    def begin(self, launch: Launch) -> str:
        """Return the folder that an attempt runs in; empty for a needed one, whose files are everybody's.

        One that cannot be made is not there: who enters it finds out, and says so.
        """
        if not launch.condition:
            return ""
        folder = self._sandboxes.path(task_name(launch.task), launch.epoch, launch.run)
        self._folders[launch.task] = (folder, launch)
        if launch.ranks <= 1:
            with contextlib.suppress(OSError):
                self._sandboxes.make(folder)
        elif len(launch.layout) < 2 and os.path.isdir(folder):  # once a task: a Path costs as much as the call
            # Its ranks died, and it is started once more. (On several nodes each rank makes it where it is.)
            self._drop(folder)
        return folder

    def ended(self, task: int, *, good: bool) -> str:
        """Take the end of an attempt.

        Returns:
            Of a good one its folder when there is something in it, which may come to count; of any other the folder
            that it ran in. Empty when it was not apart.
        """
        found = self._folders.pop(task, None)
        if found is None:
            return ""
        folder, launch = found
        if launch.ranks > 1 and not launch.leads(self._node):
            return ""
        left = self._leave(folder) if launch.ranks > 1 else self._sandboxes.leave(folder)
        # What other nodes wrote may not be seen here yet, so it is taken for more than nothing.
        left = left or len(launch.layout) > 1
        if left and good:
            self._kept.setdefault(launch.condition, []).append(folder)
        elif left:
            self._drop(folder)
        return folder if left or not good else ""

    def back(self, task: int) -> None:
        """Take back what was not begun."""
        found = self._folders.pop(task, None)
        if found is not None and found[1].ranks <= 1:
            self._sandboxes.leave(found[0])

    def settle(self, condition: int, *, truth: bool) -> None:
        """A condition was decided: what was left under a false one is nobody's."""
        kept = self._kept.pop(condition, [])
        if not truth:
            self.unwanted += kept

    def close(self) -> None:
        """Remove what is empty."""
        self._sandboxes.close()

    def _leave(self, folder: str) -> bool:
        """Remove the folder of several ranks if it is empty; return whether something is in it."""
        try:
            os.rmdir(folder)  # as above
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def _drop(self, folder: str) -> None:
        """Put a folder aside for removal: the attempt may be started once more under its number."""
        self._dropped += 1
        aside = f"{folder}.dropped.{self._dropped}"
        with contextlib.suppress(OSError):
            os.rename(folder, aside)  # as above
            self.unwanted.append(aside)
