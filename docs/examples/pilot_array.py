"""Several small pilots instead of a large one: they wait in the queue as one job array, and serve one session.

    python pilot_array.py           four pilots of this machine
    python pilot_array.py slurm     four jobs of one node each, in one array

Tasks are bound late: whichever pilot starts first takes what there is, and one that comes later takes its share of the
rest. Small jobs start earlier than one large one where the queue is full.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import Counter

import pilot_hitl as ph

PILOTS = 4


def sample(number: int) -> tuple[str, str, int]:
    """Return which pilot ran this, where, and a result."""
    time.sleep(0.05)  # as if it were work
    return os.environ["PILOT_HITL_PILOT"], socket.gethostname(), number * number


def main(resource: str = "local") -> None:
    """Ask for the pilots at once, and let them share the work."""
    with ph.Session("pilot-array", fresh=True) as session:
        if resource == "local":
            one = ph.PilotDescription(resource="local", cores=1, runtime=10)
        else:
            one = ph.PilotDescription(resource=resource, nodes=1, runtime=10)
        pilots = session.submit_pilots([one] * PILOTS)
        calls = session.map(sample, range(200))
        results = [call.result() for call in calls]
        for pilot in pilots:
            print(f"pilot {pilot.number}: {pilot.state.name}", flush=True)
        shares = Counter(number for number, _host, _result in results)
        for number, share in sorted(shares.items()):
            hosts = ", ".join(sorted({host for mine, host, _ in results if mine == number}))
            print(f"pilot {number} ran {share} of {len(results)} tasks on {hosts}")
        print(f"sum {sum(result for _number, _host, result in results)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
