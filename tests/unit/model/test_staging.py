"""How staging directives are written, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.model.staging import PILOT, SANDBOX, SESSION, Directive, Field, directives


def one(field: Field, item: object) -> Directive:
    return directives(field, [item], folder="/w")[0]


@pytest.mark.parametrize(
    ("item", "root", "source", "target", "action"),
    [
        ("in.dat > here.dat", "/w", "in.dat", "here.dat", "copy"),
        ("here.dat<in.dat", "/w", "in.dat", "here.dat", "copy"),
        ("  data/in put.dat ", "/w", "data/in put.dat", "", "copy"),
        ("/abs/in.dat > sub/x", "/", "abs/in.dat", "sub/x", "copy"),
        (Path("/abs/a > b"), "/", "abs/a > b", "", "copy"),
        ({"source": "a", "target": "b", "action": "LINK"}, "/w", "a", "b", "link"),
        ({"source": "a", "target": None, "action": None}, "/w", "a", "", "copy"),
        ({"source": "client:///a"}, "/w", "a", "", "copy"),
        ({"source": "file:///abs/a", "action": "Move"}, "/", "abs/a", "", "move"),
        ({"source": "endpoint:///abs/a"}, "/", "abs/a", "", "copy"),
        ({"source": "File://localhost/abs/a"}, "/", "abs/a", "", "copy"),
        ({"source": "pilot:///shared/a", "target": "task:///b"}, PILOT, "shared/a", "b", "copy"),
        ({"source": "session:///a", "target": "in/", "action": "Transfer"}, SESSION, "a", "in/", "copy"),
    ],
)
def test_inputs(item: object, root: str, source: str, target: str, action: str) -> None:
    made = one("input_staging", item)
    assert (made.root, made.source, made.into, made.target, made.action) == (root, source, SANDBOX, target, action)
    assert made.folder is (target in ("", "in/"))


@pytest.mark.parametrize(
    ("item", "root", "source", "into", "target"),
    [
        ("out/x.dat > results/y.dat", SANDBOX, "out/x.dat", "/w", "results/y.dat"),
        ("x.dat", SANDBOX, "x.dat", "/w", ""),
        ("x.dat > pilot:///kept/", SANDBOX, "x.dat", PILOT, "kept/"),
        ("*.log > /logs/", SANDBOX, "*.log", "/", "logs/"),
        ({"source": "task:///x.dat", "target": "client:///y"}, SANDBOX, "x.dat", "/w", "y"),
    ],
)
def test_outputs(item: object, root: str, source: str, into: str, target: str) -> None:
    made = one("output_staging", item)
    assert (made.root, made.source, made.into, made.target) == (root, source, into, target)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("", "names no source"),
        ("  ", "names no source"),
        ("a >", "names no target"),
        ("> b", "names no source"),
        ("a > b > c", "several arrows"),
        ("a >> b", "appended"),
        ("a << b", "appended"),
        ({"target": "x"}, "names no source"),
        ({"source": ""}, "names no source"),
        ({"source": 3}, "as text, not 3"),
        ({"source": b"a"}, "as text"),
        ({"source": "a", "target": 3}, "as text, not 3"),
        ({"source": "a", "action": "teleport"}, "copy, transfer, upload, download, link, move"),
        ({"source": "a", "action": 7}, "7 is none of"),
        ({"source": "a", "action": "tarball"}, "copied whole"),
        ({"source": "a", "flags": 1}, "'flags' is not known"),
        ({"source": "a", "tarqet": "b"}, "'tarqet' is not known"),
        (3, "mapping with source and target, not 3"),
        (None, "not None"),
        ([], "write \\(future"),
        (("a", "b"), "write \\(future"),
        ("http://example.org/x", "http:// cannot be staged"),
        ("s3://bucket/x", "s3:// cannot be staged"),
        ("resource:///x", "staged; use pilot:///"),
        ("task:///b", "not lie in the task's sandbox"),
        ("task://task.1.000001/b", "of another task is \\(future"),
        ("file://elsewhere/x", "other hosts"),
        ("a > task://task.1.000001/b", "by its future"),
        ("a > client:///b", "relative to that"),
        ("/", "no name of its own"),
        (".", "no name of its own"),
        ("../..", "no name of its own"),
        ("pilot:///", "no name of its own"),
        ("*.dat > all", "write 'all/'"),
        ("**/x.dat", "is not known"),
        ("a\0b", "NUL"),
        ("a\udcff", "UTF-8"),
        ({"source": (object(), "/etc/passwd")}, "below that task's sandbox"),
        ({"source": (object(), "")}, "names no source"),
        ({"source": (object(),)}, "write \\(future"),
    ],
)
def test_directives_that_are_refused(item: object, said: str) -> None:
    with pytest.raises(ValueError, match=rf"input_staging\[0\]: .*{said}"):
        directives("input_staging", [item], folder="/w")


@pytest.mark.parametrize("value", ["in.dat", Path("in.dat"), {"source": "in.dat"}, 3, None, b"x"])
def test_what_is_no_list_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"input_staging is a list; write \['in.dat'\]"):
        directives("input_staging", value)


@pytest.mark.parametrize(
    ("field", "items"),
    [
        ("input_staging", ["a > x", "b > x"]),
        ("input_staging", ["a/x", "b/x"]),
        ("input_staging", ["a > ./sub/../x", "b/x > task:///"]),
        ("output_staging", ["a > x", "b > client:///x"]),
        ("output_staging", ["a > /w/x", "b > x"]),
    ],
)
def test_equal_targets_are_refused(field: Field, items: list[str]) -> None:
    with pytest.raises(ValueError, match="same target"):
        directives(field, items, folder="/w")


def test_a_future_is_a_source_of_inputs_only() -> None:
    future = object()
    numbers: list[Any] = []

    def number(value: object) -> int:
        numbers.append(value)
        return 7

    made = directives(
        "input_staging", [(future, "a.csv"), {"source": [future, "*.csv"], "target": "all/"}], number=number
    )
    assert [(each.origin, each.root, each.source) for each in made] == [(7, SANDBOX, "a.csv"), (7, SANDBOX, "*.csv")]
    assert numbers == [future, future]
    with pytest.raises(ValueError, match="input_staging only"):
        directives("output_staging", [(future, "a.csv")])


@pytest.mark.parametrize(
    ("item", "outside"),
    [
        ("a", False), ("a > b/c", False), ({"source": "a", "action": "move"}, True), ("a > ../b", True),
        ("a > /tmp/b", True), ("a > pilot:///b", True), ({"source": "a", "action": "link"}, False),
    ],
)  # fmt: skip
def test_what_an_input_changes_outside_of_the_sandbox(item: object, outside: bool) -> None:
    assert one("input_staging", item).outside is outside


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["source", "target", "action", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(anything, st.sampled_from(["input_staging", "output_staging"]))
def test_anything_is_converted_or_refused_by_name(value: object, field: Field) -> None:
    try:
        made, said = directives(field, value, folder="/w"), ""
    except ValueError as error:
        made, said = [], str(error)
    assert not said or field in said
    for each in made:
        assert each.source
        assert each.root in ("/", "/w", SANDBOX, SESSION, PILOT)
