"""The comparison's three forms: complete, readable at any width, and exact where it is data."""

import csv
import io
import re

import pytest
from rich.console import Console

from deltafit.experiments.tables import (
    comparison_csv,
    comparison_markdown,
    comparison_table,
    format_bytes,
    format_count,
    format_difference,
    format_metric,
    format_seconds,
)
from tests.experiments.rows import difference, example, run


def printed(width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(comparison_table(example(), width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160, 220])
def test_nothing_is_cut_off_at_any_width(width: int) -> None:
    text = printed(width)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    unspaced = re.sub(r"\s", "", text)
    figures = [
        *("1.2", "93.4", "92.5", "94.2", "92.4", "20.2min", "131", "1.6GB", "412kB", "103k"),
        *("0.45%", "91.0MB", "100%", "best", "chosenonvalidation"),
    ]
    for figure in figures:
        if width < 80 and figure == "0.45%":
            continue  # running text may fold inside it, between two columns
        assert figure in unspaced or width < 80, figure
    if width >= 80:
        assert "within noise" in text
        assert "−0.4 ± 0.6" in text


def test_eighty_columns_keep_a_method_to_a_few_lines() -> None:
    assert len(printed(80).splitlines()) <= 3 + 4 * len(example()) + 2


def test_a_wide_terminal_shows_every_column_in_one_line() -> None:
    line = next(line for line in printed(220).splitlines() if line.startswith("full"))
    expected = ["22.7 M", "100 %", "1.2", "93.6", "[92.7, 94.4]", "92.6", "1.3 h", "131", "1.6 GB"]
    assert re.split(r"\s{2,}", line.strip())[1:] == [
        *expected,
        "91.0 MB",
        "within noise (−0.2 ± 0.7)",
    ]


def test_what_a_baseline_lacks_is_a_dash() -> None:
    line = next(line for line in printed(220).splitlines() if line.startswith("TF-IDF"))
    assert re.split(r"\s{2,}", line.strip())[1:4] == ["–", "–", "–"]


def test_markdown_has_a_cell_for_every_column_and_escapes_bars() -> None:
    rows = [*example(), run("a|b", 0.9, difference(-3.8, 0.5))]
    lines = comparison_markdown(rows).splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(line) for line in cells} == {12}
    assert len(lines) == 2 + len(rows)
    assert "**lora rank=16 alpha=32 targets=all-linear (3 seeds)**" in lines[7]
    assert "within noise (−0.4 ± 0.6)" in lines[6]
    assert r"a\|b" in lines[-1]


def test_csv_holds_the_plain_numbers() -> None:
    read = list(csv.DictReader(io.StringIO(comparison_csv(example()))))
    assert len(read) == len(example())
    lora = read[4]
    assert float(lora["after"]) == 0.934
    assert float(lora["interval_low"]) == pytest.approx(0.925)
    assert float(lora["share"]) == pytest.approx(103_373 / 22_742_861)
    assert int(lora["saved_bytes"]) == 412_000
    assert float(lora["difference"]) == pytest.approx(-0.004)
    assert lora["within_noise"] == "True"
    assert read[0]["trainable"] == read[5]["difference"] == ""


def test_no_rows_is_an_empty_comparison() -> None:
    assert comparison_csv([]) == ""
    assert comparison_table([], 80).row_count == 0


@pytest.mark.parametrize(
    ("formatted", "expected"),
    [
        (format_metric(0.9305, "macro_f1"), "93.0"),
        (format_metric(0.3456, "log_loss"), "0.346"),
        (format_metric(None, "accuracy"), "–"),
        (format_count(22_742_861), "22.7 M"),
        (format_count(384), "384"),
        (format_count(0), "0"),
        (format_bytes(1_180_000), "1.2 MB"),
        (format_bytes(420_000_000), "420 MB"),
        (format_bytes(12), "12 B"),
        (format_seconds(8.31), "8.3 s"),
        (format_seconds(250), "4.2 min"),
        (format_seconds(7200), "2.0 h"),
        (format_difference({"difference": None}), "best"),
        (format_difference({"difference": difference(-2.1, 0.9)}), "−2.1 ± 0.9"),
        (format_difference({"difference": difference(0.4, 1.1)}), "within noise (+0.4 ± 1.1)"),
    ],
)
def test_formats(formatted: str, expected: str) -> None:
    assert formatted == expected
