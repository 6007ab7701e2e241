"""The page is whole, needs nothing else, says what the rows say, and takes names as text."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deltafit.experiments.class_sections import reference_of
from deltafit.experiments.report import verdict, write_report
from deltafit.experiments.rows import failed_row
from deltafit.experiments.summary import summary
from deltafit.experiments.tables import cells_of, headers_of
from deltafit.methods import Full, LoRA
from tests.experiments.evidence import HOSTILE, losses, made_up
from tests.experiments.html_page import Page
from tests.experiments.rows import run

SVM = "TF-IDF + linear SVM"
METHODS = {
    **{"majority class": 0.4, SVM: 0.7},
    **{LoRA(rank=r, alpha=a): 0.8 + 0.02 * r for r in (2, 4) for a in (8, 16)},
    Full(): 0.86,
}
FACTS = {
    "model": "minilm",
    "data": {"hash": "9f2c", "label_names": ["ham", "<i>"]},
    HOSTILE: HOSTILE,
}


def page_of(folder: Path, *content: Any) -> Page:
    write_report(folder, *content)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, list[dict[str, Any]]]:
    """The page of a whole comparison whose class names are hostile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
        for module in ("sections", "page_parts"):  # pictures take the time
            patch.setattr(f"deltafit.experiments.{module}.MOST_RUNS", 1)
        names = (HOSTILE, "spam $x_1$", "rare <b>")
        rows, evidence = made_up(METHODS, names=names)  # type: ignore[arg-type]
        rows[0]["result_name"] = "majority"
        rows[2]["notes"].append(f"a note of {HOSTILE}")
        ranks = {"adalora": {"encoder.layer.0.query": 3, "encoder.layer.1.query": 1}}
        folder = tmp_path_factory.mktemp("page")
        return page_of(folder, rows, losses(rows), {}, ranks, FACTS, evidence), rows


def test_the_first_screen_names_what_to_ship_and_why(made: tuple[Page, Any]) -> None:
    page, rows = made
    words = page.words()
    head = words[: words.index("All methods")]
    assert "Ship lora:rank=4" in head and " ".join(verdict(rows).split()) in head
    assert all(sentence in head for sentence in summary(rows))
    assert len(page.all("h1")) == 1


def test_everything_of_the_table_is_on_the_page(made: tuple[Page, Any]) -> None:
    page, rows = made
    words = page.words()
    squeezed = words.replace(" ", "")
    for row in rows:
        cells = [cells_of(row)[column] for column in headers_of(rows)]
        assert all(cell.replace(" ", "") in squeezed for cell in cells)
    assert all(header in words for header in headers_of(rows).values())
    assert "corrected for all pairs of rows" in words and "95 %" in words
    assert "hash 9f2c label names ham, <i>" in words and f"a note of {HOSTILE}" in words


def test_every_section_is_there_in_its_order_and_can_be_reached(made: tuple[Page, Any]) -> None:
    page, _ = made
    sections = [each["id"] for each in page.all("section")]
    assert sections == [
        *("table", "costs", "grid", "loss", "classes", "confusions", "calibration", "changes"),
        *("ranks", "facts"),
    ]
    assert [link["href"] for link in page.all("a")] == [f"#{name}" for name in sections]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    words = page.words()
    for said in (
        *("The reference is full.", "expected calibration error", "effective rank"),
        *(f"{SVM}: no probabilities", "tie", "rare", "within noise"),
    ):
        assert said in words


def test_nothing_is_asked_of_anyone_else(made: tuple[Page, Any]) -> None:
    page, _ = made
    assert not {"script", "link", "iframe", "object", "img"} & {name for name, _ in page.elements}
    for name, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes), name
        for key in ("href", "src", "xlink:href", "srcset", "action", "data"):
            target = attributes.get(key) or "#"
            assert target.startswith(("#", "data:image/png;base64,")), (name, target)
            if target.startswith("#") and len(target) > 1:
                assert any(each.get("id") == target[1:] for _, each in page.elements), target
    (policy,) = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_names_are_text_wherever_they_stand(made: tuple[Page, Any]) -> None:
    page, _ = made
    words = page.words()
    assert "<script>alert('x')</script>" in words and "rare <b>" in words
    assert not page.all("b") or all(attributes == {} for attributes in page.all("b"))
    # In pictures too, where "$" would begin mathematics.
    drawn = "".join("".join(picture.itertext()) for picture in page.parsed_pictures())
    assert "spam $x_1$ (" in drawn and "<script>alert(" in drawn


def test_pictures_are_described_searchable_and_of_their_own(made: tuple[Page, Any]) -> None:
    page, _ = made
    pictures = page.parsed_pictures()
    assert len(pictures) == len(page.all("figure")) >= 9
    described = [picture.get("aria-label") for picture in pictures]
    assert all(described) and len(set(described)) == len(described)
    for picture in pictures:
        assert picture.get("role") == "img" and picture.get("viewBox")
        assert not picture.get("width") and not picture.get("height")
        assert not picture.findall(".//{*}style") and not picture.findall(".//{*}metadata")
        assert "".join(picture.itertext()).strip()
        local = {each.get("id") for each in picture.iter() if each.get("id")}
        for each in picture.iter():
            for value in each.attrib.values():
                assert set(re.findall(r"url\(#([^)]+)\)", value)) <= local
    text = "".join("".join(picture.itertext()) for picture in pictures)
    assert "Pareto front" in text and "lora:rank=2,alpha=8" in text


def test_it_is_made_for_phones_dark_rooms_and_readers_of_screens(made: tuple[Page, Any]) -> None:
    page, _ = made
    metas = page.all("meta")
    viewport = next(meta for meta in metas if meta.get("name") == "viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"
    assert page.all("html")[0]["lang"] == "en"
    # Tables and pictures scroll inside boxes that the keyboard reaches.
    wide = [attributes for name, attributes in page.elements if name in ("table", "svg")]
    boxes = [box for box in page.all("div") if box.get("class") == "scroll"]
    assert len(boxes) == len(wide)
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1 and set(levels[1:]) == {2}


def test_a_page_of_little_is_whole_too(tmp_path: Path) -> None:
    page = page_of(tmp_path / "one", [run(f"lora {HOSTILE}", 0.95, None)], {}, {}, {}, {})
    assert f"Ship lora {HOSTILE}" in page.words() and not page.all("script")
    assert [each["id"] for each in page.all("section")] == ["table", "costs"]
    failed = failed_row("full", "all", "diverged at step 2: loss nan. Lower --lr.")
    page = page_of(tmp_path / "none", [failed], {"full": []}, {}, {}, {})
    assert "Nothing is decided" in page.words() and "There is nothing to judge" in page.words()
    page = page_of(tmp_path / "empty", [], {}, {}, {}, {})
    assert "Nothing was compared" in page.words()


def test_classes_are_compared_with_the_best_baseline_where_nothing_is_full(tmp_path: Path) -> None:
    rows, evidence = made_up({SVM: 0.6, LoRA(rank=2): 0.95, LoRA(rank=4): 0.5})
    page = page_of(tmp_path, rows, {}, {}, {}, {}, evidence)
    words = page.words()
    assert f"The reference is {SVM}." in words
    assert (
        f"lora:rank=2 against {SVM}: of 3 classes (1 of them rare) better beyond noise in 3, worse "
        "in 0. Of those told apart 1 is rare." in words
    )
    only, _ = made_up({LoRA(rank=2): 0.95, LoRA(rank=4): 0.5})
    assert reference_of(only) is None and reference_of(only[:1]) is None


def test_the_same_report_is_the_same_page(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_report(tmp_path / folder, [run("lora", 0.95, None)], {}, {}, {}, FACTS)
    assert (tmp_path / "a/report.html").read_bytes() == (tmp_path / "b/report.html").read_bytes()


def test_markdown_and_json_have_the_summary_too(tmp_path: Path) -> None:
    rows, _ = made_up({SVM: 0.6, LoRA(rank=2): 0.9, Full(): 0.9})
    write_report(tmp_path, rows, {}, {}, {}, {})
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    stored = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert stored["summary"] == summary(rows)
    assert all(f"- {sentence}" in markdown for sentence in summary(rows))
    assert "corrected for all pairs of rows" in markdown
