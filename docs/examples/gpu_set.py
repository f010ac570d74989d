"""A set of tasks on GPUs: whole devices, shares of one, and "one GPU, or four cores".

    python gpu_set.py               two pretended GPUs of this machine: nothing here looks at a device
    python gpu_set.py slurm 2       two nodes of a Slurm cluster with all their GPUs

Each task prints the devices that it may see. Tasks that run at the same time never see the same whole device; those
that ask for a quarter share one, four at a time.
"""

from __future__ import annotations

import os
import socket
import sys
import time

import pilot_hitl as ph

SEE = 'echo "$(hostname) CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"; sleep 0.3'


def where(kind: str) -> tuple[str, str, str, float, float]:
    """Return what the call sees, and when it ran."""
    began = time.time()
    time.sleep(0.3)
    return kind, socket.gethostname(), os.environ.get("CUDA_VISIBLE_DEVICES", ""), began, time.time()


def main(resource: str = "local", nodes: str = "1") -> None:
    """Run the set, and check who had what at the same time."""
    with ph.Session("gpu-set", fresh=True) as session:
        if resource == "local":
            asked = ph.PilotDescription(resource="local", cores=8, gpus=2, runtime=10)
        else:
            asked = ph.PilotDescription(resource=resource, nodes=int(nodes), gpus=2 * int(nodes), runtime=10)
        pilot = session.submit_pilot(asked)
        pilot.wait_ready()
        devices = sum(len(node.gpus) for node in pilot.nodes)
        print(f"{devices} GPUs on {len(pilot.nodes)} nodes", flush=True)
        programs = session.submit(
            [ph.TaskDescription(executable="/bin/sh", arguments=["-c", SEE], gpus_per_rank=1)] * devices
        )
        for program in programs:
            print("whole:", program.result().stdout.strip(), flush=True)
        whole = session.options(gpus=1).map(where, ["whole"] * 2 * devices)
        shared = session.options(gpus=0.25).map(where, ["quarter"] * 4 * devices)
        either = session.options(gpus=1, alternatives=[ph.Resources(cores=4)]).map(where, ["either"] * 2 * devices)
        found = [call.result() for call in (*whole, *shared, *either)]
        for kind, host, seen, _began, _ended in sorted(found)[:: max(1, devices // 2)]:
            print(f"{kind:8} {host}: {seen or 'four cores instead'}")
        print(f"together at most: {most_at_once(found)} on one device")


def most_at_once(found: list[tuple[str, str, str, float, float]]) -> str:
    """Return how many calls of each kind had the same device at the same time, at most."""
    most: dict[str, int] = {}
    for kind, host, device, began, _ended in found:
        together = sum(1 for k, h, d, b, e in found if (k, h, d) == (kind, host, device) and d and b <= began < e)
        if device:
            most[kind] = max(most.get(kind, 0), together)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(most.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
