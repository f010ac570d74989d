"""Heat maps of text: for a terminal, for the inbox, for a file that is read with ``less``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pilot_hitl.cli.demo_study.ranking import Standing, Survey

SHADES = " .:-=+*#%@"
"""From nothing to the largest value. ASCII, so every terminal and every font can show it."""


def picture(field: NDArray[np.float32], width: int = 32, highest: float = 0.0) -> str:
    """Return a field as ``width`` characters by ``width / 2`` lines, as a character is twice as high as wide.

    Values from 0 to ``highest`` (0: the field's own maximum) become :data:`SHADES`; each character is a mean.
    """
    rows = _blocks(field, min(width // 2, field.shape[0]), min(width, field.shape[1]))
    top = highest or float(rows.max())
    scaled = rows / top if top > 0 else rows * 0.0
    levels = np.clip((scaled * len(SHADES)).astype(int), 0, len(SHADES) - 1)
    return "\n".join("".join(SHADES[level] for level in line) for line in levels)


def surface(survey: Survey, cell: int = 9) -> str:
    """Return what each region promises as a map: feed grows upwards, kill to the right, candidates in brackets."""
    top = max((item.promise for item in survey.standings), default=0.0)
    chosen = {item.region.name for item in survey.candidates}
    rows: dict[int, list[Standing]] = {}
    for item in survey.standings:
        rows.setdefault(item.region.row, []).append(item)
    lines = []
    for row in sorted(rows, reverse=True):
        across = sorted(rows[row], key=lambda item: item.region.column)
        shades = [
            SHADES[min(len(SHADES) - 1, int(item.promise / top * len(SHADES)))] if top else " " for item in across
        ]
        names = [f"[{item.region.name}]" if item.region.name in chosen else item.region.name for item in across]
        low, high = across[0].region.feed
        lines.append(f"{'':12}" + " ".join(shade * cell for shade in shades))
        lines.append(f"F {low:.3f}-{high:.3f}"[1:].rjust(12) + " ".join(f"{name:^{cell}}" for name in names))
        lines.append(f"{'':12}" + " ".join(shade * cell for shade in shades))
    bottom = sorted(rows[min(rows)], key=lambda item: item.region.column) if rows else []
    lines.append(f"{'k':>11} " + " ".join(f"{item.region.kill[0]:.3f}+".center(cell) for item in bottom))
    return "\n".join(line.rstrip() for line in lines)


def side_by_side(pictures: Mapping[str, str], gap: int = 3) -> str:
    """Return several pictures in one row, each under its title."""
    columns = [[title, *text.split("\n")] for title, text in pictures.items()]
    widths = [max(len(line) for line in column) for column in columns]
    height = max((len(column) for column in columns), default=0)
    lines = [
        (" " * gap).join(
            f"{column[index] if index < len(column) else '':<{width}}"
            for column, width in zip(columns, widths, strict=True)
        )
        for index in range(height)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _blocks(field: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float64]:
    """Return means over ``rows`` x ``columns`` blocks of nearly equal size."""
    down = np.linspace(0, field.shape[0], rows + 1).astype(int)[:-1]
    across = np.linspace(0, field.shape[1], columns + 1).astype(int)[:-1]
    ones = np.ones(field.shape)
    total = np.add.reduceat(np.add.reduceat(field.astype(np.float64), down, axis=0), across, axis=1)
    count = np.add.reduceat(np.add.reduceat(ones, down, axis=0), across, axis=1)
    means: NDArray[np.float64] = total / count
    return means
