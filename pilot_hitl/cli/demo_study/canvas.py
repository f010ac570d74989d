"""Pictures of pixels, and PNG files of them: numpy and zlib, because the demo needs nothing but the base install."""

from __future__ import annotations

import struct
import zlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Color: TypeAlias = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
INK: Color = (40, 40, 48)
SIGNATURE = b"\x89PNG\r\n\x1a\n"

GLYPH_WIDTH, GLYPH_HEIGHT = 5, 7
_ROWS = {
    "0": "0e11131519110e", "1": "040c040404040e", "2": "0e11010204081f", "3": "1f02040201110e", "4": "02060a121f0202",
    "5": "1f101e0101110e", "6": "0608101e11110e", "7": "1f010204080808", "8": "0e11110e11110e", "9": "0e11110f01020c",
    "A": "0e11111f111111", "B": "1e11111e11111e", "C": "0e11101010110e", "D": "1c12111111121c", "E": "1f10101e10101f",
    "F": "1f10101e101010", "G": "0e11101711110f", "H": "1111111f111111",
    "a": "00000e010f110f", "b": "1010161911111e", "c": "00000e1010110e", "d": "01010d1311110f",
    "e": "00000e111f100e", "f": "0609081c080808", "g": "00000f1111110f010e", "h": "10101619111111",
    "i": "04000c0404040e",
    "k": "10101214181412", "l": "0c04040404040e", "m": "00001a15151111", "n": "00001619111111", "o": "00000e1111110e",
    "p": "00001e1111111e1010", "r": "00001619101010", "s": "00000e100e011e", "t": "08081c08080906",
    "u": "0000111111130d",
    "v": "00001111110a04", "w": "0000111115150a", "x": "0000110a040a11", "y": "0000111111110f010e",
    ".": "00000000000c0c", "-": "0000001f000000", ",": "0000000c0c0408", "(": "02040808080402", ")": "08040202020408",
    "=": "00001f001f0000", "/": "00010204081000", "%": "18190204081303",
}  # fmt: skip
"""Rows of five bits a character, as hexadecimal digits: seven, and two more below the line; others are left blank."""
_STOPS = np.array(
    [
        (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142),
        (31, 158, 137), (53, 183, 121), (109, 205, 89), (180, 222, 44), (253, 231, 37),
    ],
    dtype=np.float64,
)  # fmt: skip
"""From nothing to the largest value: even steps of lightness, told apart by colour-blind eyes and in grey too."""


def shade(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the colours of values from 0 to 1, as an array with one more axis of three."""
    at = np.clip(values, 0.0, 1.0) * (len(_STOPS) - 1)
    low = np.minimum(at.astype(int), len(_STOPS) - 2)
    share = (at - low)[..., None]
    mixed: NDArray[np.float64] = _STOPS[low] * (1 - share) + _STOPS[low + 1] * share
    return mixed.round().astype(np.uint8)


class Canvas:
    """A picture that is drawn on.

    Attributes:
        pixels: ``(height, width, 3)``, the first row on top.
    """

    def __init__(self, width: int, height: int) -> None:
        """It is white."""
        self.pixels: NDArray[np.uint8] = np.full((height, width, 3), 255, dtype=np.uint8)

    def paste(self, left: int, top: int, pixels: NDArray[np.uint8]) -> None:
        """Lay an array of colours on it; what lies outside is cut off."""
        height, width = self.pixels.shape[:2]
        part = pixels[: max(0, height - top), : max(0, width - left)]
        self.pixels[top : top + part.shape[0], left : left + part.shape[1]] = part

    def box(self, left: int, top: int, width: int, height: int, color: Color) -> None:
        """Fill a rectangle."""
        self.pixels[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = color

    def frame(self, left: int, top: int, width: int, height: int, color: Color, thick: int = 1) -> None:
        """Draw a rectangle's border, inside of it."""
        self.box(left, top, width, thick, color)
        self.box(left, top + height - thick, width, thick, color)
        self.box(left, top, thick, height, color)
        self.box(left + width - thick, top, thick, height, color)

    def dot(self, x: int, y: int, radius: float, color: Color) -> None:
        """Fill a disc."""
        height, width = self.pixels.shape[:2]
        rows, columns = np.ogrid[:height, :width]
        self.pixels[(rows - y) ** 2 + (columns - x) ** 2 <= radius * radius] = color

    def text(self, left: int, top: int, text: str, color: Color = INK, scale: int = 1) -> None:
        """Write one line; each character is ``6 * scale`` wide and ``7 * scale`` high."""
        for index, character in enumerate(text):
            for row, column in glyph(character):
                self.box(left + (index * (GLYPH_WIDTH + 1) + column) * scale, top + row * scale, scale, scale, color)

    def png(self) -> bytes:
        """Return it as a PNG file, the same bytes for the same picture."""
        return encode(self.pixels)


def text_width(text: str, scale: int = 1) -> int:
    """Return how wide a line is."""
    return max(0, len(text) * (GLYPH_WIDTH + 1) - 1) * scale


def glyph(character: str) -> list[tuple[int, int]]:
    """Return the rows and columns of a character's ink."""
    rows = bytes.fromhex(_ROWS.get(character, ""))
    return [
        (row, column)
        for row, bits in enumerate(rows)
        for column in range(GLYPH_WIDTH)
        if bits >> (GLYPH_WIDTH - 1 - column) & 1
    ]


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Return an array of colours, ``(height, width, 3)``, as a PNG file.

    Raises:
        ValueError: the array has another shape.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels: (height, width, 3) is wanted, not {pixels.shape}")
    height, width = pixels.shape[:2]
    # Each row begins with the number of its filter: 0, none.
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)
    rows[:, 1:] = pixels.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(kind, content) for kind, content in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
