"""Forms: the JSON Schema that an answer must satisfy, and how a person's text becomes a JSON value.

Plain choices are checked here; only a real schema loads ``jsonschema``. Equality is that of canonical JSON, so ``1``
and ``1.0`` are one answer while ``1`` and ``true`` are two. No schema is ever fetched from the network.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from pilot_hitl.errors import AnswerRefused, DescriptionError
from pilot_hitl.model.canonical import Json, canonical

COMPLETES = "x-pilot-hitl-completes"
"""Keyword, true at the top of a form whose answers get the defaults of what they leave out."""
MAX_ANSWER_BYTES = 1 << 20
"""An answer's text may have this many bytes."""

_ANNOTATIONS = frozenset({"title", "description", "$schema", "$comment", "$id", "default", "examples"})
_PLAIN = frozenset({"enum", "const"})
_SHOWN = 200


class _Problem(Protocol):
    @property
    def message(self) -> str: ...

    @property
    def absolute_path(self) -> Sequence[str | int]: ...


class _Validator(Protocol):
    def is_valid(self, instance: Any) -> bool: ...

    def iter_errors(self, instance: Any) -> Any: ...


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
        raise DescriptionError(f"choices: every choice is a JSON value: {error}") from error
    for index, text in enumerate(texts):
        if text in texts[:index]:
            raise DescriptionError(f"choices: {text} is there twice, and nobody could tell them apart")
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
        raise DescriptionError(f"form: a JSON Schema is made of JSON values: {error}") from error
    if isinstance(form, bool) or _allowed(form) is not None:
        return
    if not set(form) - _ANNOTATIONS:
        return
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    if "$schema" in form and not isinstance(form["$schema"], str):
        raise DescriptionError("form: $schema names the draft, as text")
    try:
        validator_for(form, default=Draft202012Validator).check_schema(form)
        _check_references(form)
        _validator(canonical(form)).is_valid(None)
    except SchemaError as error:
        place = "/".join(str(part) for part in error.absolute_path) or "the schema"
        raise DescriptionError(f"form: {place}: {_short(error.message)}") from error
    except RecursionError as error:
        raise DescriptionError(
            "form: a $ref of it leads back to where it stands, so that no answer could ever be checked: let it lead to "
            "a part below properties or items"
        ) from error
    except (TypeError, ValueError) as error:
        raise DescriptionError(f"form: not a JSON Schema: {error}") from error


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

    In this order: a choice by its exact text, JSON, the text itself where the form takes text. So ``5`` is the number
    and ``"5"`` the text, unless ``5`` is a choice or only text is allowed.

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
    except (ValueError, RecursionError):
        as_text = _text_reason(text, form)
        if as_text:
            raise _refused(as_text) from None
        return text
    reason = _reason(value, form)
    if not reason:
        return completed(value, form)
    if not _text_reason(text, form):
        return text
    raise _refused(reason)


def describe(form: Json, choices: Sequence[Json] = ()) -> str:
    """Return in one line what may be answered."""
    if choices:
        return "one of: " + ", ".join(_choice_text(choice) for choice in choices)
    allowed = _allowed(form)
    if allowed is not None:
        return "one of: " + ", ".join(_choice_text(choice) for choice in allowed)
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
        return f"not a JSON value: {error}"
    allowed = _allowed(form)
    if allowed is not None:
        if any(canonical(choice) == text for choice in allowed):
            return ""
        return f"{_short(_choice_text(value))} is not {describe(form)}"
    if form is True or (isinstance(form, dict) and not set(form) - _ANNOTATIONS):
        return ""
    if form is False:
        return "this request takes no answer"
    try:
        problems = list(_validator(canonical(form)).iter_errors(value))
    except Exception as error:  # boundary: a schema that cannot be applied must not stop its caller
        return f"the form cannot be applied: {_short(str(error))}"
    return _explain(problems) if problems else ""


def _explain(problems: list[Any]) -> str:
    from jsonschema.exceptions import best_match

    best: _Problem = best_match(problems)
    place = ".".join(str(part) for part in best.absolute_path)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place + ': ' if place else ''}{_short(best.message)}{more}"


def _check_references(form: dict[str, Json]) -> None:
    """Raise ValueError for a reference that is not to a part of this very schema, or to a part that is not there."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resolver = Registry[Any]().with_resource("", DRAFT202012.create_resource(form)).resolver()
    for reference in _references(form):
        try:
            if not reference.startswith("#"):
                raise ValueError(f"$ref {reference!r} leads elsewhere; a schema may only refer to itself, with '#…'")
            resolver.lookup(reference)
        except Unresolvable:
            raise ValueError(f"$ref {reference!r} leads to nothing") from None


def _references(value: Json) -> list[str]:
    if isinstance(value, list):
        return [found for item in value for found in _references(item)]
    if not isinstance(value, dict):
        return []
    own = [found for key in ("$ref", "$dynamicRef") if isinstance(found := value.get(key), str)]
    return own + [found for item in value.values() for found in _references(item)]


def _allowed(form: Json) -> list[Json] | None:
    """The values of a form that only lists values, None for any other form."""
    if not isinstance(form, dict) or len(set(form) - _ANNOTATIONS) != 1 or not _PLAIN & set(form):
        return None
    if "const" in form:
        return [form["const"]]
    values = form["enum"]
    return values if isinstance(values, list) and values else None


@lru_cache(maxsize=64)
def _validator(form: str) -> _Validator:
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    schema = json.loads(form)
    cls = validator_for(schema, default=Draft202012Validator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # An empty registry of our own: without one, jsonschema fetches what a $ref names.
        registry: Registry[Any] = Registry()
        made: _Validator = cls(schema, registry=registry, format_checker=cls.FORMAT_CHECKER)
    return made


def _refused(reason: str) -> AnswerRefused:
    error = AnswerRefused(reason)
    error.code = "invalid"
    return error


def _choice_text(value: Json) -> str:
    if isinstance(value, str) and value and value == value.strip() and "," not in value:
        return value
    return canonical(value)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")
