"""The mechanism of ``requires``: a skip with its reason here, a failure in CI, an error when misspelt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import parts

ROOT = Path(__file__).resolve().parents[2]

CONFTEST = """
from tests import parts
from tests.conftest import *
parts.PROBES = {"here": lambda: None, "netns": lambda: None, "absent": lambda: "was never installed"}
"""

SUITE = """
import pytest

@pytest.mark.requires("here")
def test_here():
    pass

@pytest.mark.requires("here", "absent")
def test_absent():
    raise AssertionError("must not run")

def test_asks_late(require_part):
    require_part("absent")
    raise AssertionError("must not get here")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv(parts.REQUIRE_ALL, raising=False)
    pytester.makeini("[pytest]\naddopts = --strict-markers -ra\nmarkers =\n  requires(*parts)\n  long\n")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SUITE)
    return pytester


def test_a_missing_part_skips_with_its_reason(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess()
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["*SKIPPED*absent: was never installed*"])


def test_a_missing_part_fails_where_all_are_required(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parts.REQUIRE_ALL, "1")
    result = suite.runpytest_subprocess()
    # The late one fails inside the test, the other before its set-up: pytest calls the latter an error.
    result.assert_outcomes(passed=1, failed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"*{parts.REQUIRE_ALL} is set: absent: was never installed*"])


@pytest.mark.parametrize("arguments", ["'slurmm'", "", "part='here'"])
def test_a_misspelt_part_is_an_error(suite: pytest.Pytester, arguments: str) -> None:
    suite.makepyfile(f"import pytest\n\n@pytest.mark.requires({arguments})\ndef test_it():\n    pass\n")
    result = suite.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*takes names of tests/parts.py*"])


def test_what_needs_nodes_of_its_own_is_long(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.makepyfile("import pytest\n\n@pytest.mark.requires('here', 'netns')\ndef test_it():\n    pass\n")
    monkeypatch.delenv(parts.LONG, raising=False)
    assert suite.runpytest_subprocess().ret == pytest.ExitCode.NO_TESTS_COLLECTED
    monkeypatch.setenv(parts.LONG, "1")
    suite.runpytest_subprocess("-m", "long").assert_outcomes(passed=1)
    suite.runpytest_subprocess("-m", "not long").assert_outcomes(deselected=1)


def test_a_part_without_probe_is_refused() -> None:
    with pytest.raises(parts.UnknownPartError, match="chromium"):
        parts.missing("chromium-browser")


def test_probes_tell_why() -> None:
    assert parts.programs("sh")() is None
    assert parts.programs("sh", "no-such-program")() == "not on PATH: no-such-program"
    assert parts.works("true")() is None
    assert parts.works("sh", "-c", "echo broken >&2; exit 3")() == "sh -c echo broken >&2; exit 3 exits with 3: broken"
    assert parts.modules("json")() is None
    assert parts.every(parts.works("true"), parts.modules("no_such_package"))() is not None
