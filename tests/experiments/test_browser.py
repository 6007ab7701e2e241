"""The page in a real browser, at the width of a phone and of a desk; skipped where there is none.

Debian's package is ``chromium``. A copy of the page measures itself; what is drawn is looked at in
screenshots, beside those of the same page whose pictures have lost their data.
"""

import base64
import html
import itertools
import json
import shutil
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from deltafit.experiments.inline_svg import inline_svg
from deltafit.experiments.report import write_report
from deltafit.methods import AdaLoRA, Full, Head, LoRA
from tests.experiments.evidence import HOSTILE, losses, made_up

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
WIDTHS = [390, 1280]
MEASURE = """<script>
const box = e => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; };
const all = (what, f) => [...document.querySelectorAll(what)].map(f);
const size = e => parseFloat(getComputedStyle(e).fontSize);
document.querySelectorAll("details").forEach(d => d.open = true);
const found = {
  inner: innerWidth, page: document.documentElement.scrollWidth,
  height: document.documentElement.scrollHeight,
  requests: performance.getEntriesByType("resource").length,
  background: getComputedStyle(document.body).backgroundColor,
  head: box(document.querySelector("h1")).concat(box(document.querySelector(".verdict"))),
  sections: Object.fromEntries(all("section", e => [e.id, box(e)])),
  figures: all("figure", e => box(e)),
  boxes: all(".scroll", e => box(e)),
  wide: all("body *:not(.scroll *)", e => [e.tagName, e.getBoundingClientRect().right])
    .filter(([_, right]) => right > innerWidth + 0.5),
  drawn: all("svg text", e => e.getBoundingClientRect().height).filter(h => h > 0),
  written: all("p, li, td, th, dd, dt, summary, figcaption, .spread", size),
};
parent.document.title = btoa(JSON.stringify(found));
</script>"""
# No window is narrower than 500 pixels; a frame in it is.
FRAME = (
    "<!DOCTYPE html><style>body {{ margin: 0; overflow: hidden }} iframe {{ position: absolute; "
    "left: 0; top: {top}px; width: {width}px; height: {height}px; border: 0 }}</style>"
    '<iframe srcdoc="{page}">'
)
SCREEN = 844  # pixels that a phone's screen is high, and 390 wide
SLICE = 8000  # pixels of a screenshot: browsers draw none of any height


def browse(page: Path, width: int, height: int, *flags: str) -> str:
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--no-first-run", "--disable-background-networking", "--host-resolver-rules=MAP * ~"),
        *(f"--window-size={width},{height}", *flags, page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def framed(page: Path, source: str, width: int, height: int, top: int = 0) -> Path:
    """A page that shows a source in a frame of a size, moved up by ``top``."""
    frame = page.with_name("frame.html")
    text = FRAME.format(width=width, height=height, top=-top, page=html.escape(source))
    frame.write_text(text, encoding="utf-8")
    return frame


def pictured(page: Path, width: int, height: int) -> np.ndarray:
    """A screenshot of the whole page, ``[height, width]``, its folded parts open."""
    source = page.read_text(encoding="utf-8").replace("<details>", "<details open>")
    slices, image = [], page.with_name("page.png")
    for top in range(0, height, SLICE):
        frame = framed(page, source, width, height, top)
        browse(frame, max(width, 500), min(SLICE, height - top), f"--screenshot={image}")
        slices.append(np.asarray(Image.open(image).convert("L"), dtype=np.int16)[:, :width])
    pixels = np.concatenate(slices)
    assert pixels.shape == (height, width)
    return pixels


def measured(page: Path, width: int, *flags: str) -> dict[str, Any]:
    """What the page says of itself; a copy, since the page itself lets no script run."""
    head, policy, rest = page.read_text(encoding="utf-8").partition(
        '<meta http-equiv="Content-Security-Policy"'
    )
    assert policy
    copy = head + rest.partition(">")[2].replace("</body>", f"{MEASURE}</body>")
    frame = framed(page, copy, width, SCREEN)
    dump = browse(frame, max(width, 500), 900, "--dump-dom", *flags)
    found = dump.partition("<title>")[2].partition("</title>")[0]
    content: dict[str, Any] = json.loads(base64.b64decode(found))
    return content


def without_data(figure: Figure, *others: str) -> str:
    """The picture with its axes, names and legend alone."""
    for axes in figure.axes:
        for artist in (*axes.lines, *axes.collections, *axes.patches, *axes.images, *axes.texts):
            artist.remove()
    return inline_svg(figure, *others)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A page of 19 methods and three baselines on nine classes, and the same without data."""
    methods = {
        **{"majority class": 0.15, "TF-IDF + linear SVM": 0.7, "frozen features": 0.8},
        **{
            LoRA("all-linear", rank=rank, alpha=alpha): 0.85 + 0.003 * rank - 0.002 * alpha
            for rank, alpha in product((4, 8, 16, 32), repeat=2)
        },
        **{AdaLoRA(rank=2): 0.86, Head(): 0.82, Full(): 0.88},
    }
    names = (
        *(HOSTILE, "a class of a long name that says much of what is in it", "spam"),
        *(f"intent_{index}" for index in range(5)),
        "rare",
    )
    rows, evidence = made_up(methods, classes=9, count=600, names=names)  # type: ignore[arg-type]
    rows[0]["result_name"] = "majority"
    assert sum(row["kind"] == "run" for row in rows) == 19
    facts = {"model": "minilm", "data": {"hash": "9f2c" * 16, "counts": {"train": 9}}}
    learned = {f"encoder.layer.{i}.attention.self.{m}": i % 4 for i in range(6) for m in "qv"}
    content = rows, losses(rows), {}, {"adalora:rank=2": learned}, facts, evidence
    folders = [tmp_path_factory.mktemp(name) for name in ("browser", "empty")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
        write_report(folders[0], *content)
        patch.setattr("deltafit.experiments.page.inline_svg", without_data)
        write_report(folders[1], *content)
    return folders[0] / "report.html", folders[1] / "report.html"


@pytest.fixture(scope="module")
def page(pages: tuple[Path, Path]) -> Path:
    return pages[0]


@pytest.fixture(scope="module", params=WIDTHS)
def found(page: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    return measured(page, request.param) | {"width": request.param}


@pytest.fixture(scope="module")
def seen(page: Path, found: dict[str, Any]) -> np.ndarray:
    return pictured(page, found["width"], found["height"])


def test_nothing_is_wider_than_the_screen_and_nothing_is_fetched(found: dict[str, Any]) -> None:
    assert found["inner"] == found["width"] >= found["page"]
    assert found["requests"] == 0
    assert found["wide"] == []  # but for what scrolls in a box of its own
    for x, _, width, _ in [*found["boxes"], *found["sections"].values()]:
        assert x >= 0 and x + width <= found["width"]


def test_the_first_screen_holds_the_advice_and_its_reason(found: dict[str, Any]) -> None:
    _, top, _, height, _, verdict_top, _, verdict_height = found["head"]
    assert 0 < top < top + height <= verdict_top
    assert verdict_top + verdict_height < SCREEN


def test_text_can_be_read(found: dict[str, Any]) -> None:
    assert min(found["written"]) >= 12
    # Of a picture's text: the height of its line. It shrinks to 34 rem and scrolls from there on.
    assert np.quantile(found["drawn"], 0.05) >= 8


def inside(box: list[float], other: list[float]) -> bool:
    return other[1] <= box[1] and box[1] + box[3] <= other[1] + other[3] + 1


def test_sections_stand_below_each_other_with_all_their_pictures(found: dict[str, Any]) -> None:
    edges = [(y, y + height) for _, y, _, height in found["sections"].values()]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(edges))
    pictures = {
        name: sum(inside(figure, section) for figure in found["figures"])
        for name, section in found["sections"].items()
    }
    assert pictures == {
        **{"table": 0, "costs": 3, "grid": 1, "loss": 1, "classes": 6, "confusions": 0},
        **{"calibration": 1, "changes": 12, "ranks": 1, "facts": 0},
    }
    assert len(found["figures"]) == sum(pictures.values())


def test_every_section_is_drawn(found: dict[str, Any], seen: np.ndarray) -> None:
    for name, (x, y, w, h) in found["sections"].items():
        part = seen[round(y) : round(y + h), round(x) : round(x + w)]
        assert part.shape == (round(y + h) - round(y), round(x + w) - round(x)), name
        ink = np.abs(part - np.median(part)) > 60
        assert ink.mean() > 0.004, name  # something is drawn,
        assert ink.any(axis=1).mean() > 0.2, name  # and not in one corner alone


def test_every_picture_shows_its_data(
    pages: tuple[Path, Path], found: dict[str, Any], seen: np.ndarray
) -> None:
    """It differs from the same picture without them; data that is clipped away would not."""
    empty = measured(pages[1], found["width"])
    assert empty["figures"] == found["figures"]
    nothing = pictured(pages[1], found["width"], found["height"])
    for number, (x, y, w, h) in enumerate(found["figures"]):
        place = slice(round(y), round(y + h)), slice(round(x), round(x + w))
        changed = np.abs(seen[place] - nothing[place]) > 60
        assert changed.mean() > 0.002, number
        if found["width"] == max(WIDTHS):  # a phone shows a part of it at once
            assert min(changed.any(axis=axis).mean() for axis in (0, 1)) > 0.15, number


def test_in_the_dark_it_is_dark_and_pictures_stay_legible(page: Path) -> None:
    dark = measured(page, 390, "--blink-settings=preferredColorScheme=0")
    light = measured(page, 390, "--blink-settings=preferredColorScheme=1")
    assert light["background"] == "rgb(255, 255, 255)"
    assert dark["background"] == "rgb(22, 25, 28)"
    assert dark["page"] == 390


def test_it_prints(page: Path, tmp_path: Path) -> None:
    browse(page, 1280, 900, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
