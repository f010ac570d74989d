"""A pilot that renews itself: `python renew.py 2` runs it with two minutes of wall time for twice as long.

Needs Slurm. What is pinned to the pilot by name goes on with its successor, and nothing is computed twice.
"""

from __future__ import annotations

import os
import sys
import time

import pilot_hitl as ph


def step(number: int) -> int:
    """One of many steps; returns the pilot that it ran on."""
    del number
    time.sleep(1)
    return int(os.environ["PILOT_HITL_PILOT"])


def main() -> None:
    """Run steps, one after the other, for longer than one job lasts."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    end = time.monotonic() + 2 * minutes * 60
    with ph.Session("renew") as session:
        session.submit_pilot(ph.PilotDescription(resource="slurm", nodes=1, runtime=minutes, renew=True, name="row"))
        row = session.options(pilot="row", expected_runtime=1)
        last = number = 0
        while time.monotonic() < end:
            number += 1
            pilot = row.call(step, number).result()
            if pilot != last:
                print(f"step {number} runs on pilot {pilot}", flush=True)
                last = pilot
        print(f"{number} steps")


if __name__ == "__main__":
    main()
