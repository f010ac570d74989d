"""Tasks in all their forms: programs that hand over files, calls, what they write, how they fail, other interfaces.

Each function below is a section of the guide's page *Tasks*. Run it twice: what succeeded is not done again.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

import pilot_hitl as ph


def hand_over(session: ph.Session) -> None:
    """One program takes files out of another one's folder; a third sees variables and shell lines."""
    numbers = session.submit(
        ph.TaskDescription(executable="sh", arguments=["-c", "seq 1 $COUNT > numbers.txt"], environment={"COUNT": "12"})
    )
    largest = session.submit(
        ph.TaskDescription(
            executable="sort",
            arguments=["-n", "-r", "numbers.txt", "-o", "sorted.txt"],
            input_staging=[(numbers, "numbers.txt")],  # also a dependency
            output_staging=["sorted.txt > session:///results/"],
        )
    )
    (path,) = largest.result().outputs
    print("largest:", Path(path).read_text().split()[0])

    literal = session.submit(
        ph.TaskDescription(
            executable="echo",
            arguments=["$UNIT", "~", "*"],  # no shell looks at these
            pre_exec=["export UNIT=metre"],
            post_exec=['echo "in $UNIT"'],
        )
    )
    print("written:", literal.result().stdout.split("\n")[:2])


def half(x: int, *, cores: int = 1) -> float:
    """Halve a number; the keyword is its own, and nothing that `call` looks at."""
    print(f"half of {x}, {cores} cores are just a word")
    return x / 2


def read(path: str) -> int:
    """Return how many lines a file has."""
    return len(Path(path).read_text().splitlines())


def calls(session: ph.Session) -> None:
    """Calls, their options, what they print, and a key that follows a file's content."""
    small = session.options(name="small half", timeout=60, retries=1)
    future = small.call(half, 7, cores=3)
    print("call:", future.result(), "|", future.stdout.strip())

    data = session.folder / "data.txt"
    data.write_text("one\ntwo\n")
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    print("lines:", session.options(key=f"read {digest}").call(read, str(data)).result())


def leave() -> None:
    """End with an exit code, as a program would."""
    sys.exit("no licence")


def failures(session: ph.Session) -> None:
    """How tasks fail, and what follows them."""
    program = session.submit(
        ph.TaskDescription(executable="sh", arguments=["-c", "echo half way; exit 3"], name="solver")
    )
    after = session.call(str, program)  # a future as argument: a dependency
    for future in (program, after, session.call(leave), session.call(int, "seven")):
        try:
            future.result()
        except ph.DependencyFailed as error:
            print(f"DependencyFailed: {error.root == program.task}, because of {type(error.__cause__).__name__}")
        except ph.TaskFailed as error:
            print(f"TaskFailed: {error.args[0]}; exit code {error.exit_code}, stdout {error.stdout!r}")
        except ValueError as error:
            print("ValueError:", error)


def interfaces(session: ph.Session) -> None:
    """The same calls through concurrent.futures, asyncio and our own waits."""
    with ph.PilotExecutor(session, max_workers=2) as executor:
        print("executor:", list(executor.map(half, range(3))))

    async def study() -> list[float]:
        return await asyncio.gather(*(session.call(half, x) for x in (10, 20)))

    print("asyncio:", asyncio.run(study()))
    halves = session.map(half, range(100))
    print("as_completed:", sum(future.result() for future in ph.as_completed(halves)))


def main() -> None:
    """Do all of it in one session."""
    with ph.Session("tasks") as session:
        session.submit_pilot(ph.PilotDescription(resource="local", cores=2, runtime=10))
        for section in (hand_over, calls, failures, interfaces):
            section(session)
        session.wait()


if __name__ == "__main__":
    main()
