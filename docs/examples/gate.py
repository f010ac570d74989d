"""A decision in the middle: while the person thinks, the work of the likely answer is done already.

Run it, and answer from another terminal: `pilot-hitl inbox answer gate/1 fine`. Or let it answer itself after some
seconds: `python gate.py 5`. With the likely answer the result is there at once; with `coarse` it is computed then.
"""

from __future__ import annotations

import sys
import threading
import time

import pilot_hitl as ph


def simpson(intervals: int) -> float:
    """Return the integral of 4 / (1 + x^2) from 0 to 1, which is pi."""
    h = 1.0 / intervals
    total = sum(
        (1 if i in (0, intervals) else 4 if i % 2 else 2) * 4.0 / (1.0 + (i * h) ** 2) for i in range(intervals + 1)
    )
    return total * h / 3.0


def best(values: list[float]) -> tuple[float, float]:
    """Return the finer of two values, and how far apart they are."""
    return values[-1], abs(values[-1] - values[-2])


def main() -> None:
    """Probe, ask, go on."""
    with ph.Session("gate", fresh=True) as session:
        session.submit_pilot(ph.PilotDescription(resource="local", cores=2, runtime=10))
        probes = session.map(simpson, [10, 100, 1000]).results()

        checkpoint = session.checkpoint(
            "resolution",
            question="How fine shall the integral be?",
            choices=["fine", "coarse"],
            show=[{"intervals": [10, 100, 1000], "value": probes}],
            deadline="1h",
            default="coarse",
        )
        # Both branches are submitted now. They run while nobody has answered yet, the likelier one first, and count
        # only if the answer is theirs.
        fine = checkpoint.branch("fine", probability=0.8)
        coarse = checkpoint.branch("coarse", probability=0.2)
        chosen = checkpoint.select(
            {
                "fine": fine.call(best, fine.map(simpson, [2_000_000, 4_000_000])),
                "coarse": coarse.call(best, coarse.map(simpson, [2_000, 4_000])),
            }
        )

        checkpoint.wait_number()
        print(f"answer with: pilot-hitl inbox answer {checkpoint.id} fine", flush=True)
        if len(sys.argv) > 1:
            answer = sys.argv[2] if len(sys.argv) > 2 else "fine"
            timer = threading.Timer(float(sys.argv[1]), checkpoint.respond, (answer, "by the script itself"))
            timer.daemon = True
            timer.start()
        given = checkpoint.answer()
        value, error = chosen.result()
        waited = time.time() - given.at
        print(f"{given.value} by {given.by}: pi is {value:.13f} ± {error:.0e}, {waited:.3f} s after the answer")


if __name__ == "__main__":
    main()
