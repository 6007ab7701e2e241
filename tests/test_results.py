"""A finished report as a page of the documents: its words and tables, where and how it was made."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from deltafit.experiments.report import write_report
from tests.experiments.rows import example

SCRIPT = Path(__file__).parents[1] / "docs" / "results.py"
FACTS: dict[str, Any] = {
    "recipe": "sweep-minilm",
    "data": {"data": "sms_spam", "location": "/home/somebody/sms_spam"},
    "precision": {"head": "float32", "full": "float32", "lora": "bf16"},
    "environment": {"processor": "Some CPU", "cores": 2, "threads": 1, "torch": "2.13.0"},
}


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
    return runpy.run_path(str(SCRIPT))["page"]


def test_a_page_has_the_reports_words_and_says_how_it_was_made(page: Any, tmp_path: Path) -> None:
    write_report(tmp_path, example(), {}, {}, {}, FACTS)
    text = page(tmp_path, "deltafit run recipes/sweep.yaml --set model=minilm")
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    title, _, rest = report.partition("\n")
    assert text.startswith(f"{title}\n\n`deltafit run recipes/sweep.yaml --set model=minilm`, on ")
    assert "Some CPU (2 cores, threads a run: 1), torch 2.13.0; 20" in text
    assert "In float32: head and full. In bf16: lora." in text
    assert rest.partition("\n## Result with")[0].strip() in text
    assert "![" not in text and "somebody" not in text and "## Facts" not in text


def test_what_runs_do_not_have_in_common_is_said_of_each(page: Any, tmp_path: Path) -> None:
    facts = FACTS | {"environment": {"processor": "Some CPU", "cores": 2}}
    facts |= {"threads": {"head": 1, "full": 2, "lora": 1}}
    write_report(tmp_path, example(), {}, {}, {}, facts)
    assert "Some CPU (2 cores, threads a run: 1 or 2)" in page(tmp_path, "deltafit run")


def test_a_page_that_names_a_folder_of_ones_own_is_refused(page: Any, tmp_path: Path) -> None:
    write_report(tmp_path, example(), {}, {}, {}, FACTS | {"about": "Of /home/me/texts.csv."})
    with pytest.raises(SystemExit, match=r"names /home/me/texts\.csv, which no reader has"):
        page(tmp_path, "deltafit run mine.yaml")
