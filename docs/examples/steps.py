"""Several decisions in a row: the script goes on under the likely answers, question after question.

A polynomial gets one term more as long as somebody says "more". Run it, and answer from another terminal what
`pilot-hitl inbox list` shows; or let it answer itself: `python steps.py 1` says "more" twice and then "enough", each a
second after it is asked.
"""

from __future__ import annotations

import math
import sys
import threading
import time

import pilot_hitl as ph

MOST = 8
POINTS = [index / 50 for index in range(101)]


def error_of(terms: int) -> float:
    """Return how far the Taylor polynomial of so many terms is from the exponential on [0, 2], at most."""
    time.sleep(0.3)  # as if it were work
    return max(abs(math.exp(x) - sum(x**n / math.factorial(n) for n in range(terms))) for x in POINTS)


def refine(scope: ph.Session | ph.Branch, terms: int, asked: list[ph.Checkpoint]) -> tuple[int, float]:
    """Compute, ask whether that is enough, and meanwhile go on as if it were not."""
    error = scope.call(error_of, terms).result()
    if terms == MOST:
        return terms, error
    question = f"{terms} terms: an error of {error:.1e}. Is that small enough?"
    checkpoint = scope.checkpoint("terms", iteration=terms, question=question, choices=["enough", "more"])
    asked.append(checkpoint)

    @checkpoint.on("more", probability=0.8)
    def better(branch: ph.Branch) -> tuple[int, float]:
        # Nobody has answered yet: values in here are held ones, and all that is submitted and asked assumes "more".
        return refine(branch, terms + 1, asked)

    return better.result() if checkpoint.result() == "more" else (terms, error)


def main() -> None:
    """Go on until somebody is content."""
    with ph.Session("steps", fresh=True) as session:
        session.submit_pilot(ph.PilotDescription(resource="local", cores=2, runtime=10))
        asked: list[ph.Checkpoint] = []
        if len(sys.argv) > 1:
            threading.Thread(target=respond, args=(asked, float(sys.argv[1])), daemon=True).start()
        else:
            print("answer what 'pilot-hitl inbox list' shows with: pilot-hitl inbox answer ID more|enough", flush=True)
        terms, error = refine(session, 3, asked)
        print(f"{terms} terms, an error of {error:.1e}; {len(asked)} questions were ready, {answered(asked)} answered")


def respond(asked: list[ph.Checkpoint], after: float) -> None:
    """Answer in place of a person."""
    for number, answer in enumerate(("more", "more", "enough")):
        while len(asked) <= number or asked[number].state is not ph.CheckpointState.OPEN:
            time.sleep(0.05)
        time.sleep(after)
        asked[number].respond(answer, "by the script itself")


def answered(asked: list[ph.Checkpoint]) -> int:
    """Count the questions that somebody answered."""
    return sum(each.state is ph.CheckpointState.ANSWERED for each in asked)


if __name__ == "__main__":
    main()
