"""A replica: ``python -m pilot_hitl_services CONFIG``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from functools import partial
from pathlib import Path

import zmq

from pilot_hitl.model.ids import task_name
from pilot_hitl.wire.blobs import BlobStore
from pilot_hitl.wire.current import ADDRESS_VARIABLE
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.places import private_folder, runtime_folder
from pilot_hitl.wire.raised import attempt
from pilot_hitl.wire.replicas import begun_path
from pilot_hitl.wire.services import ReplicaConfig
from pilot_hitl.wire.servicing import ReplicaReplay
from pilot_hitl_services.handlers import Handler, Unusable, describe, load, replay, trace_of
from pilot_hitl_services.inside import Inside
from pilot_hitl_services.looping import Loops
from pilot_hitl_services.reporting import Pulse, Reporter, read_config
from pilot_hitl_services.serving import Server


def main(path: str) -> int:
    """Serve as the file says until the hub wants no more; return the exit code."""
    config = read_config(Path(path))
    home = Path(config.home)
    keys = keyring(home)
    folder = private_folder(runtime_folder(home))
    tag = hashlib.blake2b(f"{config.session}/{config.service}".encode(), digest_size=5).hexdigest()
    place = folder / f"s-{tag}-{config.number}-{os.getpid()}.sock"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    most = max(config.max_batch, config.max_concurrency)
    begun = begun_path(Path(path).parent, task_name(config.task), os.getpid())
    pulse, loops = Pulse(Inside(begun, most, finished=not config.idempotent)), Loops()
    address = os.environ.get(ADDRESS_VARIABLE, "")
    server = Server(context, keys, config, f"ipc://{place}", pulse, loops, address)
    reporter = Reporter(context, keys, config, pulse, server.order)
    reporter.start()
    handler, error = attempt(partial(load, config, loops), BaseException)
    if handler is None:
        assert error is not None  # one of the two is there
        sys.stderr.write(trace_of(error))
        hopeless = isinstance(error, Unusable | ModuleNotFoundError)
        said = str(error) if isinstance(error, Unusable) else describe(error)
        reporter.finish(f"its handler could not be set up: {said}", trace_of(error), failed=True, hopeless=hopeless)
        return 1
    memory = Memory(config, server, reporter, handler)
    try:
        server.open(handler, memory.take_in)
    except (ValueError, zmq.ZMQError) as error:
        reporter.finish(
            f"it cannot listen at {place}{f' or at {address} ({ADDRESS_VARIABLE})' if address else ''}: {error}",
            failed=True,
        )
        return 1
    try:
        if not memory.take_in(ReplicaReplay(config.kept)):
            return 1
        server.run()
    finally:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
    reporter.finish()
    loops.close()
    context.term()
    return 0


class Memory:
    """What a replica must know of before it is ready: the broadcasts that were kept."""

    def __init__(self, config: ReplicaConfig, server: Server, reporter: Reporter, handler: Handler) -> None:
        """Know nothing yet."""
        self._blobs = BlobStore(Path(config.home) / "sessions" / config.session / "blobs")
        self._server = server
        self._reporter = reporter
        self._handler = handler
        self._revision = 0

    def take_in(self, told: ReplicaReplay) -> bool:
        """Let the handler take in what it does not know of, and say that the replica is ready; return whether it is."""
        server, reporter = self._server, self._reporter
        new = [broadcast for broadcast in told.broadcasts if broadcast.revision > self._revision]
        if new:
            self._revision = new[-1].revision
        if told.known:
            reporter.took_in(self._revision)
            return True
        for broadcast in new:
            work = partial(replay, self._handler, [broadcast], server.serve_kept, self._blobs)
            _none, error = attempt(work, BaseException)
            if error is not None:
                sys.stderr.write(trace_of(error))
                what = f"a broadcast that is kept as {broadcast.key!r} could not be taken in"
                reporter.finish(f"{what}: {describe(error)}", trace_of(error), failed=True)
                return False
        reporter.ready(server.endpoint, server.tcp, server.metrics.view, self._revision)
        return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
