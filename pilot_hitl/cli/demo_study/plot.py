"""The picture that the gate shows: what the surrogate expects all over the plane, and how sure it is."""

from __future__ import annotations

import numpy as np

from pilot_hitl.cli.demo_study.canvas import INK, WHITE, Canvas, Color, shade, text_width
from pilot_hitl.cli.demo_study.plan import FEED, KILL
from pilot_hitl.cli.demo_study.ranking import Survey
from pilot_hitl.cli.demo_study.surrogate import Array

SIDE = 320
"""Of one map, in pixels."""
LEFT, TOP, GAP, RIGHT, BOTTOM = 88, 44, 172, 84, 56
"""Margins: of the maps to the edges, and between them."""
BAR, BAR_GAP = 14, 10
"""The colour bar at the right of a map."""
TEXT = 2
"""Scale of letters."""
MARK: Color = (255, 90, 40)


def surface_png(survey: Survey) -> bytes:
    """Return a PNG: at the left the expected strength with the candidates framed, at the right its uncertainty.

    Feed grows upwards, kill to the right. Dots are the simulations; each is filled with what it showed.
    """
    canvas = Canvas(LEFT + SIDE + GAP + SIDE + RIGHT, TOP + SIDE + BOTTOM)
    top = max(1e-9, float(survey.plane.mean.max()), *(row[2] for row in survey.training.rows))
    second = LEFT + SIDE + GAP
    _map(canvas, LEFT, survey.plane.mean, top, "predicted strength")
    _map(canvas, second, survey.plane.deviation, max(float(survey.plane.deviation.max()), 1e-9), "uncertainty")
    for feed, kill, strength in survey.training.rows:
        x, y = _pixel(feed, kill)
        canvas.dot(LEFT + x, y, 5, WHITE)
        red, green, blue = (int(value) for value in shade(np.array(strength / top)))
        canvas.dot(LEFT + x, y, 3.5, (red, green, blue))
        canvas.dot(second + x, y, 2, WHITE)
    for item in survey.candidates:
        x, y = _pixel(item.region.feed[1], item.region.kill[0])
        right, bottom = _pixel(item.region.feed[0], item.region.kill[1])
        for left in (LEFT, second):
            canvas.frame(left + x, y, right - x, bottom - y, MARK, 3)
        canvas.box(LEFT + x + 3, y + 3, text_width(item.region.name, TEXT) + 6, 7 * TEXT + 6, MARK)
        canvas.text(LEFT + x + 6, y + 6, item.region.name, WHITE, TEXT)
    return canvas.png()


def _map(canvas: Canvas, left: int, values: Array, top: float, title: str) -> None:
    """Draw one map with its axes and its colour bar, from 0 to ``top``."""
    at = ((np.arange(SIDE) + 0.5) / SIDE * values.shape[0]).astype(int)
    # Row 0 of the plane has the smallest feed; that of a picture is on top.
    canvas.paste(left, TOP, shade(values[at[::-1]][:, at] / top))
    canvas.frame(left - 1, TOP - 1, SIDE + 2, SIDE + 2, INK)
    canvas.text(left, TOP - 14 - 7 * TEXT, title, INK, TEXT)
    bar = left + SIDE + BAR_GAP
    canvas.paste(bar, TOP, np.repeat(shade(np.linspace(1, 0, SIDE))[:, None], BAR, axis=1))
    canvas.frame(bar - 1, TOP - 1, BAR + 2, SIDE + 2, INK)
    canvas.text(bar + BAR + 5, TOP, f"{top:.2f}", INK, TEXT)
    canvas.text(bar + BAR + 5, TOP + SIDE - 7 * TEXT, "0", INK, TEXT)
    for share in (0.0, 0.5, 1.0):
        feed = f"{FEED[0] + share * (FEED[1] - FEED[0]):.3f}"
        kill = f"{KILL[0] + share * (KILL[1] - KILL[0]):.3f}"
        offset = round(share * (SIDE - 1))
        canvas.box(left - 6, TOP + SIDE - 1 - offset, 5, 1, INK)
        row = TOP + SIDE - 1 - offset - round(7 * TEXT * (1 - share))
        canvas.text(left - 10 - text_width(feed, TEXT), row, feed, INK, TEXT)
        canvas.box(left + offset, TOP + SIDE + 1, 1, 5, INK)
        canvas.text(left + offset - round(share * text_width(kill, TEXT)), TOP + SIDE + 10, kill, INK, TEXT)
    canvas.text(left - 46, TOP + SIDE // 4, "F", INK, TEXT)
    canvas.text(left + SIDE // 4 - 5, TOP + SIDE + 30, "k", INK, TEXT)


def _pixel(feed: float, kill: float) -> tuple[int, int]:
    """Return column within a map, and row of the canvas."""
    across = (kill - KILL[0]) / (KILL[1] - KILL[0])
    up = (feed - FEED[0]) / (FEED[1] - FEED[0])
    return round(across * SIDE), TOP + SIDE - round(up * SIDE)
