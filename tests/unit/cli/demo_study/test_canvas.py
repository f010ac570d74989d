"""Pictures of pixels: PNG files that a decoder of our own reads back, and what is drawn where."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from pilot_hitl.cli.demo_study import canvas
from pilot_hitl.cli.demo_study.canvas import INK, Canvas


def decode(content: bytes) -> NDArray[np.uint8]:
    """Read a PNG of 8-bit colours without filters; every checksum is verified."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    parts: dict[bytes, bytes] = {}
    at = 8
    while at < len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        body = content[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, at + 8 + length)
        assert checksum == zlib.crc32(kind + body)
        parts[kind] = body
        at += 12 + length
    assert list(parts) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, color, *rest = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert (depth, color, rest) == (8, 2, [0, 0, 0])
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), dtype=np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_a_png_holds_exactly_the_pixels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (17, 23, 3)).astype(np.uint8)
    content = canvas.encode(pixels)
    assert np.array_equal(decode(content), pixels)
    assert canvas.encode(pixels) == content


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="height, width, 3"):
        canvas.encode(np.zeros(shape, dtype=np.uint8))


def test_shapes_lie_where_they_are_drawn_and_nowhere_else() -> None:
    made = Canvas(20, 10)
    made.box(2, 3, 4, 2, INK)
    assert (made.pixels == INK).all(axis=2).sum() == 8
    assert (made.pixels[3:5, 2:6] == INK).all()
    made = Canvas(20, 10)
    made.frame(0, 0, 20, 10, INK, 2)
    assert (made.pixels == INK).all(axis=2).sum() == 20 * 10 - 16 * 6
    made = Canvas(20, 10)
    made.dot(10, 5, 1.5, INK)
    assert (made.pixels == INK).all(axis=2).sum() == 9
    made = Canvas(4, 4)
    made.paste(2, 2, np.zeros((9, 9, 3), dtype=np.uint8))
    assert (made.pixels == 0).all(axis=2).sum() == 4


def test_text_is_as_wide_as_it_says_and_its_characters_differ() -> None:
    made = Canvas(60, 20)
    made.text(0, 0, "0.14", scale=2)
    columns = np.flatnonzero((made.pixels == INK).all(axis=2).any(axis=0))
    assert columns.max() < canvas.text_width("0.14", 2) == 46
    known = "0123456789ABCDEFGHabcdefghiklmnoprstuvwxy.-,()=/%"
    assert len({tuple(canvas.glyph(each)) for each in known}) == len(known)
    assert canvas.glyph(" ") == []


def test_shades_run_from_dark_to_light() -> None:
    shades = canvas.shade(np.linspace(-0.1, 1.1, 25)).astype(float)
    lightness = shades @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness[2:-2]) > 0).all()
    assert lightness[0] == lightness[1]
