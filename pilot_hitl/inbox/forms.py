"""Forms: the JSON Schema that an answer must satisfy, and how a person's text becomes a JSON value.

Plain choices are checked here; only a real schema loads ``jsonschema``, and is applied in bounded time
(:mod:`pilot_hitl.inbox.bounded`). Equality is that of canonical JSON, so ``1``
and ``1.0`` are one answer while ``1`` and ``true`` are two. No schema is ever fetched from the network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from pilot_hitl.errors import AnswerRefused, DescriptionError
from pilot_hitl.model.canonical import Json, canonical, cut, not_json

COMPLETES = "x-pilot-hitl-completes"
"""Keyword, true at the top of a form whose answers get the defaults of what they leave out."""
MAX_ANSWER_BYTES = 1 << 20
"""An answer's text may have this many bytes."""
MOST_PROBLEMS = 20
"""What is wrong with an answer is looked for up to this many times."""
MAX_FORM = 200_000
"""Characters of a form that is no plain list of choices."""

_ANNOTATIONS = frozenset({"title", "description", "$schema", "$comment", "$id", "default", "examples"})
_PLAIN = frozenset({"enum", "const"})
_SHOWN = 200
_SHOWN_CHOICES = 1000
_WORDS: dict[str, Json] = {"yes": True, "no": False}


class _Problem(Protocol):
    @property
    def message(self) -> str: ...

    @property
    def absolute_path(self) -> Sequence[str | int]: ...


def form_of(choices: Sequence[Json]) -> dict[str, Json]:
    """Return the form whose valid answers are exactly these choices.

    Raises:
        DescriptionError: there is no choice, two are equal, or one is not JSON.
    """
    if not choices:
        raise DescriptionError("choices: name at least one, e.g. choices=['accept', 'refine']")
    try:
        texts = [canonical(choice) for choice in choices]
        "".join(texts).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DescriptionError(f"choices: every choice is a JSON value: {not_json(error)}") from error
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise DescriptionError(f"choices: {_short(text)} is there twice, and nobody could tell them apart")
        seen.add(text)
    return {"enum": [json.loads(text) for text in texts]}


def check_form(form: Json) -> None:
    """Check that a form is a JSON Schema and needs nothing from elsewhere.

    Raises:
        DescriptionError: it is not; the message names the place in the schema.
    """
    if not isinstance(form, bool | dict):
        raise DescriptionError(
            "form: a JSON Schema is an object, e.g. {'type': 'number', 'minimum': 0}; a Python type is a dataclass, a "
            "TypedDict, a msgspec.Struct or a pydantic model, of which a list or a choice can be a field"
        )
    try:
        canonical(form).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DescriptionError(f"form: a JSON Schema is made of JSON values: {not_json(error)}") from error
    if isinstance(form, bool) or _allowed(form) is not None:
        return
    if not set(form) - _ANNOTATIONS:
        return
    if "$schema" in form and not isinstance(form["$schema"], str):
        raise DescriptionError("form: $schema names the draft, as text")
    if len(canonical(form)) > MAX_FORM:
        raise DescriptionError(f"form: it has {len(canonical(form)):,} characters, and {MAX_FORM:,} are allowed")
    from jsonschema.exceptions import SchemaError

    from pilot_hitl.inbox import bounded

    try:
        bounded.check(form)
    except SchemaError as error:
        place = "/".join(str(part) for part in error.absolute_path) or "the schema"
        raise DescriptionError(f"form: {place}: {_short(error.message)}") from error
    except RecursionError as error:
        raise DescriptionError("form: it is nested too deeply, or refers to itself without end") from error
    except (TypeError, ValueError) as error:
        raise DescriptionError(f"form: not a JSON Schema that can be checked: {error}") from error


def validate(value: Json, form: Json) -> None:
    """Check an answer against its form.

    Raises:
        AnswerRefused: with code ``invalid``; the message says which part is wrong and what is allowed.
    """
    reason = _reason(value, form)
    if reason:
        raise _refused(reason)


def valid(value: Json, form: Json) -> bool:
    """Return whether an answer satisfies a form."""
    return not _reason(value, form)


def matches(schema: str, answer: str) -> bool:
    """Return whether an answer satisfies a schema, both JSON text; a :data:`~pilot_hitl.model.conditions.SchemaTest`.

    False when the schema cannot be applied.
    """
    return valid(json.loads(answer), json.loads(schema))


def completed(value: Json, form: Json) -> Json:
    """Return a valid answer with what it leaves out, where the form was made of a Python type (:data:`COMPLETES`).

    Two answers that make equal instances are then equal JSON, and branches compare JSON. Other forms are left alone.
    """
    if not isinstance(form, dict) or form.get(COMPLETES) is not True:
        return value
    parts = form.get("$defs")
    return _complete(value, form, parts if isinstance(parts, dict) else {})


def _complete(value: Json, part: Json, parts: dict[str, Json]) -> Json:
    while isinstance(part, dict) and isinstance(reference := part.get("$ref"), str):
        part = parts.get(reference.rpartition("/")[2])
    if not isinstance(part, dict):
        return value
    several = part.get("anyOf")
    if isinstance(several, list):
        fitting = [
            each for each in several if valid(value, {**each, "$defs": parts} if isinstance(each, dict) else each)
        ]
        return _complete(value, fitting[0], parts) if fitting else value
    if isinstance(value, list):
        first, rest = part.get("prefixItems"), part.get("items")
        kinds = [*(first if isinstance(first, list) else [])]
        return [_complete(each, kinds[at] if at < len(kinds) else rest, parts) for at, each in enumerate(value)]
    if not isinstance(value, dict):
        return value
    known, others = part.get("properties"), part.get("additionalProperties")
    properties = known if isinstance(known, dict) else {}
    left_out = {
        key: each["default"]
        for key, each in properties.items()
        if key not in value and isinstance(each, dict) and "default" in each
    }
    whole: dict[str, Json] = {**left_out, **value}
    return {key: _complete(each, properties.get(key, others), parts) for key, each in whole.items()}


def parse_answer(text: str, form: Json, choices: Sequence[Json] = ()) -> Json:
    """Return the valid JSON value that a person means by this text.

    In this order: a choice by its exact text, JSON, the text itself where the form takes text, ``yes`` and ``no`` where
    it takes true and false. So ``5`` is the number and ``"5"`` the text, unless ``5`` is a choice or only text is
    allowed.

    Raises:
        AnswerRefused: with code ``invalid``; the message names what is allowed.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_ANSWER_BYTES:
        raise _refused(
            f"the answer has more than {MAX_ANSWER_BYTES // 1024} kB; put it into a file and answer its name"
        )
    for choice in choices:
        if choice == text and isinstance(choice, str):
            return choice
    try:
        value: Json = json.loads(text, parse_constant=_no_constant)
        canonical(value).encode()
    except (ValueError, RecursionError) as error:
        as_text = _text_reason(text, form)
        if not as_text:
            return text
        word = _WORDS.get(text.strip().lower())
        if word is not None and not _reason(word, form):
            return word
        if isinstance(error, json.JSONDecodeError) and text.lstrip()[:1] in tuple('{["'):
            raise _refused(f"it begins as JSON does, and is none: at character {error.pos + 1}: {error.msg}") from None
        raise _refused(as_text) from None
    reason = _reason(value, form)
    if not reason:
        return completed(value, form)
    if not _text_reason(text, form):
        return text
    raise _refused(reason)


def describe(form: Json, choices: Sequence[Json] = ()) -> str:
    """Return in one line what may be answered."""
    if choices:
        return "one of: " + describe_choices(choices)
    allowed = _allowed(form)
    if allowed is not None:
        return "one of: " + describe_choices(allowed)
    if not isinstance(form, dict) or not set(form) - _ANNOTATIONS:
        return "anything"
    kind = form.get("type")
    words = {"string": "text", "boolean": "true or false", "null": "null"}
    kinds = [words.get(str(item), str(item)) for item in (kind if isinstance(kind, list) else [kind] if kind else [])]
    name = " or ".join(kinds) or "a value"
    properties = form.get("properties")
    if isinstance(properties, dict) and properties:
        required = form.get("required")
        needed = required if isinstance(required, list) else []
        name += " with " + ", ".join(f"{key}{'' if key in needed else ' (optional)'}" for key in properties)
    limits = [
        f"{words_} {form[key]}"
        for key, words_ in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
            ("minLength", "characters at least"),
            ("maxLength", "characters at most"),
            ("pattern", "matching"),
            ("format", "in the format"),
        )
        if key in form
    ]
    return _short(f"{name} {', '.join(limits)}".strip())


def choice_text(value: Json) -> str:
    """Return a value as people read and type it: text as it is where that is clear, else JSON."""
    if isinstance(value, str) and value and value == value.strip() and "," not in value:
        return value
    return canonical(value)


def describe_choices(choices: Sequence[Json]) -> str:
    """Return in one line which choices there are; of many or long ones only the first, and how many more."""
    said: list[str] = []
    room = _SHOWN_CHOICES
    for choice in choices:
        text = cut(choice_text(choice), _SHOWN)
        room -= len(text)
        if said and room < 0:
            return f"{', '.join(said)} … ({len(choices) - len(said):,} more)"
        said.append(text)
    return ", ".join(said)


def read_json(text: str) -> Json:
    """Return the value of a JSON text, the text itself when it is none."""
    try:
        value: Json = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


def _text_reason(text: str, form: Json) -> str:
    """Why this text is no answer as a text; also when it cannot be stored as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the answer is not valid UTF-8 text"
    return _reason(text, form)


def _reason(value: Json, form: Json) -> str:
    """Why a value does not satisfy a form; empty when it does."""
    try:
        text = canonical(value)
    except (TypeError, ValueError, RecursionError) as error:
        return f"not a JSON value: {not_json(error)}"
    allowed = _allowed(form)
    if allowed is not None:
        if any(canonical(choice) == text for choice in allowed):
            return ""
        return f"{_short(choice_text(value))} is not {describe(form)}"
    if form is True or (isinstance(form, dict) and not set(form) - _ANNOTATIONS):
        return ""
    if form is False:
        return "this request takes no answer"
    return _problem(value, form)


def _problem(value: Json, form: Json) -> str:
    """Why a value does not satisfy a schema; empty when it does."""
    from pilot_hitl.inbox import bounded

    try:
        found = bounded.problems(canonical(form), value, MOST_PROBLEMS)
    except bounded.TooCostlyError:
        return f"it is too large for its form: checking it would take more than {bounded.STEPS:,} steps"
    except RecursionError:
        return "it is nested too deeply to be checked"
    except Exception as error:  # boundary: a schema that cannot be applied must not stop its caller
        return f"the form cannot be applied: {_short(str(error))}"
    return _explain(found) if found else ""


def _explain(problems: list[Any]) -> str:
    from jsonschema.exceptions import best_match

    best: _Problem = best_match(problems)
    place = ".".join(str(part) for part in best.absolute_path)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    more = " (and more)" if len(problems) >= MOST_PROBLEMS else more
    return f"{place + ': ' if place else ''}{_short(best.message)}{more}"


def _allowed(form: Json) -> list[Json] | None:
    """The values of a form that only lists values, None for any other form."""
    if not isinstance(form, dict) or len(set(form) - _ANNOTATIONS) != 1 or not _PLAIN & set(form):
        return None
    if "const" in form:
        return [form["const"]]
    values = form["enum"]
    return values if isinstance(values, list) and values else None


def _refused(reason: str) -> AnswerRefused:
    error = AnswerRefused(reason)
    error.code = "invalid"
    return error


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")
