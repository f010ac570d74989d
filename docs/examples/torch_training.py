"""Distributed training with a question between its epochs, which goes on while nobody has answered yet.

    python torch_training.py                  two ranks on this machine; answer what `pilot-hitl inbox list` shows
    python torch_training.py slurm 2          the same on two nodes of a Slurm cluster, two ranks each
    python torch_training.py local 1 0.5      answers "go on" and then "stop" by itself, half a second later each

Each epoch is a task of several ranks: this file, started as `torch_training.py train …`. Its ranks find each other by
what every task of several ranks is told (MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE), train one model together with
torch.distributed, and leave it as `model.pt` in the task's folder, where the next epoch takes it from. So nothing has
to stay in memory while somebody thinks, and a run that is started again trains nothing twice.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pilot_hitl as ph

MOST = 6
STEPS = 60


def train(epoch: int, before: str) -> None:
    """The program of one rank: one epoch of learning sin(x), data in parallel."""
    import torch
    from torch import distributed, nn

    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    if before:
        model.load_state_dict(torch.load(Path(before) / "model.pt", weights_only=True))

    def learn() -> float:
        # What wraps the model holds the process group, whose threads only end with the last who holds it: had they to
        # be ended by the end of the interpreter, the rank would abort now and then. So it lives in here alone.
        together = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.Adam(together.parameters(), lr=0.01)
        # Each rank has a part of the data of its own; gradients are averaged over all of them.
        x = torch.linspace(-3.0, 3.0, 256 * size)[rank::size].unsqueeze(1)
        loss = torch.zeros(())
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(together(x), torch.sin(x))
            loss.backward()
            optimizer.step()
        average = loss.detach().clone()
        distributed.all_reduce(average)
        return float(average / size)

    loss = learn()
    if rank == 0:
        torch.save(model.state_dict(), "model.pt")
        Path("loss.txt").write_text(f"{loss:.6f}\n")
        print(f"epoch {epoch}: {size} ranks, loss {loss:.6f}")
    distributed.barrier()
    distributed.destroy_process_group()


def go_on(
    scope: ph.Session | ph.Branch, ranks: int, epoch: int, before: str, asked: list[ph.Checkpoint]
) -> tuple[int, float]:
    """Train an epoch, ask, and meanwhile train the next one."""
    task = ph.TaskDescription(
        executable=sys.executable,
        arguments=[str(Path(__file__).resolve()), "train", str(epoch), before],
        name=f"epoch-{epoch}",
        ranks=ranks,
        ranks_per_node=2,
        timeout=120,
    )
    folder = scope.submit(task).result().sandbox
    loss = float((Path(folder) / "loss.txt").read_text())
    if epoch == MOST:
        return epoch, loss
    checkpoint = scope.checkpoint(
        "go-on", iteration=epoch, question=f"Epoch {epoch}: loss {loss:.6f}. Go on?", choices=["go on", "stop"]
    )
    asked.append(checkpoint)

    @checkpoint.on("go on", probability=0.9)
    def further(branch: ph.Branch) -> tuple[int, float]:
        # Runs on free cores while nobody has answered; counts only if the answer is "go on".
        return go_on(branch, ranks, epoch + 1, folder, asked)

    return further.result() if checkpoint.result() == "go on" else (epoch, loss)


def main(resource: str = "local", nodes: str = "1", answers_after: str = "") -> None:
    """Train until somebody says stop."""
    count = int(nodes)
    with ph.Session("torch-training") as session:
        if resource == "local":
            session.submit_pilot(ph.PilotDescription(resource="local", cores=2, runtime=10))
        else:
            session.submit_pilot(ph.PilotDescription(resource=resource, nodes=count, runtime=10))
        asked: list[ph.Checkpoint] = []
        if answers_after:
            threading.Thread(target=respond, args=(asked, float(answers_after)), daemon=True).start()
        else:
            print("answer what 'pilot-hitl inbox list' shows with: pilot-hitl inbox answer ID 'go on'|stop", flush=True)
        epochs, loss = go_on(session, 2 * count, 1, "", asked)
        print(f"{epochs} epochs count, loss {loss:.6f}; {len(asked)} were trained when it was over")


def respond(asked: list[ph.Checkpoint], after: float) -> None:
    """Answer in place of a person."""
    for number, answer in enumerate(("go on", "stop")):
        while len(asked) <= number or asked[number].state is not ph.CheckpointState.OPEN:
            time.sleep(0.05)
        time.sleep(after)
        asked[number].respond(answer, "by the script itself")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train(int(sys.argv[2]), sys.argv[3])
    else:
        main(*sys.argv[1:])
