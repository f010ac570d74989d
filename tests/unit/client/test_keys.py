from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest

from pilot_hitl._keys import KEY_BYTES, KeyMaker, NotResumableWarning


class FakeFuture:
    def __init__(self, key: bytes) -> None:
        self.key = key

    def __reduce__(self) -> Any:
        raise TypeError


def future_key(value: object) -> bytes | None:
    return value.key if isinstance(value, FakeFuture) else None


def maker(namespace: str = "") -> KeyMaker:
    return KeyMaker(namespace, future_key)


def call(keys: KeyMaker, before: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The key of a call that depends on no file."""
    key, note = keys.call(before, args, kwargs, "f")
    assert note == b""
    return key


def prefix(keys: KeyMaker, function: bytes = b"f" * 16) -> bytes:
    return keys.prefix(function, "")


def test_equal_calls_are_separate_and_found_again() -> None:
    first, again = maker(), maker()
    one = [call(first, prefix(first), (1, "a"), {"k": None}) for _ in range(3)]
    assert len(set(one)) == 3
    assert all(len(key) == KEY_BYTES for key in one)
    assert [call(again, prefix(again), (1, "a"), {"k": None}) for _ in range(3)] == one


def test_everything_that_matters_is_in_the_key() -> None:
    keys = maker()
    made = {
        call(keys, prefix(keys), (1,), {}),
        call(keys, prefix(keys), (1.0,), {}),
        call(keys, prefix(keys), ("1",), {}),
        call(keys, prefix(keys), (True,), {}),
        call(keys, prefix(keys), (), {"x": 1}),
        call(keys, prefix(keys, b"g" * 16), (1,), {}),
        call(maker("other"), prefix(maker("other")), (1,), {}),
        call(keys, keys.prefix(b"", "mine"), (1,), {}),
        keys.content(b"executable", b"x"),
        keys.content(b"other", b"x"),
        keys.named(b"checkpoint", "a", ""),
        keys.named(b"checkpoint", "", "a"),
    }
    assert len(made) == 12


def test_fast_and_slow_ways_agree() -> None:
    values = [1, 2.5, None, True, -7]
    rows = [(value,) for value in values]
    fast, slow, single = maker(), maker(), maker()
    expected = [call(single, prefix(single), row, {}) for row in rows]
    assert fast.atoms(prefix(fast), values) == (expected, [])
    assert slow.calls(prefix(slow), rows, "f") == (expected, [])


def test_very_long_integers_have_keys() -> None:
    keys = maker()
    assert call(keys, prefix(keys), (10**5000,), {}) != call(keys, prefix(keys), (10**5000 + 1,), {})


def test_futures_count_as_their_keys() -> None:
    def key(future: FakeFuture) -> bytes:
        keys = maker()
        return call(keys, prefix(keys), ([future],), {})

    assert key(FakeFuture(b"a" * 16)) == key(FakeFuture(b"a" * 16)) != key(FakeFuture(b"b" * 16))


def test_what_cannot_be_known_is_warned_about_once() -> None:
    keys = maker()
    with pytest.warns(NotResumableWarning, match="not resumable because of its arguments") as caught:
        assert call(keys, prefix(keys), (threading.Lock(),), {}) == b""
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(keys, prefix(keys), (threading.Lock(),), {}) == b""
        assert keys.calls(prefix(keys), [(1,), (threading.Lock(),)], "f") is None
        assert call(keys, b"", (1,), {}) == b""


def test_explicit_keys_are_numbered() -> None:
    first, again = maker(), maker()
    made = first.explicit(first.prefix(b"", "mine"), 3)
    assert len(set(made)) == 3
    assert again.explicit(again.prefix(b"changed" * 2, "mine"), 3) == made


def test_threads_never_share_a_key() -> None:
    keys = maker()
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.extend(call(keys, prefix(keys), (1,), {}) for _ in range(500)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 2000
