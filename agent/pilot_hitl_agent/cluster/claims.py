"""Who is agent, as files on the file system that all nodes share: ``agents/<term>`` and ``agents/<term>.beat``.

A claim is a file that can be made once: it is written under another name and linked, which fails when somebody was
faster, on NFS and parallel file systems as well. The highest term counts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import msgspec

from pilot_hitl.wire.cluster import Claim


class Claims:
    """The claims of one pilot."""

    def __init__(self, folder: Path, job: str) -> None:
        """Use ``agents`` below the pilot's ``folder``; claims of another ``job`` (or an earlier run of it) are void."""
        self._folder = folder / "agents"
        self._job = job

    def latest(self) -> Claim | None:
        """Return the claim that counts, None when this job has none."""
        term = self._highest()
        if not term:
            return None
        try:
            claim = msgspec.json.decode((self._folder / str(term)).read_bytes(), type=Claim)
        except (OSError, msgspec.MsgspecError):
            return None
        return claim if claim.job == self._job else None

    def next_term(self) -> int:
        """Return the lowest term that nobody had; terms go on over restarts of the job."""
        return self._highest() + 1

    def claim(self, claim: Claim) -> bool:
        """Become agent; False when somebody else has this term."""
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".{claim.term}.{secrets.token_hex(6)}"
        partial.write_bytes(msgspec.json.encode(claim))
        try:
            os.link(partial, self._folder / str(claim.term))
        except FileExistsError:
            return False
        finally:
            partial.unlink()
        return True

    def beat(self, term: int, number: int) -> None:
        """Show that the agent of a term lives. A file system that refuses is passed over: others will notice."""
        with contextlib.suppress(OSError):
            (self._folder / f"{term}.beat").write_text(str(number), encoding="ascii")

    def beat_of(self, term: int) -> int:
        """Return the last beat, 0 when there is none."""
        try:
            return int((self._folder / f"{term}.beat").read_text(encoding="ascii") or 0)
        except (OSError, ValueError):
            return 0

    def _highest(self) -> int:
        try:
            names = os.listdir(self._folder)
        except OSError:
            return 0
        return max((int(name) for name in names if name.isdigit()), default=0)
