"""Four pilots serve one session: `python many_pilots.py slurm`, where they are one job array; else all on this machine.

Each starts when there is room for it; the tasks do not wait for the last one.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter

import pilot_hitl as ph

PILOTS = 4


def work(seconds: float) -> str:
    """Take a while, and tell which pilot it was."""
    time.sleep(seconds)
    return f"pilot {os.environ['PILOT_HITL_PILOT']}"


def main() -> None:
    """Ask for the pilots, run sixty calls, and tell who did how many."""
    resource = sys.argv[1] if len(sys.argv) > 1 else "local"
    asked = ph.PilotDescription(resource=resource, cores=1, runtime=5)
    with ph.Session("many-pilots") as session:
        pilots = session.submit_pilots([asked] * PILOTS)
        for pilot in pilots:
            pilot.wait_ready(300)
        done = Counter(call.result() for call in session.options(retries=1).map(work, [0.2] * 60))
        for name, count in sorted(done.items()):
            print(f"{name}: {count} calls")


if __name__ == "__main__":
    main()
