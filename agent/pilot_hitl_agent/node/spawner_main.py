"""The program of the spawner, run by path under ``python -I -S``: ``spawner_main.py CONFIG.json``, or ``--serve FD``.

It loads :mod:`.spawner`, which lies beside it, as a module, so that the interpreter finds it compiled; to compile it
takes as long as to start the interpreter, and the first task waits for that.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # The folder of this file is not searched here.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # no pathlib here
    # By its folder: its package would bring others.
    spawner = __import__("spawner")
    del sys.path[0]
    sys.exit(spawner.main(sys.argv[1:]))
