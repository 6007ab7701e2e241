"""The page in a real browser, at the width of a phone and of a desk; skipped where there is none.

Debian's package is ``chromium``. A copy of the page measures itself; what is drawn is looked at in
screenshots.
"""

import base64
import html
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deltafit.experiments.report import write_report
from deltafit.methods import DoRA, Full, LoRA
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
  drawn: all("svg text", e => e.getBoundingClientRect().height).filter(h => h > 0),
  written: all("p, li, td, th, dd, dt, summary, figcaption, .spread", size),
};
parent.document.title = btoa(JSON.stringify(found));
</script>"""
# No window is narrower than 500 pixels; a frame in it is.
FRAME = '<!DOCTYPE html><iframe style="width: {width}px; height: 844px; border: 0" srcdoc="{page}">'


def browse(page: Path, width: int, height: int, *flags: str) -> str:
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--no-first-run", "--disable-background-networking", "--host-resolver-rules=MAP * ~"),
        *(f"--window-size={width},{height}", *flags, page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def measured(page: Path, width: int, *flags: str) -> dict[str, Any]:
    """What the page says of itself; a copy, since the page itself lets no script run."""
    head, policy, rest = page.read_text(encoding="utf-8").partition(
        '<meta http-equiv="Content-Security-Policy"'
    )
    assert policy
    copy = head + rest.partition(">")[2].replace("</body>", f"{MEASURE}</body>")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width, page=html.escape(copy)), encoding="utf-8")
    dump = browse(frame, max(width, 500), 900, "--dump-dom", *flags)
    found = dump.partition("<title>")[2].partition("</title>")[0]
    content: dict[str, Any] = json.loads(base64.b64decode(found))
    return content


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    methods = {
        **{"majority class": 0.4, "TF-IDF + linear SVM": 0.7, "frozen features": 0.8},
        **{LoRA(rank=r, alpha=a): 0.8 + 0.02 * r for r in (2, 4) for a in (8, 16)},
        **{LoRA("all-linear", rank=2, dropout=0.1, layers=(0, 1)): 0.84},
        **{DoRA(rank=2): 0.85, Full(): 0.86},
    }
    names = (HOSTILE, "a class of a long name that says much of what is in it", "spam")
    rows, evidence = made_up(methods, names=names)  # type: ignore[arg-type]
    rows[0]["result_name"] = "majority"
    facts = {"model": "minilm", "data": {"hash": "9f2c" * 16, "counts": {"train": 9}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
        write_report(folder, rows, losses(rows), {}, {}, facts, evidence)
    return folder / "report.html"


@pytest.fixture(scope="module", params=WIDTHS)
def found(page: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    return measured(page, request.param) | {"width": request.param}


def test_nothing_is_wider_than_the_screen_and_nothing_is_fetched(found: dict[str, Any]) -> None:
    assert found["inner"] == found["width"] >= found["page"]
    assert found["requests"] == 0
    for x, _, width, _ in [*found["boxes"], *found["sections"].values()]:
        assert x >= 0 and x + width <= found["width"]


def test_the_first_screen_holds_the_advice_and_its_reason(found: dict[str, Any]) -> None:
    _, top, _, height, _, verdict_top, _, verdict_height = found["head"]
    assert 0 < top < top + height <= verdict_top
    assert verdict_top + verdict_height < 844  # of a phone, whose screen is 390 × 844


def test_text_can_be_read(found: dict[str, Any]) -> None:
    assert min(found["written"]) >= 12
    # Of a picture's text: the height of its line. It shrinks to 34 rem and scrolls from there on.
    assert np.quantile(found["drawn"], 0.05) >= 8


def test_sections_stand_below_each_other(found: dict[str, Any]) -> None:
    edges = [(y, y + height) for _, y, _, height in found["sections"].values()]
    assert len(edges) == 9 and all(height > 60 for _, _, _, height in found["sections"].values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(edges))


def test_every_part_is_drawn(page: Path, found: dict[str, Any], tmp_path: Path) -> None:
    """A screenshot of the whole page, folded parts open as they were when it was measured."""
    opened = tmp_path / "opened.html"
    opened.write_text(page.read_text(encoding="utf-8").replace("<details>", "<details open>"))
    image = tmp_path / "page.png"
    height = min(found["height"] + 200, 16_000)
    browse(opened, found["width"], height, f"--screenshot={image}")
    pixels = np.asarray(Image.open(image).convert("L"), dtype=np.int16)
    assert pixels.shape == (height, found["width"])
    parts = [*found["sections"].values(), *found["figures"]]
    seen = [part for part in parts if part[1] + part[3] < height]
    assert len(seen) > 0.7 * len(parts)
    for x, y, w, h in seen:
        part = pixels[round(y) : round(y + h), round(x) : round(x + w)]
        ink = np.abs(part - np.median(part)) > 60
        assert ink.mean() > 0.004, (x, y, w, h)  # something is drawn,
        assert ink.any(axis=1).mean() > 0.2  # and not in one corner alone


def test_in_the_dark_it_is_dark_and_pictures_stay_legible(page: Path) -> None:
    dark = measured(page, 390, "--blink-settings=preferredColorScheme=0")
    light = measured(page, 390, "--blink-settings=preferredColorScheme=1")
    assert light["background"] == "rgb(255, 255, 255)"
    assert dark["background"] == "rgb(22, 25, 28)"
    assert dark["page"] == 390


def test_it_prints(page: Path, tmp_path: Path) -> None:
    browse(page, 1280, 900, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
