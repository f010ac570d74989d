"""Let the state machines of the unit tests look for histories that nobody has seen, for a while.

    tools/search SECONDS [pytest arguments]

Every round is a run of those tests with another seed. The first that fails ends the search, and says how to repeat it.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence

from tools.flaky import ROOT, SEED

SEARCHING = ("hypothesis.stateful", "seeds.first(")
"""What stands in a file of tests that tells long stories, other ones with another seed."""


def searching_tests() -> list[str]:
    """Return the files of unit tests that tell such stories."""
    found = sorted((ROOT / "tests/unit").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in found if any(word in path.read_text() for word in SEARCHING)]


def main(arguments: Sequence[str]) -> int:
    """Search; return 0 when the time is over and nothing was found."""
    if not arguments or not arguments[0].isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    until = time.monotonic() + int(arguments[0])
    files, rounds = searching_tests(), 0
    while time.monotonic() < until:
        seed = secrets.randbelow(1 << 30)
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", *(arguments[1:] or ["-n", "2"]), *files]
        print(f"search: round {rounds + 1}, {SEED}={seed}", flush=True)
        ended = subprocess.run(command, cwd=ROOT, env={**os.environ, SEED: str(seed)}, check=False).returncode
        if ended:
            print(f"search: found in round {rounds + 1}; again with {SEED}={seed} {' '.join(command[1:])}")
            return ended
        rounds += 1
    print(f"search: nothing in {rounds} rounds of {len(files)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
