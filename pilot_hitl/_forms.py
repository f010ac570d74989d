"""Forms from Python types: a dataclass, TypedDict, msgspec.Struct or pydantic model as the schema of an answer.

The hub validates an answer in full before it accepts it, and it runs no code of the user. So a type whose validity is
decided by code (validators, ``__post_init__``) or by formats that JSON Schema cannot check here is refused.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, is_typeddict

import msgspec

from pilot_hitl.errors import CheckpointError, DescriptionError
from pilot_hitl.inbox.bounded import FORMATS
from pilot_hitl.inbox.forms import COMPLETES
from pilot_hitl.model.canonical import Json, canonical

_TOLD = (
    msgspec.inspect.AnyType,
    msgspec.inspect.NoneType,
    msgspec.inspect.BoolType,
    msgspec.inspect.IntType,
    msgspec.inspect.FloatType,
    msgspec.inspect.StrType,
    msgspec.inspect.DateType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
    msgspec.inspect.UnionType,
    msgspec.inspect.ListType,
    msgspec.inspect.VarTupleType,
    msgspec.inspect.TupleType,
    msgspec.inspect.DictType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.NamedTupleType,
    msgspec.inspect.DataclassType,
    msgspec.inspect.StructType,
)
"""Kinds of values that a JSON Schema of msgspec's describes in full."""
_CODE = frozenset({"function-before", "function-after", "function-wrap", "function-plain"})


class AnswerType:
    """A Python type that answers are made of.

    Attributes:
        type: the class.
        schema: JSON Schema of it.
    """

    def __init__(self, kind: Any) -> None:
        """Look at the type.

        Raises:
            DescriptionError: it is none of those that can be a form, or is not told by a schema alone.
        """
        self.type = kind
        self._pydantic = _is_pydantic(kind)
        self._name = str(getattr(kind, "__name__", kind))
        made = self._of_pydantic() if self._pydantic else self._of_msgspec()
        self.schema: dict[str, Json] = {**_closed(made), COMPLETES: True}
        self._check_formats()

    def make(self, value: Json) -> Any:
        """Return the instance that a valid answer stands for.

        Raises:
            CheckpointError: the type does not take it after all.
        """
        try:
            if self._pydantic:
                return self.type.model_validate(value)
            return msgspec.convert(value, self.type)
        except ValueError as error:  # msgspec's and pydantic's own are both
            raise CheckpointError(
                f"the answer {value!r} fits the form but not {self._name}: {error}; was the type changed since it was "
                'asked? The record is cp.answer(), and on_change="ask" asks again'
            ) from error

    def _of_msgspec(self) -> dict[str, Json]:
        kind = self.type
        if not (dataclasses.is_dataclass(kind) or is_typeddict(kind) or _is_struct(kind)):
            raise DescriptionError(
                f"form: {kind!r} is none of: a JSON Schema (a dict), a dataclass, a TypedDict, a msgspec.Struct, a "
                "pydantic model"
            )
        try:
            parts = list(_parts(kind))
        except (TypeError, ValueError) as error:
            raise DescriptionError(f"form: {self._name} cannot be told as a JSON Schema: {error}") from error
        for part in parts:
            cls = getattr(part, "cls", None)
            if cls is not None and hasattr(cls, "__post_init__"):
                raise DescriptionError(
                    f"form: {cls.__name__}.__post_init__ could refuse what was accepted already: answers are checked "
                    "by the form alone; write limits as Annotated[int, msgspec.Meta(ge=0)] instead"
                )
            if not isinstance(part, _TOLD):
                what = type(part).__name__.removesuffix("Type").lower()
                raise DescriptionError(
                    f"form: {self._name} has a value of kind {what}, which a JSON Schema does not check in full before "
                    "an answer is accepted: use str (with a pattern), numbers, lists, dicts, enums, or a nested type"
                )
        try:
            schema = msgspec.json.schema(kind)
        except (TypeError, ValueError) as error:
            raise DescriptionError(f"form: {self._name} cannot be told as a JSON Schema: {error}") from error
        return _inlined(_with_defaults(schema, parts))

    def _of_pydantic(self) -> dict[str, Json]:
        for part in _dicts(self.type.__pydantic_core_schema__):
            if part.get("type") in _CODE or part.get("post_init"):
                raise DescriptionError(
                    f"form: {self._name} has validators in Python code, which could refuse what was accepted already: "
                    "answers are checked by the form alone; write limits as Field(ge=0) and the like"
                )
        schema: dict[str, Json] = self.type.model_json_schema(schema_generator=_generator())
        return schema

    def _check_formats(self) -> None:
        for part in _dicts(self.schema):
            name = part.get("format")
            unchecked = name if isinstance(name, str) and name not in FORMATS else part.get("contentEncoding")
            if isinstance(unchecked, str):
                raise DescriptionError(
                    f"form: {self._name} has a value of format {unchecked!r}, which cannot be checked before an answer "
                    "is accepted: use str, with a pattern"
                )


def answer_type(form: object) -> AnswerType | None:
    """Return the type that a form is given as, None for a JSON Schema.

    Raises:
        DescriptionError: see :class:`AnswerType`.
    """
    return AnswerType(form) if isinstance(form, type) else None


def plain(value: Any) -> Any:
    """Return a value as JSON: instances of the types that can be forms become objects."""
    if _is_pydantic(type(value)):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(type(value)) or _is_struct(type(value)):
        return msgspec.to_builtins(value)
    return value


def _with_defaults(schema: dict[str, Any], parts: Iterable[msgspec.inspect.Type]) -> dict[str, Any]:
    """Return a schema of msgspec's with the defaults that functions make, which it leaves out."""
    known: dict[str, Any] = schema.get("$defs", {})
    for part in parts:
        cls, fields = getattr(part, "cls", None), getattr(part, "fields", ())
        factories = {each.encode_name: each.default_factory for each in fields if _has_factory(each)}
        if cls is None or not factories:
            continue
        (reference,), _ = msgspec.json.schema_components([cls], ref_template="{name}")
        properties = known[reference["$ref"]]["properties"]
        for name, factory in factories.items():
            if "default" not in properties[name]:
                properties[name]["default"] = _made(f"{cls.__name__}.{name}", factory, msgspec.to_builtins)
    return schema


def _has_factory(field: object) -> bool:
    return getattr(field, "default_factory", msgspec.NODEFAULT) is not msgspec.NODEFAULT


@lru_cache(maxsize=1)
def _generator() -> Any:
    """Return pydantic's generator of schemas, with the defaults that functions make, which it leaves out."""
    from pydantic.json_schema import GenerateJsonSchema
    from pydantic_core import to_jsonable_python

    class WithDefaults(GenerateJsonSchema):
        def default_schema(self, schema: Any) -> Any:
            if "default" not in schema and (factory := schema.get("default_factory")) is not None:
                if schema.get("default_factory_takes_data"):
                    raise DescriptionError(
                        "form: a default_factory that looks at other fields could make anything of an answer: leave "
                        "the field out of the form, and compute it from the answer"
                    )
                schema = {**schema, "default": _made("a field", factory, to_jsonable_python)}
            return super().default_schema(schema)

    return WithDefaults


def _made(what: str, factory: Callable[[], Any], as_json: Callable[[Any], Any]) -> Json:
    """Return the default that a function makes, which is part of the form from then on.

    Raises:
        DescriptionError: it makes another one each time, or none that is JSON.
    """
    try:
        first, second = as_json(factory()), as_json(factory())
        same = canonical(first) == canonical(second)
    except Exception as error:  # boundary: of the user's function
        raise DescriptionError(
            f"form: the default of {what} cannot be made: {type(error).__name__}: {error}"
        ) from error
    if not same:
        raise DescriptionError(
            f"form: the default of {what} is another one each time that its function is called, so an answer that "
            "leaves it out would mean something else on each run: make it optional, with None as its default, and fill "
            "it in once the answer is there"
        )
    made: Json = first
    return made


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _is_pydantic(kind: object) -> bool:
    module = sys.modules.get("pydantic")
    base = getattr(module, "BaseModel", None)
    return base is not None and isinstance(kind, type) and issubclass(kind, base)


def _parts(kind: Any) -> Iterator[msgspec.inspect.Type]:
    """Yield what a type consists of, itself included."""
    todo: list[msgspec.inspect.Type] = [msgspec.inspect.type_info(kind)]
    seen = set()
    while todo:
        info = todo.pop()
        cls = getattr(info, "cls", None)
        if cls is not None:
            if cls in seen:
                continue
            seen.add(cls)
        yield info
        for name in info.__struct_fields__:
            value = getattr(info, name)
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, msgspec.inspect.Field):
                    todo.append(each.type)
                elif isinstance(each, msgspec.inspect.Type):
                    todo.append(each)


def _inlined(schema: dict[str, Any]) -> dict[str, Json]:
    """Return a schema whose top says what it is; only what is used again stays a reference."""
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    parts: dict[str, Any] = dict(schema.get("$defs", {}))
    name = reference.rpartition("/")[2]
    top = dict(parts[name])
    if not any(part.get("$ref") == reference for part in _dicts(list(parts.values()))):
        del parts[name]
    return {**top, "$defs": parts} if parts else top


def _closed(part: Any) -> Any:
    """Return a schema whose objects take only what they name: a misspelt name would be dropped without a word."""
    if isinstance(part, list):
        return [_closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    # What is below these is data, or names of properties and parts.
    closed = {
        key: {name: _closed(each) for name, each in value.items()}
        if key in {"properties", "$defs"}
        else value
        if key in {"default", "enum", "const", "examples"}
        else _closed(value)
        for key, value in part.items()
    }
    if "properties" in part:
        closed.setdefault("additionalProperties", False)
    return closed


def _dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all mappings in nested data, each object once."""
    todo, seen = [value], set()
    while todo:
        item = todo.pop()
        if not isinstance(item, Mapping | list | tuple) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Mapping):
            yield item
            todo.extend(item.values())
        else:
            todo.extend(item)
