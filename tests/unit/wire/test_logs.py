"""Logs that stay small: nothing of what was written last is lost, whoever writes there too."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot_hitl.wire.logs import BoundedLog, bound
from pilot_hitl.wire.modes import own_file

LIMIT = 4000


@pytest.fixture
def log(tmp_path: Path) -> Iterator[int]:
    descriptor = own_file(tmp_path / "hub.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield descriptor
    os.close(descriptor)


def logger_of(descriptor: int) -> logging.Logger:
    made = logging.getLogger("tests.bounded")
    made.setLevel(logging.INFO)
    made.propagate = False
    made.handlers[:] = [BoundedLog(descriptor, LIMIT)]
    return made


def both(folder: Path) -> list[str]:
    kept = folder / "hub.log.1"
    return (kept.read_text() if kept.exists() else "").splitlines() + (folder / "hub.log").read_text().splitlines()


@pytest.mark.parametrize("lines", [1, 100, 1000])
def test_the_last_lines_are_there_in_order_and_the_files_are_small(tmp_path: Path, log: int, lines: int) -> None:
    logger = logger_of(log)
    for number in range(lines):
        logger.info("line %d", number)
    found = [int(line.split()[1]) for line in both(tmp_path) if line.startswith("line ")]
    assert found == list(range(lines))[-len(found) :]
    assert len(found) >= min(lines, 300)
    for each in tmp_path.iterdir():
        assert each.stat().st_size <= LIMIT * 1.1
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    assert len(list(tmp_path.iterdir())) <= 2


def test_who_else_appends_there_goes_on(tmp_path: Path, log: int) -> None:
    logger = logger_of(log)
    other = "import os\nfor n in range(2000): os.write(2, b'other %d\\n' % n)"
    with subprocess.Popen([sys.executable, "-c", other], stderr=log) as process:
        for number in range(500):
            logger.info("line %d", number)
        assert process.wait(60) == 0
    os.write(log, b"the very last\n")
    bound(log, LIMIT)
    found = both(tmp_path)
    assert found[-1] == "the very last"
    assert "other 1999" in found


def test_a_log_that_was_long_before_begins_anew(tmp_path: Path, log: int) -> None:
    os.write(log, b"old\n" * 5000)
    logger_of(log).info("new")
    assert (tmp_path / "hub.log").stat().st_size < LIMIT
    assert both(tmp_path)[-1] == "new"


def test_names_of_files_cannot_write_to_a_terminal(tmp_path: Path, log: int) -> None:
    logger_of(log).info("%s", "a\x1b]0;title\x07\x9bm\nb")
    assert (tmp_path / "hub.log").read_text() == "a\\x1b]0;title\\x07\\x9bm\nb\n"


def test_what_is_no_file_is_only_written_to() -> None:
    reading, writing = os.pipe()
    logger = logger_of(writing)
    for _ in range(50):
        logger.info("x" * 1000)
        assert os.read(reading, 4096) == b"x" * 1000 + b"\n"
    os.close(reading)
    logger.info("nobody reads")
    os.close(writing)
    logger.info("it is closed")
