"""A replica: ``python -m pilot_hitl_services CONFIG``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from functools import partial
from pathlib import Path

import zmq

from pilot_hitl.wire.current import ADDRESS_VARIABLE
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.places import private_folder, runtime_folder
from pilot_hitl.wire.raised import attempt
from pilot_hitl_services.handlers import describe, load, trace_of
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
    pulse = Pulse()
    address = os.environ.get(ADDRESS_VARIABLE, "")
    server = Server(context, keys, config, f"ipc://{place}", pulse, address)
    reporter = Reporter(context, keys, config, pulse, server.order)
    reporter.start()
    handler, error = attempt(partial(load, config), BaseException)
    if handler is None:
        assert error is not None  # one of the two is there
        sys.stderr.write(trace_of(error))
        reporter.finish(f"its handler could not be set up: {describe(error)}", trace_of(error), failed=True)
        return 1
    try:
        server.open()
    except (ValueError, zmq.ZMQError) as error:
        reporter.finish(
            f"it cannot listen at {place}{f' or at {address} ({ADDRESS_VARIABLE})' if address else ''}: {error}",
            failed=True,
        )
        return 1
    reporter.ready(server.endpoint, server.tcp, server.metrics.view)
    try:
        server.run(handler)
    finally:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
    reporter.finish()
    context.term()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
