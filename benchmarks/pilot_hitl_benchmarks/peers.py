"""The servers beside ours, each run as a script of its own: ``python -m pilot_hitl_benchmarks.peers WHAT PLACE MODEL``.

A bare ZeroMQ server with the same greedy batching is the limit; mosec (batching off and on) and FastAPI are what a user
would pick instead. All speak pickled arrays, so that none pays for a text form that the others do not need.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pilot_hitl_benchmarks.models import MAX_BATCH, load

WAIT_MS = 2
"""What mosec waits for company when it batches."""


def handler(model: str) -> Callable[[Sequence[Any]], list[Any]]:
    """Return what answers a list of items."""
    return load() if model == "mlp" else list


def bare(place: str, model: str) -> None:
    """Serve with nothing but a socket: take what waits, answer it together."""
    import zmq

    run = handler(model)
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(place)
    while True:
        waiting = [socket.recv_multipart()]
        while len(waiting) < MAX_BATCH:
            try:
                waiting.append(socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
        results = run([pickle.loads(parts[-1]) for parts in waiting])
        for parts, result in zip(waiting, results, strict=True):
            socket.send_multipart([*parts[:-1], pickle.dumps(result, 5)])


def fastapi(place: str, model: str) -> None:
    """Serve over HTTP, one request a call, on a unix socket."""
    app_module: Any = importlib.import_module("fastapi")
    uvicorn: Any = importlib.import_module("uvicorn")
    run = handler(model)
    app = app_module.FastAPI()

    async def infer(request: Any) -> Any:
        (result,) = run([pickle.loads(await request.body())])
        return app_module.Response(pickle.dumps(result, 5), media_type="application/octet-stream")

    infer.__annotations__["request"] = app_module.Request
    app.post("/inference")(infer)
    uvicorn.run(app, uds=place, log_level="error", access_log=False, timeout_keep_alive=600)


def mosec(place: str, model: str, batch: int) -> None:
    """Serve with mosec, one worker, on a TCP port of this machine."""
    from pilot_hitl_benchmarks import mosecworker

    module: Any = importlib.import_module("mosec")
    os.environ[mosecworker.VARIABLE] = f"{model} {batch}"
    sys.argv = ["mosec", "--address", "127.0.0.1", "--port", place, "--timeout", "60000"]
    server = module.Server()
    server.append_worker(mosecworker.Worker, num=1, max_batch_size=batch, max_wait_time=WAIT_MS if batch > 1 else 0)
    server.run()


def main(what: str, place: str, model: str) -> None:
    """Serve until killed."""
    if what == "bare":
        bare(place, model)
    elif what == "fastapi":
        fastapi(place, model)
    else:
        mosec(place, model, MAX_BATCH if what == "mosec-batching" else 1)


if __name__ == "__main__":
    main(*sys.argv[1:4])
