from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.errors import AnswerRefused, DescriptionError
from pilot_hitl.inbox import forms
from pilot_hitl.model.canonical import Json, canonical

NUMBER: Json = {"type": "number", "minimum": 0, "maximum": 1}
MESH: Json = {
    "type": "object",
    "properties": {"size": {"type": "integer", "minimum": 5}, "note": {"type": "string"}},
    "required": ["size"],
    "additionalProperties": False,
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_choices_are_taken_by_exact_text() -> None:
    form = forms.form_of(["accept", "refine"])
    assert forms.parse_answer("accept", form, ["accept", "refine"]) == "accept"
    assert forms.parse_answer('"refine"', form, ["accept", "refine"]) == "refine"


def test_what_is_not_a_choice_is_refused_and_the_choices_are_named() -> None:
    form = forms.form_of(["accept", "refine"])
    with pytest.raises(AnswerRefused, match="maybe is not one of: accept, refine") as caught:
        forms.parse_answer("maybe", form, ["accept", "refine"])
    assert caught.value.code == "invalid"


def test_true_is_not_one_and_one_is_one_point_zero() -> None:
    form = forms.form_of([1, "1"])
    assert not forms.valid(True, form)
    assert forms.valid(1.0, form)
    assert forms.parse_answer("1", form, [1, "1"]) == "1"
    assert forms.parse_answer("1.0", form, [1, "1"]) == 1


@pytest.mark.parametrize(("text", "value"), [("5", 5), ('"5"', "5"), ("five", "five"), ("null", None), ("[1]", [1])])
def test_json_goes_before_text(text: str, value: Json) -> None:
    assert forms.parse_answer(text, True) == value


def test_text_that_looks_like_json_is_text_where_only_text_is_allowed() -> None:
    assert forms.parse_answer("5", {"type": "string"}) == "5"
    assert forms.parse_answer("NaN", {"type": "string"}) == "NaN"
    assert forms.parse_answer("", {"type": "string"}) == ""


def test_numbers_are_checked_against_their_range() -> None:
    assert forms.parse_answer("0.3", NUMBER) == 0.3
    with pytest.raises(AnswerRefused, match="maximum of 1"):
        forms.parse_answer("3", NUMBER)
    with pytest.raises(AnswerRefused, match="is not of type 'number'"):
        forms.parse_answer("much", NUMBER)


def test_the_wrong_part_of_an_object_is_named() -> None:
    assert forms.parse_answer('{"size": 7}', MESH) == {"size": 7}
    with pytest.raises(AnswerRefused, match="size: 3 is less than the minimum of 5"):
        forms.parse_answer('{"size": 3}', MESH)
    with pytest.raises(AnswerRefused, match="'size' is a required property"):
        forms.validate({}, MESH)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "[" * 100_000, '"\\ud800"', "\ud800", "x" * (2 << 20)])
def test_hostile_text_is_refused_not_raised(text: str) -> None:
    with pytest.raises(AnswerRefused):
        forms.parse_answer(text, {"type": ["number", "array"]})


@pytest.mark.parametrize(
    "form",
    [
        {"type": "nonsense"},
        {"type": 3},
        [],
        "text",
        3,
        {"$ref": "https://example.org/schema.json"},
        {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {"properties": {"a": {"$ref": "#/$defs/absent"}}},
        {"$schema": 5, "type": "string"},
    ],
)
def test_what_is_not_a_schema_of_its_own_is_refused(form: Json) -> None:
    with pytest.raises(DescriptionError, match="form: "):
        forms.check_form(form)


@pytest.mark.parametrize(
    "form",
    [{}, True, {"enum": [1]}, NUMBER, MESH, {"title": "x"}, {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}],
)
def test_schemas_are_let_through(form: Json) -> None:
    forms.check_form(form)


def test_a_remote_reference_is_never_followed() -> None:
    assert not forms.valid(1, {"$ref": "http://127.0.0.1:9/schema.json"})


@pytest.mark.parametrize("choices", [[], ["a", "a"], [1, 1.0], [float("nan")]])
def test_choices_that_cannot_be_meant(choices: list[Json]) -> None:
    with pytest.raises(DescriptionError, match="choices: "):
        forms.form_of(choices)


@given(st.lists(JSON, min_size=1, max_size=5, unique_by=canonical), JSON)
def test_a_choice_form_allows_exactly_its_choices(choices: list[Json], other: Json) -> None:
    form = forms.form_of(choices)
    assert all(forms.valid(choice, form) for choice in choices)
    assert forms.valid(other, form) == (canonical(other) in {canonical(choice) for choice in choices})


@given(JSON, st.sampled_from([NUMBER, MESH, {"type": "string"}, {"type": ["array", "null"]}, True]))
def test_what_is_parsed_is_valid(value: Json, form: Json) -> None:
    text = canonical(value)
    try:
        parsed = forms.parse_answer(text, form)
    except AnswerRefused:
        assert not forms.valid(value, form)
    else:
        assert forms.valid(parsed, form)
        assert parsed == text or canonical(parsed) == text


def test_matches_speaks_json_text() -> None:
    assert forms.matches('{"type":"number","exclusiveMinimum":3}', "4")
    assert not forms.matches('{"type":"number","exclusiveMinimum":3}', "3")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"enum": ["a", "b c", 3]}, "one of: a, b c, 3"),
        (NUMBER, "number at least 0, at most 1"),
        (MESH, "object with size, note (optional)"),
        ({"type": "boolean"}, "true or false"),
        ({}, "anything"),
        (True, "anything"),
    ],
)
def test_describe(form: Json, words: str) -> None:
    assert forms.describe(form) == words


def test_plain_choices_do_not_load_jsonschema() -> None:
    code = (
        "import sys\nfrom pilot_hitl.inbox import forms\n"
        "form = forms.form_of(['a', 'b'])\nforms.check_form(form)\nforms.parse_answer('a', form)\n"
        "sys.exit('jsonschema' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("text", ['{"m": "b"', "[1,", '"a'])
def test_what_begins_as_json_and_is_none_is_told_where(text: str) -> None:
    with pytest.raises(AnswerRefused, match=r"begins as JSON does, and is none: at character \d+"):
        forms.parse_answer(text, {"type": "object"})
    assert forms.parse_answer(text, {"type": "string"}) == text
