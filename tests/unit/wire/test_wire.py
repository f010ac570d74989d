"""Frames, packed values, blobs, keys, places; and that every error travels with its fields."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_hitl import errors
from pilot_hitl.model.failures import Cause, Failure
from pilot_hitl.model.resources import NodeInventory, Shape
from pilot_hitl.model.states import State
from pilot_hitl.wire import messages as m
from pilot_hitl.wire import values
from pilot_hitl.wire.blobs import BlobMissing, BlobStore
from pilot_hitl.wire.codec import (
    TO_AGENT,
    TO_CLIENT,
    TO_HUB,
    VERSION,
    FrameError,
    encode,
    pack_bodies,
    unpack_bodies,
)
from pilot_hitl.wire.keys import keyring
from pilot_hitl.wire.places import (
    LONGEST_SOCKET,
    SOCKET_PATH_LIMIT,
    SessionPlaces,
    home_hash,
    private_folder,
    runtime_folder,
)


class Future:
    """Stands for a future of ours."""

    def __init__(self, task: int) -> None:
        self.task = task


def future_id(thing: object) -> int | None:
    return thing.task if isinstance(thing, Future) else None


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


# --- codec ------------------------------------------------------------------------------------------------------------


def test_messages_travel_in_their_order() -> None:
    shape = Shape(ranks=2, colocate="x")
    submit = m.Submit(1, 2, 3, shape, pack_bodies([b"a", b""]), deps=[5])
    report = m.Report(1, 2, 3, State.FAILED, b"\0", Failure(Cause.EXIT, "why"), core_set=[1])
    sent = [submit, m.Reports(7, [report]), m.Flush(1)]
    assert TO_HUB.decode(encode(sent)) == sent
    assert TO_HUB.decode(memoryview(encode(sent))) == sent
    welcome = [m.AgentWelcome(1, 2, 3, 4), m.Dispatch(1, 2, 3, shape, 4, 5, b"x", inputs=[(9, b"v")])]
    assert TO_AGENT.decode(encode(welcome)) == welcome
    hello = [m.AgentHello("s", 1, 0, 2, 3, "h", [NodeInventory(name="n", cores=[0])], known=[(1, 2, 3)])]
    assert TO_HUB.decode(encode(hello)) == hello
    assert TO_CLIENT.decode(encode([])) == []


@pytest.mark.parametrize(
    "frame",
    [b"", bytes([VERSION]), bytes([VERSION + 1]) + b"\x90", bytes([VERSION]) + b"\xc0", encode([m.Flush(1)]) + b"x"],
)
def test_what_is_no_frame(frame: bytes) -> None:
    with pytest.raises(FrameError):
        TO_HUB.decode(frame)


@given(st.binary(max_size=60))
def test_noise_is_never_more_than_a_frame_error(noise: bytes) -> None:
    for frame in (noise, bytes([VERSION]) + noise):
        with contextlib.suppress(FrameError):
            TO_HUB.decode(frame)


def test_each_direction_has_its_messages() -> None:
    with pytest.raises(FrameError):
        TO_HUB.decode(encode([m.AgentWelcome(1, 2, 3, 4)]))
    with pytest.raises(FrameError):
        TO_AGENT.decode(encode([m.Flush(1)]))
    deep = bytes([VERSION]) + b"\x91" * 5000
    with pytest.raises(FrameError):
        TO_HUB.decode(deep)


def test_an_oversized_frame_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot_hitl.wire.codec.MAX_FRAME", 10)
    with pytest.raises(FrameError, match="more than a frame"):
        TO_HUB.decode(encode([m.Query(1, "x" * 20)]))


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_bodies_travel_as_one(bodies: list[bytes]) -> None:
    assert unpack_bodies(pack_bodies(bodies)) == bodies


def test_bodies_that_are_none() -> None:
    for blob in (b"", b"\x91\x01", b"\xff"):
        with pytest.raises(FrameError):
            unpack_bodies(blob)


# --- values -----------------------------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner),
    max_leaves=8,
)


@settings(max_examples=50)
@given(PLAIN)
def test_values_come_back(value: Any) -> None:
    nowhere = BlobStore(Path("/nowhere"))
    assert values.loads(values.dumps(value, nowhere), nowhere) == value
    call = values.dumps_call((value,), {"k": value}, nowhere, future_id)
    assert values.loads(call, nowhere) == ((value,), {"k": value})


@pytest.mark.parametrize("count", [10, 100_000])
def test_arrays_come_back_writable_and_large_ones_by_reference(blobs: BlobStore, count: int) -> None:
    value: dict[str, Any] = {"x": np.arange(count, dtype=np.float64), "y": [np.ones((3, 2), order="F"), "text"]}
    packed = values.dumps(value, blobs)
    assert packed[0] == (2 if count > 1000 else 1)
    assert len(packed) < values.INLINE_LIMIT
    assert blobs.folder.exists() == (count > 1000)
    back = values.loads(packed, blobs)
    np.testing.assert_array_equal(back["x"], value["x"])
    np.testing.assert_array_equal(back["y"][0], value["y"][0])
    back["x"][0] = 7
    assert values.loads(packed, blobs)["x"][0] == 0


@pytest.mark.parametrize("value", ["x" * 100_000, b"y" * 100_000, ["z" * 100_000], [list(range(50_000))]])
def test_large_values_go_by_reference(blobs: BlobStore, value: Any) -> None:
    packed = values.dumps(value, blobs)
    assert packed[0] == 2
    assert len(packed) == 29
    assert values.loads(packed, blobs) == value
    assert values.loads(values.dumps_call((value,), {}, blobs, future_id), blobs) == ((value,), {})


def test_the_limit_is_exact(blobs: BlobStore) -> None:
    overhead = len(pickle.dumps("x" * 60_000, 5)) - 60_000
    inline = "x" * (values.INLINE_LIMIT - overhead - 1)
    assert values.dumps(inline, blobs)[0] == 0
    assert values.dumps(inline + "x", blobs)[0] == 2


def test_futures_travel_by_reference_and_two_mentions_are_one_object(blobs: BlobStore) -> None:
    packed = values.dumps_call((Future(5), [Future(5), Future(6)]), {"k": Future(6)}, blobs, future_id)
    inputs = {5: values.dumps({"a": 1}, blobs), 6: values.dumps(np.zeros(50_000), blobs)}
    (one, (two, three)), kwargs = values.loads(packed, blobs, inputs)
    assert one == {"a": 1}
    assert two is one
    assert kwargs["k"] is three
    with pytest.raises(KeyError):
        values.loads(packed, blobs, {5: inputs[5]})


def test_functions_of_a_script_travel_by_value(blobs: BlobStore) -> None:
    base = 3
    back = values.loads(values.dumps(lambda x: x + base, blobs), blobs)
    assert back(4) == 7


def test_what_is_no_packed_value(blobs: BlobStore) -> None:
    with pytest.raises(pickle.UnpicklingError):
        values.loads(b"\x07abc", blobs)


# --- blobs ------------------------------------------------------------------------------------------------------------


def test_equal_content_is_one_file(blobs: BlobStore) -> None:
    digest, size = blobs.put([b"ab", bytearray(b"c"), memoryview(b"de")])
    assert (size, blobs.put([b"abcde"])) == (5, (digest, 5))
    assert blobs.get(digest) == b"abcde"
    assert [path.name for path in blobs.folder.rglob("*") if path.is_file()] == [digest.hex()]
    assert blobs.put([])[1] == 0


def test_a_missing_blob_says_so(blobs: BlobStore) -> None:
    with pytest.raises(BlobMissing, match="gone"):
        blobs.get(b"\1" * 20)


# --- keys and places --------------------------------------------------------------------------------------------------


def test_keys_are_made_once_and_are_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    ring = keyring(home)
    assert keyring(home) == ring
    assert len({ring.hub_public, ring.hub_secret, ring.peer_public, ring.peer_secret}) == 4
    path = home / "hub" / "keys.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["keys.json"]
    path.chmod(0o640)
    with pytest.raises(PermissionError, match="chmod 600"):
        keyring(home)


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="chmod 700"):
        private_folder(folder)
    link = tmp_path / "link"
    link.symlink_to(private_folder(tmp_path / "y"))
    with pytest.raises(PermissionError):
        private_folder(link)


def test_socket_paths_stay_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        assert runtime_folder(tmp_path).parent == Path(short)
        # Room for the hub's socket is not enough: those of services' replicas have longer names.
        for length in (90, 50):
            base = Path(short, "x" * length)
            base.mkdir()
            monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
            folder = runtime_folder(tmp_path)
            assert len(os.fsencode(folder / LONGEST_SOCKET)) <= SOCKET_PATH_LIMIT
            assert folder.parent == Path("/", "tmp")


def test_a_home_has_one_hash_whatever_path_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert home_hash(tmp_path / "link") == home_hash(tmp_path)
    assert home_hash(tmp_path) != home_hash(tmp_path / "other")
    places = SessionPlaces(tmp_path, "study")
    assert places.pilot(3) == tmp_path / "sessions" / "study" / "pilots" / "3"
    assert places.mark == f"{home_hash(tmp_path)}/study"
    assert not places.folder.exists()


# --- errors -----------------------------------------------------------------------------------------------------------


def _all_errors() -> list[type[errors.PilotHitlError]]:
    found, todo = [], [errors.PilotHitlError]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += one.__subclasses__()
    return [one for one in found if one.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", _all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_pickles_with_its_fields(kind: type[errors.PilotHitlError]) -> None:
    error = kind("what happened")
    if isinstance(error, errors.TaskError):
        error.task, error.attempt, error.host = "task.1.000002", (3, 4), "node7"
        assert str(error) == "what happened"
    vars(error)["exit_code"] = 5
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (back.args, vars(back), str(back)) == (error.args, vars(error), str(error))
    assert kind.__doc__


def test_every_error_is_drawn_in_the_tree() -> None:
    assert errors.__doc__
    for kind in _all_errors():
        assert kind.__name__ in errors.__doc__
    assert not issubclass(errors.BranchDiscarded, Exception)
