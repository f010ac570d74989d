"""JSON Schema with bounded effort: whatever the schema and the value, an answer is judged within some seconds.

Each keyword that is applied costs steps, more when it looks at much, and a judgement has a budget of them. So the same
answer is judged the same everywhere, however fast the machine. Expressions are those of
:mod:`pilot_hitl.inbox.patterns`. Nothing is ever fetched from the network.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

from pilot_hitl.inbox.patterns import compiled
from pilot_hitl.model.canonical import Json, canonical

STEPS = 100_000
"""What one judgement may cost; a keyword applied to something small costs one step, some ten microseconds."""
FORMATS = frozenset({"email", "idn-email", "ipv4", "ipv6", "date", "uuid", "regex"})
"""Values of ``format`` that are checked, the same everywhere; all others only tell people something."""
_REFERENCE = 10
"""Steps of following a reference."""
_MULTIPLE = 5_000
"""How often the parts of a form may be applied to one and the same value, all references followed."""
_IN_PLACE = ("not", "if", "then", "else")
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")

Keyword = Callable[[Any, Any, Any, Any], Iterable[Any] | None]


class TooCostlyError(Exception):
    """The budget is used up."""


class _Budget(threading.local):
    left = 0


_budget = _Budget()


def problems(form: str, value: Json, most: int = 1) -> list[Any]:
    """Return the first ``most`` problems of a value under a schema (canonical JSON), as errors of jsonschema.

    Raises:
        TooCostlyError: nothing wrong was found as long as the budget lasted.
        RecursionError: the value, or what the schema refers to, is nested too deeply.
        Exception: the schema cannot be applied.
    """
    _budget.left = STEPS
    found: list[Any] = []
    try:
        found += islice(_validator(form).iter_errors(value), most)
    except TooCostlyError:
        if not found:
            raise
    return found


def check(form: dict[str, Json]) -> None:
    """Check that a schema can be applied in bounded time.

    Raises:
        ValueError: it cannot; says which part and why.
        jsonschema.exceptions.SchemaError: it is none.
    """
    # Its patterns are looked at below, with words that say what to do.
    _class_of(form).check_schema(form, format_checker=_formats(frozenset()))
    for part in parts(form):
        patterns = part.get("patternProperties")
        both = isinstance(patterns, dict) and "unevaluatedProperties" in part
        if both:
            raise ValueError("patternProperties beside unevaluatedProperties: write additionalProperties instead")
        for text in [part.get("pattern"), *(patterns if isinstance(patterns, dict) else ())]:
            if isinstance(text, str):
                compiled(text)
    _check_references(form)
    try:
        problems(canonical(form), None)
    except TooCostlyError:
        raise ValueError(f"to check an answer under it takes more than {STEPS:,} steps, whatever the answer") from None


def parts(value: Json) -> Iterator[dict[str, Json]]:
    """Yield all objects in a schema, itself included."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield item
            todo += item.values()
        elif isinstance(item, list):
            todo += item


# --- keywords ---------------------------------------------------------------------------------------------------------


def _spend(steps: int) -> None:
    _budget.left -= steps
    if _budget.left < 0:
        raise TooCostlyError


def _size(value: Any) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _steps(name: str, value: Any, instance: Any) -> int:
    """Return what a keyword costs by itself: one step for each part of a value that it applies a schema to."""
    size, given = _size(instance), _size(value)
    if name in ("$ref", "$dynamicRef", "$recursiveRef"):
        return _REFERENCE
    if name in ("items", "contains", "additionalItems", "propertyNames"):
        return 1 + size
    if name in ("properties", "prefixItems", "dependentSchemas", "dependencies"):
        return 1 + min(size, given) + (given >> 3)
    if name == "enum":
        return 1 + given
    if name in ("unevaluatedItems", "unevaluatedProperties"):
        return 1 + size + (size**2 >> 10)
    return 1 + (size >> 3) + (given >> 3)


def _metered(name: str, check: Keyword) -> Keyword:
    """Return a keyword that pays for what it does, and for what it says."""

    def keyword(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        _spend(_steps(name, value, instance))
        for error in check(validator, value, instance, schema) or ():
            _spend(len(error.message) >> 5)
            yield error

    return keyword


def _found(pattern: str, text: str) -> bool:
    expression = compiled(pattern)
    _spend(1 + expression.size * len(text) // 1000)
    return expression.found(text)


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and not _found(pattern, instance):
        yield _error(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(instance, dict):
        for pattern, subschema in patterns.items():
            for key, value in instance.items():
                if _found(pattern, key):
                    yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    known, patterns = schema.get("properties", {}), list(schema.get("patternProperties", {}))
    extra = [key for key in instance if key not in known and not any(_found(each, key) for each in patterns)]
    if isinstance(allowed, dict):
        _spend(len(extra))
        for key in extra:
            yield from validator.descend(instance[key], allowed, path=key)
    elif not allowed and extra:
        named = ", ".join(repr(key) for key in sorted(extra))
        if patterns:
            verb = "does" if len(extra) == 1 else "do"
            yield _error(f"{named} {verb} not match any of the regexes: {', '.join(map(repr, sorted(patterns)))}")
        else:
            verb = "was" if len(extra) == 1 else "were"
            yield _error(f"Additional properties are not allowed ({named} {verb} unexpected)")


def _unique_items(_validator: Any, unique: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    if unique and isinstance(instance, list) and len({canonical(item) for item in instance}) < len(instance):
        yield _error(f"{instance!r} has non-unique elements")


_OURS: dict[str, Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
}


def _error(message: str) -> Any:
    from jsonschema.exceptions import ValidationError

    return ValidationError(message)


# --- the validator ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _validator(form: str) -> Any:
    from referencing import Registry

    schema = json.loads(form)
    cls = _class_of(schema)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # An empty registry of our own: without one, jsonschema fetches what a $ref names.
        registry: Registry[Any] = Registry()
        return _bounded(cls)(schema, registry=registry, format_checker=_formats(FORMATS))


def _class_of(schema: dict[str, Json]) -> Any:
    from jsonschema.validators import Draft202012Validator, validator_for

    return validator_for(schema, default=Draft202012Validator)


@lru_cache(maxsize=8)
def _bounded(cls: Any) -> Any:
    from jsonschema import validators

    own = {name: check for name, check in _OURS.items() if name in cls.VALIDATORS}
    extend: Callable[[Any, dict[str, Keyword]], Any] = validators.extend
    return extend(cls, {name: _metered(name, check) for name, check in {**cls.VALIDATORS, **own}.items()})


@lru_cache(maxsize=8)
def _formats(names: frozenset[str]) -> Any:
    from jsonschema import Draft202012Validator, FormatChecker

    known = Draft202012Validator.FORMAT_CHECKER.checkers
    checker = FormatChecker(())
    checker.checkers = {name: known[name] for name in names}
    if "regex" in names:
        checker.checkers["regex"] = (_is_expression, ValueError)
    return checker


def _is_expression(value: object) -> bool:
    if isinstance(value, str):
        compiled(value)
    return True


# --- references -------------------------------------------------------------------------------------------------------


def _check_references(form: dict[str, Json]) -> None:
    """Raise ValueError for a reference that leads elsewhere, to nothing, or back to where it stands."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resolver = Registry[Any]().with_resource("", DRAFT202012.create_resource(form)).resolver()
    targets: dict[str, Json] = {}
    for part in parts(form):
        for reference in _references(part):
            try:
                if not reference.startswith("#"):
                    raise ValueError(
                        f"$ref {reference!r} leads elsewhere; a schema may only refer to itself, with '#…'"
                    )
                targets[reference] = resolver.lookup(reference).contents
            except Unresolvable:
                raise ValueError(f"$ref {reference!r} leads to nothing") from None
    _check_loops(form, targets)


def _references(part: dict[str, Json]) -> list[str]:
    return [found for key in ("$ref", "$dynamicRef") if isinstance(found := part.get(key), str)]


def _check_loops(form: dict[str, Json], targets: Mapping[str, Json]) -> None:
    """Raise ValueError when some part applies itself to the very same value again, or very many parts to one value."""
    times: dict[int, int] = {}
    """How many parts are applied, by the part that is applied first."""
    for start in parts(form):
        path: set[int] = set()
        todo: list[tuple[dict[str, Json], list[dict[str, Json]] | None]] = [(start, None)]
        while todo:
            part, below = todo.pop()
            if below is not None:
                path.discard(id(part))
                times[id(part)] = 1 + sum(times[id(each)] for each in below)
                if times[id(part)] > _MULTIPLE:
                    raise ValueError(
                        f"its parts are applied to one value more than {_MULTIPLE:,} times: its references multiply"
                    )
            elif id(part) in path:
                raise ValueError(
                    "a $ref of it leads back to where it stands, so that no answer could ever be checked: let it lead "
                    "to a part below properties or items"
                )
            elif id(part) not in times:
                path.add(id(part))
                inside = _in_place(part, targets)
                todo.append((part, inside))
                todo += [(each, None) for each in inside]


def _in_place(part: dict[str, Json], targets: Mapping[str, Json]) -> list[dict[str, Json]]:
    """Return the parts that a part of a schema applies to the same value."""
    found: list[Json] = [targets[each] for each in _references(part)]
    found += [part.get(key) for key in _IN_PLACE]
    for key in _IN_PLACE_LISTS:
        several = part.get(key)
        found += several if isinstance(several, list) else []
    dependent = part.get("dependentSchemas")
    found += dependent.values() if isinstance(dependent, dict) else []
    return [each for each in found if isinstance(each, dict)]
