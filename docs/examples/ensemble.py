"""An ensemble: programs, functions over their results, and resuming. Run it twice: the second time nothing runs again.

Which noise level takes a random walk farthest from where it began? Each walk is a program of its own; this file is that
program too, when it is started as `python ensemble.py walk NOISE SEED`.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path

import pilot_hitl as ph

NOISES = [0.5, 1.0, 2.0, 4.0]
WALKS = 8


def walk(noise: float, seed: int) -> None:
    """The program: write how far one walk got."""
    dice = random.Random(seed)  # a simulation, nothing secret
    place = sum(dice.gauss(0.0, noise) for _ in range(100_000))
    Path("distance.txt").write_text(f"{abs(place)}\n")
    print(f"noise {noise}, seed {seed}: {abs(place):.1f}")


def mean_distance(noise: float, walks: list[ph.Completed]) -> tuple[float, float]:
    """A function task: it gets what the programs left, among it their sandboxes with the files that they wrote."""
    distances = [float((Path(done.sandbox) / "distance.txt").read_text()) for done in walks]
    return noise, statistics.fmean(distances)


def main() -> None:
    """Submit everything, print the result."""
    began = time.monotonic()
    with ph.Session("ensemble") as session:
        session.submit_pilot(ph.PilotDescription(resource="local", cores=2, runtime=10))
        means = []
        for noise in NOISES:
            walks = session.submit(
                [
                    ph.TaskDescription(executable=sys.executable, arguments=[__file__, "walk", str(noise), str(seed)])
                    for seed in range(WALKS)
                ]
            )
            # Futures as arguments are dependencies: this runs when these eight walks are done.
            means.append(session.call(mean_distance, noise, walks))
        for future in means:
            noise, distance = future.result()
            print(f"noise {noise}: mean distance {distance:8.1f}")
        print(f"{time.monotonic() - began:.1f} s, {session.reused} results were there from earlier runs")


if __name__ == "__main__":
    if sys.argv[1:2] == ["walk"]:
        walk(float(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
