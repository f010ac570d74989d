"""Frames of the relay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_hitl.wire.codec import FrameError, encode
from pilot_hitl.wire.messages import Reconnect
from pilot_hitl.wire.relay import Bounced, Broken, Relayed, RelayMessage, Taken, decode_relay, encode_relay, weight
from pilot_hitl.wire.services import Requests, encode_head


@given(
    st.one_of(
        st.builds(Relayed, st.text(), st.text(), st.integers(0, (1 << 63) - 1), st.binary(), st.text()),
        st.builds(Bounced, st.binary(), st.text(), st.text()),
        st.builds(Taken, st.integers(0, (1 << 63) - 1)),
        st.builds(Broken, st.text(), st.text(), st.integers(0, (1 << 63) - 1)),
    )
)
def test_what_is_packed_is_unpacked(message: RelayMessage) -> None:
    assert decode_relay(encode_relay(message)) == message


@given(st.binary(max_size=40))
def test_anything_else_is_refused(frame: bytes) -> None:
    for text in (frame, b"\x02" + frame):
        try:
            decode_relay(text)
        except FrameError:
            continue
        assert text[:1] == b"\x02"


def test_frames_of_other_protocols_are_told_apart() -> None:
    for frame in (encode([Reconnect()]), encode_head(Requests([]))):
        with pytest.raises(FrameError):
            decode_relay(frame)


def test_a_small_message_weighs_too() -> None:
    assert weight([]) > 0
    assert weight([10, 20]) - weight([]) == 30
