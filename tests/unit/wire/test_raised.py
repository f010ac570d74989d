"""Exceptions of the user's code, in words."""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle
import types
from typing import Any

import pytest

from pilot_hitl.wire import pickling, raised


class Mute(Exception):
    """Its ``__str__`` leaves."""

    def __str__(self) -> str:
        raise SystemExit(1)


class Shy:
    """Its ``__repr__`` fails."""

    def __repr__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (SystemExit(3), "it called sys.exit(3)", 3),
        (SystemExit(), "it called sys.exit()", 0),
        (SystemExit(True), "it called sys.exit(True)", 1),
        (SystemExit("no mesh"), "it called sys.exit('no mesh')", 1),
        (SystemExit(Shy()), "it called sys.exit(Shy)", 1),
        (KeyboardInterrupt(), "it raised KeyboardInterrupt", None),
        (asyncio.CancelledError("x"), "it raised asyncio.CancelledError: x", None),
        (concurrent.futures.CancelledError(), "it raised concurrent.futures.CancelledError", None),
        (Mute("x"), "it raised Mute: (its __str__ failed)", None),
        (ValueError("no"), "it raised ValueError: no", None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_exception_says(error: BaseException, words: str, code: int | None) -> None:
    assert raised.told(error, "it") == words
    assert raised.exit_code_of(error) == code


def test_the_end_of_a_traceback() -> None:
    def look_up() -> None:
        try:
            int("inner")
        except ValueError as inner:
            raise LookupError("outer " + "x" * 100) from inner

    with pytest.raises(LookupError) as caught:
        look_up()
    whole = raised.traceback_of(caught.value, 10_000)
    assert whole.count("Traceback") == 2
    assert "ValueError: invalid literal" in whole
    assert __file__ in whole
    assert raised.traceback_of(caught.value, 50) == whole[-50:]


def test_the_boundary_to_code_of_the_user() -> None:
    def leave() -> int:
        raise SystemExit(4)

    assert raised.attempt(lambda: 5) == (5, None)
    _, error = raised.attempt(leave, BaseException)
    assert isinstance(error, SystemExit)
    with pytest.raises(SystemExit):
        raised.attempt(leave)


def test_code_keeps_its_file_and_packs_alike() -> None:
    text = "def outer(x):\n    def inner(y):\n        return x / y\n    return inner\n"
    codes = compile(text, "/somewhere/study.py", "exec").co_consts
    code = next(each for each in codes if isinstance(each, types.CodeType))
    function: Any = types.FunctionType(code, {"__name__": "__main__"})
    packed = pickling.dumps(function)
    assert pickling.dumps(function) == packed
    made = pickle.loads(packed)
    assert made.__code__.co_filename == made(1).__code__.co_filename == "/somewhere/study.py"
    assert made(4)(2) == 2.0
