"""A pilot that renews itself: a study that lasts longer than any wall time that the queue allows.

    python renewing_pilot.py            on this machine, where nothing needs renewing
    python renewing_pilot.py slurm 2    jobs of one node with two minutes each, for a study of three

Shortly before a job's wall time ends its successor is submitted. What cannot end in time is not begun any more, what is
cut off is *unfinished*, not failed, and runs again under the successor: each result is recorded once.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter

import pilot_hitl as ph

STEP = 5.0


def step(number: int, seconds: float) -> tuple[str, int]:
    """Return which pilot ran a step, after some work."""
    time.sleep(seconds)
    return os.environ["PILOT_HITL_PILOT"], number


def main(resource: str = "local", minutes: str = "2", study: str = "3") -> None:
    """Run steps for longer than one pilot lives."""
    length, total = float(minutes), float(study)
    seconds = 0.1 if resource == "local" else STEP
    steps = 20 if resource == "local" else int(total * 60 / STEP)
    with ph.Session("renewing", fresh=True) as session:
        if resource == "local":
            asked = ph.PilotDescription(resource="local", cores=1, runtime=length)
        else:
            asked = ph.PilotDescription(resource=resource, nodes=1, cores=1, runtime=length, renew=True, name="long")
        session.submit_pilot(asked)
        calls = session.options(expected_runtime=seconds).map(step, range(steps), [seconds] * steps)
        done = []
        for call in calls:
            done.append(call.result())
            if len(done) % max(1, steps // 8) == 0:
                print(f"step {len(done)} of {steps} by pilot {done[-1][0]}", flush=True)
        for number, share in sorted(Counter(pilot for pilot, _step in done).items()):
            print(f"pilot {number} ran {share} steps")
        print("each step once:", sorted(number for _pilot, number in done) == list(range(steps)))


if __name__ == "__main__":
    main(*sys.argv[1:])
