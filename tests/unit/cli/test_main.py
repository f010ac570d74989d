from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pilot_hitl.cli.main import COMMANDS
from tests.unit.cli.conftest import Cli


def _loaded_by(arguments: str) -> set[str]:
    code = (
        "import sys\nfrom pilot_hitl.cli.main import main\n"
        f"sys.argv = ['pilot-hitl', {arguments}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('\\n' + ' '.join(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(ended.stdout.splitlines()[-1].split())


def test_help_names_every_command_and_imports_none() -> None:
    loaded = _loaded_by("'--help'")
    assert not {entry.module for entry in COMMANDS.values()} & loaded
    assert not {"zmq", "numpy", "jsonschema", "pilot_hitl.session", "sqlite3"} & loaded


def test_help_shows_the_summaries(cli: Cli) -> None:
    said = cli("--help")
    assert said.exit_code == 0
    for name in COMMANDS:
        assert name in said.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(cli: Cli, name: str) -> None:
    said = cli(name, "--help")
    assert (said.exit_code, said.stderr) == (0, "")
    assert "Usage: pilot-hitl" in said.stdout


def test_an_offline_list_imports_neither_jsonschema_nor_rich_tables(home: Path) -> None:
    assert home.is_dir()
    loaded = _loaded_by("'inbox', 'list', '--json'")
    assert not {"jsonschema", "numpy", "rich.table", "sqlite3", "pilot_hitl.cli.doctor"} & loaded


def test_without_arguments_there_is_help_and_a_usage_exit(cli: Cli) -> None:
    assert cli().exit_code == 2
    assert cli("inbox").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inbx"], "did you mean inbox?"),
        (["nonsense"], "there is no command 'nonsense'"),
        (["inbox", "answer", "x"], "pilot-hitl inbox answer --help"),
        (["inbox", "list", "--nonsense"], "--nonsense"),
        (["task", "show", "x y", "-s", "s"], "is not a task name"),
    ],
)
def test_a_usage_error_is_one_line_on_stderr_and_exit_2(cli: Cli, arguments: list[str], words: str) -> None:
    said = cli(*arguments)
    assert (said.exit_code, said.stdout) == (2, "")
    assert words in said.stderr
    assert said.stderr.count("\n") == 1


def test_an_error_is_one_line_with_a_remedy_and_exit_1(cli: Cli) -> None:
    said = cli("session", "show", "absent")
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr.startswith("pilot-hitl: there is no session 'absent'")
    assert said.stderr.count("\n") == 1


def test_debug_raises(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOT_HITL_DEBUG", "1")
    assert isinstance(cli("session", "show", "absent").exception, LookupError)


def test_version(cli: Cli) -> None:
    said = cli("--version")
    assert said.exit_code == 0
    assert said.stdout.strip()[0].isdigit()


def test_home_can_be_given(cli: Cli, home: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "sessions" / "there").mkdir(parents=True)
    assert "there" in cli("--home", str(tmp_path / "other"), "session", "list").stdout
    assert os.environ["PILOT_HITL_HOME"] != str(home)  # restored by the fixture


def test_a_reader_that_goes_away_is_no_traceback(home: Path) -> None:
    for number in range(2000):
        (home / "sessions" / f"session-{number}").mkdir(parents=True)
    code = "from pilot_hitl.cli.main import main; main()"
    line = f"'{sys.executable}' -c '{code}' session list --json | head -1"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("[\n", "")
