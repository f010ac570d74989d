"""``python -m pilot_hitl.hub --home DIR [--stay]``: run the hub of a home in the foreground."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path


def main() -> int:
    """Run until the last session is closed. Exit code 0 also when another hub holds the home."""
    # Bulks live long and hold no cycles: fewer full collections (docs/hop-costs.md, section 6), and while importing.
    gc.set_threshold(50_000, 20, 100)
    import zmq

    from pilot_hitl.hub.server import AlreadyRunning, Hub
    from pilot_hitl.wire.logs import log_to
    from pilot_hitl.wire.places import home

    parser = argparse.ArgumentParser(prog="python -m pilot_hitl.hub")
    parser.add_argument("--home", type=Path, default=home())
    parser.add_argument("--stay", action="store_true", help="do not end with the last session")
    options = parser.parse_args()
    log_to(sys.stderr.fileno(), "%(asctime)s %(levelname)s %(message)s")
    gc.freeze()
    try:
        hub = Hub(options.home.absolute(), stay=options.stay)
    except AlreadyRunning:
        return 0
    except (OSError, zmq.ZMQError) as error:
        print(f"the hub of {options.home} cannot start: {error}", file=sys.stderr)
        return 1
    hub.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
