"""``python -m pilot_hitl`` is the command ``pilot-hitl``."""

from __future__ import annotations

from pilot_hitl.cli.main import main

if __name__ == "__main__":
    main()
