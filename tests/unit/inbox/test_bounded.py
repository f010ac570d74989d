"""Forms are checked in bounded effort, whatever they and the answers are; what is right stays right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pilot_hitl.errors import AnswerRefused, DescriptionError
from pilot_hitl.inbox import bounded, forms, patterns
from pilot_hitl.model.canonical import Json, canonical

DEEP: Json = [[]]
for _ in range(60):
    DEEP = [DEEP]


def doubled(kind: str) -> dict[str, Json]:
    """A schema of some hundred words that applies its last part 2 ** 40 times."""
    parts: dict[str, Json] = {
        f"p{n}": {kind: [{"$ref": f"#/$defs/p{n + 1}"}, {"$ref": f"#/$defs/p{n + 1}"}]} for n in range(40)
    }
    return {"$ref": "#/$defs/p0", "$defs": {**parts, "p40": {"type": "string"}}}


MANY: list[Json] = [{"a": n} for n in range(50_000)]


COSTLY: list[tuple[dict[str, Json], Json, bool]] = [
    ({"type": "string", "pattern": "^(a+)+$"}, "a" * 1000 + "!", False),
    ({"type": "string", "pattern": "^(a|a)*$"}, "a" * 100_000, True),
    ({"type": "string", "pattern": "(x+x+)+y"}, "x" * 100_000, False),
    ({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}, "a" * 10_000, False),
    ({"patternProperties": {"^(a+)+$": {"type": "null"}}}, {"a" * 1000 + "!": 1}, True),
    ({"patternProperties": {"^(a+)+$": True}, "additionalProperties": False}, {"a" * 1000 + "!": 1}, False),
    ({"propertyNames": {"pattern": "^(a+)+$"}}, {"a" * 1000 + "!": 1}, False),
    ({"type": "array", "uniqueItems": True}, MANY, True),
    ({"type": "array", "uniqueItems": True}, [*MANY, {"a": 7}], False),
    ({"type": "array", "minItems": 10**18}, [1], False),
    ({"format": "regex"}, "(" * 9000, False),
    ({"items": {"$ref": "#"}, "type": "array"}, DEEP, True),
]
TOO_COSTLY: list[tuple[dict[str, Json], Json]] = [
    ({"type": "array", "items": {"anyOf": [{"const": n} for n in range(100)]}}, [99] * 50_000),
    ({"allOf": [{"items": {}} for _ in range(1000)]}, [1] * 100_000),
    ({"properties": {"a": True}, "unevaluatedProperties": True}, {str(n): 1 for n in range(50_000)}),
    ({"type": "string", "pattern": "^(" + "(ab?){100}|" * 50 + "c)$"}, "ab" * 300_000),
    ({"type": "array", "items": {"enum": [[n] for n in range(1000)]}}, [[999]] * 50_000),
    ({"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {}}}, [0] * 50_000),
]


@pytest.mark.parametrize(("form", "value", "good"), COSTLY, ids=[canonical(form)[:60] for form, _v, _g in COSTLY])
def test_what_a_backtracking_or_quadratic_check_would_never_end(form: dict[str, Json], value: Json, good: bool) -> None:
    forms.check_form(form)
    assert forms.valid(value, form) is good


@pytest.mark.parametrize(("form", "value"), TOO_COSTLY, ids=[canonical(form)[:60] for form, _v in TOO_COSTLY])
def test_what_takes_too_much_is_refused_and_not_tried_to_the_end(form: dict[str, Json], value: Json) -> None:
    forms.check_form(form)
    with pytest.raises(AnswerRefused, match="too large for its form"):
        forms.validate(value, form)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (doubled("allOf"), "multiply"),
        (doubled("anyOf"), "multiply"),
        ({"$ref": "#"}, "leads back"),
        ({"type": "object", "$ref": "#"}, "leads back"),
        ({"allOf": [{"not": {"$ref": "#"}}]}, "leads back"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "leads back"),
        (
            {"if": {"$ref": "#/$defs/a"}, "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#"}}},
            "leads",
        ),
        ({"dependentSchemas": {"a": {"$ref": "#"}}}, "leads back"),
        ({"pattern": "(?=a)b"}, "without lookahead"),
        ({"properties": {"a": {"pattern": r"(a)\1"}}}, "references back"),
        ({"patternProperties": {"(?!x)": {}}}, "without lookahead"),
        ({"pattern": "a{1000}{1000}"}, "repeat less"),
        ({"pattern": "["}, "missing"),
        ({"pattern": "a" * 20_000}, "too long"),
        ({"patternProperties": {"a": {}}, "unevaluatedProperties": False}, "additionalProperties instead"),
        ({"properties": {f"a{n}": {"type": "string"} for n in range(10_000)}}, "characters"),
    ],
    ids=lambda each: canonical(each)[:60] if isinstance(each, dict) else each,
)
def test_a_form_that_could_not_be_checked_is_refused_when_it_is_asked(form: dict[str, Json], message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        forms.check_form(form)


def test_a_form_below_itself_is_a_tree_and_fine() -> None:
    tree: dict[str, Json] = {
        "type": "object",
        "properties": {"value": {"type": "number"}, "below": {"type": "array", "items": {"$ref": "#"}}},
        "additionalProperties": False,
    }
    forms.check_form(tree)
    assert forms.valid({"value": 1, "below": [{"below": [{"value": 2}]}]}, tree)
    assert not forms.valid({"below": [{"below": [{"value": "x"}]}]}, tree)
    much: Json = {}
    for _ in range(5000):
        much = {"below": [much]}
    with pytest.raises(AnswerRefused):
        forms.validate(much, tree)


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"^\d+$", "123", True),
        (r"^\d+$", "123\n", False),
        (r"^[a-z]{2,4}(-\d+)?$", "ab-12", True),
        (r"\u00e9", "caf\u00e9", True),
        (r"\\u00e9", r"\u00e9", True),
        (r"^\p{Lu}", "\u00c9t\u00e9", True),
        (r"a\/b", "a/b", True),
        ("b", "abc", True),
    ],
)
def test_patterns_mean_what_json_schema_says(pattern: str, text: str, found: bool) -> None:
    assert patterns.compiled(pattern).found(text) is found


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=4),
    max_leaves=12,
)
SCHEMAS = st.recursive(
    st.sampled_from(
        [
            True,
            {"type": "string", "pattern": "^a*b$"},
            {"type": "number", "minimum": 0},
            {"enum": ["a", 1, None]},
            {"type": "array", "uniqueItems": True, "minItems": 1},
            {"required": ["a"], "propertyNames": {"pattern": "a"}},
        ]
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"oneOf": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"items": inner, "not": st.just({"type": "boolean"})}),
        st.fixed_dictionaries(
            {
                "properties": st.fixed_dictionaries({"a": inner}),
                "patternProperties": st.fixed_dictionaries({"^b": inner}),
                "additionalProperties": st.sampled_from([True, False, {"type": "null"}]),
            }
        ),
        st.fixed_dictionaries({"contains": inner, "prefixItems": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"if": inner, "then": inner, "unevaluatedProperties": st.just(False)}),
    ),
    max_leaves=6,
)


@given(SCHEMAS, VALUES)
def test_what_is_bounded_judges_as_what_is_not(schema: Any, value: Json) -> None:
    assert (not bounded.problems(canonical(schema), value)) == Draft202012Validator(schema).is_valid(value)


@given(st.text("ab(){}[]*+?|\\^$.1,:=!<>-", max_size=12), st.text("ab1\n", max_size=8))
def test_any_text_is_a_pattern_or_is_refused(pattern: str, text: str) -> None:
    try:
        found = patterns.Pattern(pattern)
    except ValueError:
        return
    assert found.found(text) in (True, False)


def test_a_refused_answer_names_the_first_problems_and_no_more() -> None:
    form: Json = {"type": "array", "items": {"type": "string"}}
    with pytest.raises(AnswerRefused, match=r": 1 is not of type 'string' \(and more\)"):
        forms.validate(json.loads("[1" + ",1" * 1000 + "]"), form)
