"""The executable: ``python -m pilot_hitl.cli.demo_study.simulate --feed 0.03 --kill 0.06 --out result.npz``.

Simulates one point of the parameter plane and writes what ``v`` looks like at the end and ``--window`` steps before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pilot_hitl.cli.demo_study import model


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the result is at ``--out`` whole or not at all."""
    parser = argparse.ArgumentParser(prog="simulate", description="One Gray-Scott simulation.")
    parser.add_argument("--feed", type=float, required=True, help="feed rate F")
    parser.add_argument("--kill", type=float, required=True, help="removal rate k")
    parser.add_argument("--seed", type=int, default=0, help="of the initial state")
    parser.add_argument("--cells", type=int, default=64, help="the square has cells x cells")
    parser.add_argument("--steps", type=int, default=4500, help="time steps before the last look")
    parser.add_argument("--window", type=int, default=300, help="time steps between the last two looks")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    given = parser.parse_args(arguments)
    if not 4 <= given.cells <= 4096 or not 0 <= given.window <= given.steps:
        parser.error("--cells must be between 4 and 4096, --window between 0 and --steps")
    before, after = trajectory(given.feed, given.kill, given.seed, given.cells, given.steps, given.window)
    part: Path = given.out.with_name(f"{given.out.name}.part")
    with part.open("wb") as file:
        np.savez(file, parameters=np.array([given.feed, given.kill]), before=before, after=after)
    part.replace(given.out)
    print(f"F={given.feed:.5f} k={given.kill:.5f} mean v={after.mean():.5f} contrast={after.std():.5f}")


def trajectory(
    feed: float, kill: float, seed: int, cells: int, steps: int, window: int
) -> tuple[model.Field, model.Field]:
    """Return ``v`` at ``steps - window`` and at ``steps`` time steps after the initial state of this seed."""
    before = model.advance(model.initial_state(cells, seed), feed, kill, steps - window)
    return before.v, model.advance(before, feed, kill, window).v


if __name__ == "__main__":
    main()
