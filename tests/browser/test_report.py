"""The report's page in a real browser: on a desk and in a hand, by day and by night."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot_hitl.model.ledger import Account
from pilot_hitl.model.states import CheckpointState, State, Truth
from pilot_hitl.report import page, summarise
from tests.behaviour.studies import further
from tests.unit.report.files import File, span

pytestmark = pytest.mark.requires("chromium")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--allow-file-access-from-files",
)  # fmt: skip
LONG = "Averyveryverylongwordwithoutanyplacetobreakitthatnobodyshouldeverwrite" * 2
MEASURE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" src="report.html" style="border:0;width:{width}px;height:2000px"></iframe>
<script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const inner = frame.contentDocument, root = inner.documentElement;
  const wide = [...inner.querySelectorAll("body *")]
    .filter(it => it.getBoundingClientRect().right > root.clientWidth + 1 && !it.closest("svg"))
    .map(it => it.tagName + "." + it.className);
  const text = [...inner.querySelectorAll("main *")]
    .filter(it => !it.closest("svg") && [...it.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .map(it => parseFloat(getComputedStyle(it).fontSize));
  const found = {{
    width: root.clientWidth, content: root.scrollWidth, wide: wide, least: Math.min(...text),
    unnamed: [...inner.querySelectorAll("svg")]
      .filter(it => !it.getAttribute("aria-label") && it.getAttribute("aria-hidden") !== "true").length,
    loaded: performance.getEntriesByType("resource").filter(it => !it.name.endsWith("report.html")).length,
  }};
  document.body.setAttribute("data-found", JSON.stringify(found));
}};
</script>"""


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, and a folder with a report in it."""
    folder = Path(tempfile.mkdtemp(prefix="phr"))
    try:
        yield Browser(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Browser:
    """Chromium, started anew for each look."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "report.html").write_text(page(summarise(a_study(folder))), encoding="utf-8")

    def _run(self, *arguments: str) -> str:
        profile = tempfile.mkdtemp(dir=self.folder)
        command = ["chromium", *FLAGS, f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout

    def measure(self, width: int) -> dict[str, object]:
        """What a page in a frame of this width looks like to the browser."""
        file = self.folder / "measure.html"
        file.write_text(MEASURE.format(width=width), encoding="utf-8")
        dom = self._run(
            "--virtual-time-budget=5000", f"--window-size={max(width, 500)},2000", "--dump-dom", file.as_uri()
        )
        said = re.search(r'data-found="([^"]*)"', dom)
        assert said is not None, dom[:2000]
        found: dict[str, object] = json.loads(said[1].replace("&quot;", '"'))
        return found

    def picture(self, width: int, *, dark: bool) -> tuple[int, int, list[bytes]]:
        """A screenshot as ``(width, height, rows of RGB)``."""
        file, shot = self.folder / "frame.html", self.folder / "shot.png"
        style = f"border:0;width:{width}px;height:1600px"
        file.write_text(f'<body style="margin:0"><iframe src="report.html" style="{style}"></iframe>', encoding="utf-8")
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        self._run(scheme, f"--window-size={max(width, 500)},1600", f"--screenshot={shot}", file.as_uri())
        return read_png(shot.read_bytes())


def a_study(base: Path) -> Path:
    """A session with all that a page can show, and with texts that are too long."""
    file = File(base)
    file.pilot(ended=61, message=LONG)
    file.condition(4, Truth.TRUE)
    file.condition(5, Truth.FALSE, checkpoint=2)
    file.gate(1, opened=5, answered=25, question=f"Is it good? {LONG}", comment=LONG, by="ana")
    file.gate(2, opened=30, answered=59.5, by=LONG, answer=json.dumps(LONG))
    file.gate(3, CheckpointState.OPEN, opened=60)
    file.outcome(1, State.DONE)
    kinds = [Account.NEEDED, Account.SERVICE, Account.BACKFILL, Account.LOST]
    pieces = [span([0], 1 + n, 2 + n, kinds[n % 4], task=n, attempts=1) for n in range(60)]
    pieces += [span([1], 1, 20, Account.SPECULATIVE, condition=4), span([1], 20, 40, Account.SPECULATIVE, condition=5)]
    pieces += [span([1], 40, 61, reserved=11.0, idle=10.0), span([0], 2, 3, Account.SUSPENDED)]
    file.spans(*pieces, at=61)
    return file.close()


def read_png(data: bytes) -> tuple[int, int, list[bytes]]:
    """Decode a PNG of 8 bits a channel without interlacing."""
    at, width, height, channels, packed = 8, 0, 0, 0, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", content[:10])
            assert (depth, colour in (2, 6)) == (8, True)
            channels = 3 if colour == 2 else 4
        elif kind == b"IDAT":
            packed += content
        at += length + 12
    raw = zlib.decompress(packed)
    stride = width * channels
    before, rows = bytes(stride), []
    for y in range(height):
        mode, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        unfilter(mode, line, before, channels)
        before = bytes(line)
        rows.append(before if channels == 3 else b"".join(before[x : x + 3] for x in range(0, stride, 4)))
    return width, height, rows


def unfilter(mode: int, line: bytearray, before: bytes, channels: int) -> None:
    for x in range(len(line)):
        left = line[x - channels] if x >= channels else 0
        up, corner = before[x], before[x - channels] if x >= channels else 0
        if mode == 1:
            add = left
        elif mode == 2:
            add = up
        elif mode == 3:
            add = (left + up) // 2
        elif mode == 4:
            guess = left + up - corner
            add = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))[2]
        else:
            return
        line[x] = (line[x] + add) & 255


@pytest.mark.parametrize("width", further(2, [320, 1280, 375, 768]))
def test_nothing_is_wider_than_the_window(browser: Browser, width: int) -> None:
    found = browser.measure(width)
    assert found["width"] == width
    assert found["content"] == width, found["wide"]
    assert found["wide"] == []
    assert isinstance(found["least"], float | int)
    assert found["least"] >= 12
    assert (found["unnamed"], found["loaded"]) == (0, 0)


@pytest.mark.parametrize("width", further(1, [1280, 375]))
def test_day_and_night(browser: Browser, width: int) -> None:
    brightness = {}
    for dark in (False, True):
        wide, high, rows = browser.picture(width, dark=dark)
        assert wide >= width
        assert high == 1600
        pixels = [row[3 * x : 3 * x + 3] for row in rows[::5] for x in range(0, width, 5)]
        # A page with text and plots has many colours; a blank one has one.
        assert len(set(pixels)) > 40
        brightness[dark] = sum(map(sum, pixels)) / len(pixels) / 3
    assert brightness[False] > 200
    assert brightness[True] < 60


def contrast(first: str, second: str) -> float:
    """How far two colours are apart, as WCAG counts it."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_on_what_is_behind_it(browser: Browser) -> None:
    text = (browser.folder / "report.html").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    ]
    assert len(schemes) == 2
    for colours in schemes:
        for behind in ("paper", "card"):
            assert contrast(colours["ink"], colours[behind]) >= 7
            assert contrast(colours["soft"], colours[behind]) >= 4.5
        # What ran must stand out from the ground of the timeline.
        for row in ("services", "needed", "speculative_committed", "speculative_discarded", "backfill", "lost"):
            assert contrast(colours[row], colours["well"]) >= 2.7, row
