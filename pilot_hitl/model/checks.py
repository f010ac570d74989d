"""Checks of what users write: a converter for each kind of value, and one table of them for each description.

A *check* takes the name of an attribute and what was given for it. It returns the plain Python value that is stored and
sent, or raises :class:`ValueError` with the attribute, what was given, and what to write instead. Numbers of numpy are
numbers; texts of a subclass of ``str`` become texts. Nothing is guessed: a text is no list, a number no text.
"""

from __future__ import annotations

import difflib
import numbers
import operator
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn, TypeVar

import msgspec

Check = Callable[[str, Any], Any]
T = TypeVar("T", bound=msgspec.Struct)

MAX_PATH = 4095
"""Bytes of a path that Linux takes."""
MAX_WORD = 128 * 1024 - 1
"""Bytes of one argument, or of one ``NAME=value``, that Linux gives to a program."""
MAX_EXEC = 6 * 1024 * 1024
"""Bytes of all arguments and variables together that no setting of Linux exceeds."""
MAX_LINE = 1000
"""Characters of a name: it is a word of lists and of commands."""
MAX_SECONDS = 1e9

MAX_SHOWN = 80

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = MAX_SHOWN


def shown(value: object) -> str:
    """Return what was given in so few characters that it can stand in a message."""
    try:
        return _repr.repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits has no text
        return f"a value of type {type(value).__name__}"


def wrong(name: str, value: object, wanted: str, remedy: str = "") -> NoReturn:
    """Say that an attribute is of a wrong type.

    Raises:
        ValueError: always.
    """
    remedy = remedy or _remedy(value, wanted)
    raise ValueError(f"{name}: {shown(value)} is not {wanted}{': ' + remedy if remedy else ''}")


def _remedy(value: object, wanted: str) -> str:
    """Return what to do with a value of a type that the attribute does not take."""
    if wanted == "a text" and isinstance(value, numbers.Number):
        return f"write {str(value)!r}" if len(shown(value)) < MAX_SHOWN else "write it as a text"
    if isinstance(value, str) and "number" in wanted and value.strip().isdecimal():
        return f"write {value.strip()}, without quotes"
    if value is None:
        return "leave it out for its default"
    if callable(getattr(value, "add_done_callback", None)):
        return (
            "a future has no value yet; order tasks by submit(…, after=future), hand files on by staging, and give "
            "values to a function by call()"
        )
    if isinstance(value, os.PathLike):
        return "write str(…) of it"
    if isinstance(value, bytes):
        return "decode it to a text"
    return ""


# --- numbers and switches ---------------------------------------------------------------------------------------------


def as_whole(name: str, value: object) -> int:
    """Return a whole number as an ``int``; a truth value is none."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        wrong(name, value, "a whole number")
    return int(operator.index(value))


def as_number(name: str, value: object, unit: str = "") -> int | float:
    """Return a number (of a unit) as an ``int`` or a ``float``; a truth value is none."""
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        wrong(name, value, f"a number of {unit}" if unit else "a number")
    if isinstance(value, numbers.Integral):
        return int(operator.index(value))
    try:
        return float(value)
    except (OverflowError, ValueError):
        wrong(name, value, "a number that a computer can hold")


def whole(least: int, most: int) -> Check:
    """Check a whole number; both bounds are allowed."""

    def check(name: str, value: Any) -> int:
        made = value if type(value) is int else as_whole(name, value)
        if not least <= made <= most:
            raise ValueError(f"{name}: {shown(value)} is not a whole number between {least} and {most}")
        return made

    return check


def number(least: float, most: float, unit: str = "") -> Check:
    """Check a number; both bounds are allowed."""

    def check(name: str, value: Any) -> int | float:
        made = value if type(value) is float else as_number(name, value, unit)
        if not least <= made <= most:
            raise ValueError(
                f"{name}: {shown(value)} is not between {least:g} and {most:g}{' ' + unit if unit else ''}"
            )
        return made

    return check


def gpus(name: str, value: Any) -> int | float:
    """Check a number of GPUs: a part of one, or whole ones."""
    made: int | float = _gpus(name, value)
    if made > 1 and made != int(made):
        raise ValueError(f"{name}: {shown(value)} is above one, so it must be whole")
    return made


_gpus = number(0, 1 << 16)


def flag(name: str, value: Any) -> bool:
    """Check a truth value."""
    if type(value) is bool:
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in {"bool", "bool_"}:
        return bool(value)
    wrong(name, value, "True or False")


# --- texts ------------------------------------------------------------------------------------------------------------


def text(name: str, value: Any) -> str:
    """Check a text that can be encoded and given to a program."""
    made: str = value
    if type(value) is not str:
        if not isinstance(value, str):
            wrong(name, value, "a text")
        made = str.__str__(value)
    if "\0" in made:
        raise ValueError(f"{name}: {shown(made)} holds a NUL character, which no program or file name can")
    if len(made) > MAX_EXEC:
        raise ValueError(f"{name}: {len(made)} characters are more than {MAX_EXEC}: write them into a file")
    if not made.isascii():
        _encoded(name, made)
    return made


def _encoded(name: str, made: str) -> bytes:
    try:
        return made.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name}: {shown(made)} holds a lone surrogate, which is no character; a name of a file that is no UTF-8 "
            "can only be an argument"
        ) from None


def label(name: str, value: Any) -> str:
    """Check a text that people are shown: any, but not a long one."""
    made = text(name, value)
    if len(made) > MAX_LINE:
        raise ValueError(f"{name}: {shown(made)} has {len(made)} characters; write at most {MAX_LINE}")
    return made


def line(name: str, value: Any) -> str:
    """Check a text of one line without control characters, such as a name by which something is found."""
    made = label(name, value)
    if not made.isprintable() and any(ord(each) < 32 or ord(each) == 127 for each in made):
        raise ValueError(f"{name}: {shown(made)} is not one line of text")
    return made


def printable(name: str, value: Any) -> str:
    """Check a text that becomes a word of a batch script."""
    made = line(name, value)
    if not made.isprintable():
        raise ValueError(f"{name}: {shown(made)} is not one line of text")
    return made


def path(name: str, value: Any) -> str:
    """Check a text that names a file or a folder; empty is allowed."""
    made = text(name, value)
    if len(made) > MAX_PATH // 4 and len(made.encode()) > MAX_PATH:
        raise ValueError(f"{name}: {shown(made)} is longer than the {MAX_PATH} bytes that a path may have")
    return made


def filled(inner: Check, remedy: str) -> Check:
    """Check that a text is there, beside what ``inner`` checks."""

    def check(name: str, value: Any) -> Any:
        made = inner(name, value)
        if not made.strip():
            raise ValueError(f"{name}: {shown(made)} is empty: {remedy}")
        return made

    return check


def one_of(*allowed: str) -> Check:
    """Check that a text is one of these."""

    def check(name: str, value: Any) -> str:
        made = value if type(value) is str else text(name, value)
        if made not in allowed:
            close = difflib.get_close_matches(made, allowed, 1)
            hint = f"; did you mean {close[0]!r}?" if close and close[0] else ""
            raise ValueError(f"{name}: {shown(made)} is none of {', '.join(filter(None, allowed))}{hint}")
        return made

    return check


# --- several ----------------------------------------------------------------------------------------------------------


def as_list(name: str, value: Any, wanted: str, example: str) -> list[Any]:
    """Return what is a list or a tuple as a list; all else is refused, since its order or its end is not known."""
    if type(value) is list:
        return value
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, str):
        wrong(name, value, f"a list of {wanted}", f"write {name}=[{shown(value)}]")
    if value is None or isinstance(value, bytes | Mapping) or not hasattr(value, "__iter__"):
        wrong(name, value, f"a list of {wanted}", "" if value is None else f"write e.g. {name}={example}")
    wrong(name, value, f"a list of {wanted}", f"write {name}=list(…)")


def several(inner: Check, wanted: str, example: str, most: int = 0) -> Check:
    """Check a list item by item; ``most`` bounds how many there may be."""

    def check(name: str, value: Any) -> list[Any]:
        given = as_list(name, value, wanted, example)
        if most and len(given) > most:
            raise ValueError(f"{name}: {len(given)} are more than {most}")
        made = [inner(name, item) for item in given]
        return given if given is value and all(map(operator.is_, made, given)) else made

    return check


def arguments(name: str, value: Any) -> list[str]:
    """Check the arguments of a program: texts that Linux can give to one."""
    given: list[Any] = value if type(value) is list else as_list(name, value, "texts", "['--steps', '100']")
    if not given:
        return given
    try:
        joined = "\0".join(given)
    except TypeError:
        _not_a_text(name, given)
    if joined.count("\0") != len(given) - 1:
        text(name, next(item for item in given if "\0" in item))
    size = len(joined) if joined.isascii() else len(b"\0".join(_as_bytes(name, item) for item in given))
    if size > MAX_WORD:
        for item in given:
            _check_word(name, item)
        _check_sum(name, size + 9 * len(given))
    plain = all(type(item) is str for item in given)
    return given if plain else [str.__str__(item) for item in given]


def _as_bytes(name: str, word: str) -> bytes:
    """Return what a program gets: names of files that are no UTF-8 are texts with halves of surrogates in Python."""
    try:
        return word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _encoded(name, word)


def _not_a_text(name: str, given: Sequence[Any]) -> NoReturn:
    wrong(name, next(each for each in given if not isinstance(each, str)), "a text")


def _check_word(name: str, word: str) -> None:
    if len(word) > MAX_WORD // 4 and (size := len(word.encode("utf-8", "surrogateescape"))) > MAX_WORD:
        raise ValueError(
            f"{name}: {shown(word)} has {size} bytes, and Linux gives a program at most {MAX_WORD} in one argument or "
            "variable: write it into a file"
        )


def _check_sum(name: str, size: int) -> None:
    if size > MAX_EXEC:
        raise ValueError(
            f"{name}: {size} bytes of arguments and variables are more than the {MAX_EXEC} that Linux gives a program: "
            "write them into a file"
        )


def variables(name: str, value: Any) -> dict[str, str]:
    """Check variables of an environment."""
    if type(value) is not dict:
        if not isinstance(value, Mapping):
            remedy = "write environment={'NAME': 'value'}" if isinstance(value, str | list | tuple) else ""
            wrong(name, value, "a mapping of texts to texts", remedy)
        value = dict(value)
    size, plain = 0, True
    for key, content in value.items():
        if type(key) is not str or type(content) is not str:
            plain = False
            if not isinstance(key, str) or not isinstance(content, str):
                _not_a_variable(name, key, content)
        word = f"{key}={content}"
        if not key or "=" in key or "\0" in word:
            raise ValueError(f"{name}: {shown(key)}={shown(content)} is not a text variable")
        if not word.isascii():
            _encoded(f"{name}: {shown(key)}", word)
        _check_word(name, word)
        size += len(word) + 9
    _check_sum(name, size)
    return value if plain else {str.__str__(key): str.__str__(content) for key, content in value.items()}


def _not_a_variable(name: str, key: object, content: object) -> NoReturn:
    if isinstance(key, str):
        remedy = _remedy(content, "a text")
        raise ValueError(
            f"{name}: {shown(key)}={shown(content)} is not a text variable{': ' + remedy if remedy else ''}"
        )
    raise ValueError(f"{name}: {shown(key)} is not the name of a variable: names and values are texts")


def mapping_of(name: str, value: Any, wanted: str) -> dict[str, Any]:
    """Return a mapping whose keys are texts as a ``dict``."""
    if not isinstance(value, Mapping):
        wrong(name, value, wanted)
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"{name}: its keys are texts, and {shown(key)} is none")
    return {text(name, key): item for key, item in value.items()}


# --- descriptions -----------------------------------------------------------------------------------------------------


class Table:
    """The checks of one description, by attribute; every attribute has one."""

    def __init__(self, kind: type[msgspec.Struct], checks: Mapping[str, Check]) -> None:
        """Bind the checks to the attributes of a struct.

        Raises:
            LookupError: an attribute has no check, or a check no attribute.
        """
        if set(checks) != set(kind.__struct_fields__):
            raise LookupError(f"{kind.__name__}: {sorted(set(checks) ^ set(kind.__struct_fields__))}")
        fields = msgspec.structs.fields(kind)
        self._rows = [(each.name, each.default, each.default_factory, checks[each.name]) for each in fields]

    def plain(self, given: T) -> T:
        """Return a description of which every value is plain and can be meant: the same one where all are already.

        Raises:
            ValueError: a value cannot be meant; the message begins with the name of its attribute.
        """
        changes: dict[str, Any] = {}
        for name, default, container, check in self._rows:
            value = getattr(given, name)
            if value is default or (type(value) is container and not value):
                continue
            made = check(name, value)
            if made is not value:
                changes[name] = made
        return msgspec.structs.replace(given, **changes) if changes else given


class Described(msgspec.StructMeta):
    """Makes descriptions say which attribute is not theirs, and which one was perhaps meant."""

    def __call__(self, *args: Any, **attributes: Any) -> Any:
        """Make a description of keywords.

        Raises:
            TypeError: something else was given; the message says what to write.
        """
        try:
            return super().__call__(*args, **attributes)
        except TypeError as error:
            raise TypeError(self._explain(args, attributes) or str(error)) from None

    def _explain(self, args: tuple[Any, ...], attributes: dict[str, Any]) -> str:
        fields: tuple[str, ...] = getattr(self, "__struct_fields__", ())
        if args:
            mapping = " For a mapping write **mapping." if isinstance(args[0], Mapping) else ""
            return (
                f"{self.__name__}({shown(args[0])}): its attributes are keywords, as {self.__name__}(name=…).{mapping}"
            )
        unknown = next((name for name in attributes if name not in fields), None)
        if unknown is None:
            return ""
        return f"{self.__name__} has no attribute {unknown!r}{suggestion(unknown, fields)}"


def suggestion(unknown: str, known: Sequence[str]) -> str:
    """Return what was perhaps meant by a name, or else all names that there are."""
    close = difflib.get_close_matches(unknown, known, 1, 0.55)
    within = [name for name in known if name.startswith(unknown) or name.endswith(unknown)]
    found = within[:1] or close
    return f"; did you mean {found[0]!r}?" if found else f"; it has {', '.join(known)}"
