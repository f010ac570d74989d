"""What one run of a script took over of earlier runs, as data and in one line."""

from __future__ import annotations

import msgspec

SHOWN = 3
"""How many changed files, and how many changed functions, the line names."""


class Tally(msgspec.Struct):
    """What one run of a script took over, and what it did not.

    Attributes:
        reused: results of earlier runs.
        kept: failures of earlier runs.
        failed: tasks that failed before and run again.
        gone: tasks whose results are gone, and run again.
        missing: what is gone of the first of them.
        files: by path: how many tasks run again because it changed, and how it did.
        code: by what changed: how many calls run again.
    """

    reused: int = 0
    kept: int = 0
    failed: int = 0
    gone: int = 0
    missing: str = ""
    files: dict[str, tuple[int, str]] = {}
    code: dict[str, int] = {}

    def describe(self, session: str) -> str:
        """Return it in one line; empty when nothing was to be taken over."""
        said = []
        if self.reused:
            said.append(f"{_count(self.reused, 'result')} of earlier runs {_were(self.reused)} there")
        if self.kept:
            said.append(f"{_count(self.kept, 'failure')} of earlier runs {_were(self.kept)} kept")
        again = [(count, what) for count, what in self.files.values()]
        again += [(count, f"the code of {what} changed") for what, count in self.code.items()]
        again.sort(key=lambda pair: -pair[0])
        said += [f"{_runs_again(count)}: {what}" for count, what in again[:SHOWN]]
        if more := len(again) - SHOWN:
            said += [f"others run again because of {more} more changes"] if more > 0 else []
        if self.gone:
            gone = f"{self.missing} is gone" if self.gone == 1 else f"what they left is gone, as {self.missing}"
            said.append(f"{_runs_again(self.gone)}: {gone}")
        if self.failed:
            said.append(
                f"{_runs_again(self.failed)} after a failure in an earlier run (retry_failed=False keeps those)"
            )
        return f"pilot-hitl: session {session!r}: {'; '.join(said)}" if said else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _runs_again(number: int) -> str:
    return f"{_count(number, 'task')} run{'s' if number == 1 else ''} again"
