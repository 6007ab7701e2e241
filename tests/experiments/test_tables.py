"""The comparison's three forms: complete, readable at any width, and exact where it is data."""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from deltafit.experiments.csv_table import comparison_csv
from deltafit.experiments.rows import failed_row
from deltafit.experiments.tables import (
    comparison_markdown,
    format_bytes,
    format_count,
    format_difference,
    format_metric,
    format_points,
    format_seconds,
    is_best,
    remarks,
)
from deltafit.experiments.terminal_table import comparison_table
from tests.experiments.rows import between, difference, example, run

FAILURE = "diverged at step 40: loss nan. Lower --lr."


def printed(width: int, rows: Sequence[dict[str, Any]] | None = None) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(comparison_table(example() if rows is None else rows, width))
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
    # Rows within noise and rows that are not: the interval of every difference is there.
    for points, interval in [("−0.4", "[−1.0,+0.2]"), ("−92.5", "[−93.4,−91.6]")]:
        assert points in unspaced
        assert interval in unspaced or width < 80
    if width >= 80:
        assert "within noise" in text


def test_eighty_columns_keep_a_method_to_a_few_lines() -> None:
    assert len(printed(80).splitlines()) <= 3 + 4 * len(example()) + 2


def test_eighty_columns_show_difference_and_interval_one_above_the_other() -> None:
    lines = printed(80).splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("lora rank=8"))
    ends = [line[-16:].split("  ")[-1].strip() for line in lines[place : place + 3]]
    assert ends == ["within noise", "−0.4", "[−1.0, +0.2]"]


@pytest.mark.parametrize("width", [60, 80, 100, 220])
def test_the_widest_figures_are_not_cut_either(width: int) -> None:
    widest: dict[str, Any] = {
        **{"before": 1.0, "interval": [1.0, 1.0], "macro_f1": 1.0, "seeds": 12},
        **{"examples_per_second": 12345.0, "seconds": 3590.0, "saved_bytes": 999_000_000},
    }
    name = "lora:rank=8,alpha=16,target_modules=query,key,value,dense"
    rows = [run(name, 1.0, None, **widest), run("full", 1.0, between(-100, -100, -100), **widest)]
    text = re.sub(r"\s", "", printed(width, rows))
    assert text.count("[100.0,100.0]") == 2 or width < 80
    assert "[−100.0,−100.0]" in text
    assert text.count("12345") == 2


@pytest.mark.parametrize("width", [40, 60])
def test_running_text_says_best_once_and_no_speed_that_is_not_known(width: int) -> None:
    rows = [
        run("lora", 0.95, None, examples_per_second=0.0),
        run("head", 0.9, between(-5, -8, -1.5), examples_per_second=None),
        failed_row("full", "all", FAILURE),
    ]
    text = " ".join(printed(width, rows).split())
    assert "best best" not in text and "examples/s" not in text
    assert text.count("best") == 2  # the best, and the other's "difference to best"
    assert "−5.0" in text and "failed" in text


@pytest.mark.parametrize("width", [40, 80, 220])
def test_a_failed_method_has_dashes_the_reason_and_is_not_the_best(width: int) -> None:
    rows = [run("lora", 0.95, None), failed_row("full", "all", FAILURE), run("head", 0.9, None)]
    text = printed(width, rows)
    assert f"full: {FAILURE}" in " ".join(text.split())
    line = next(line for line in text.splitlines() if line.startswith("full"))
    assert line.rstrip().endswith("failed")
    if width > 40:
        assert set(line.split()) == {"full", "–", "failed"}
    markdown = comparison_markdown(rows).splitlines()
    assert markdown[3] == "| full |" + " – |" * 10 + " failed |"
    read = list(csv.DictReader(io.StringIO(comparison_csv(rows))))
    assert [line["failure"] for line in read] == ["", FAILURE, ""]
    assert {read[1][key] for key in read[1]} == {"full", "run", "all", "accuracy", FAILURE, ""}
    assert not is_best(rows[1])


def test_a_wide_terminal_shows_every_column_in_one_line() -> None:
    line = next(line for line in printed(220).splitlines() if line.startswith("full"))
    expected = ["22.7 M", "100 %", "1.2", "93.6", "[92.7, 94.4]", "92.6", "1.3 h", "131", "1.6 GB"]
    assert re.split(r"\s{2,}", line.strip())[1:] == [
        *expected,
        "91.0 MB",
        "within noise (−0.2 [−0.9, +0.5])",
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
    assert "within noise (−0.4 [−1.0, +0.2])" in lines[6]
    assert r"a\|b" in lines[-1]


def test_csv_holds_the_plain_numbers() -> None:
    read = list(csv.DictReader(io.StringIO(comparison_csv(example()))))
    assert len(read) == len(example())
    lora = read[4]
    assert float(lora["after"]) == 0.934
    assert float(lora["interval_low"]) == pytest.approx(0.925)
    assert float(lora["share"]) == pytest.approx(103_373 / 22_742_861)
    assert int(lora["saved_bytes"]) == 412_000
    assert int(lora["count"]) == 3080
    assert float(lora["difference"]) == pytest.approx(-0.004)
    assert lora["within_noise"] == "True"
    assert read[0]["trainable"] == read[5]["difference"] == ""


def test_a_remark_of_several_rows_is_said_once() -> None:
    rows = [run(f"r={i}", 0.9, None, notes=["no better than TF-IDF", f"note {i}"]) for i in (1, 2)]
    rows += [failed_row("full", "all", FAILURE)]
    assert remarks(rows) == [
        "r=1 and r=2: no better than TF-IDF",
        "r=1: note 1",
        "r=2: note 2",
        f"full: {FAILURE}",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 240])
def test_differing_rates_and_figures_without_duplicates_have_columns(width: int) -> None:
    known = {"learning_rate": 5e-4, "after_new_rows": 0.8771}
    rows = [run("lora", 0.95, None, **known), run("full", 0.9, difference(-5, 1))]
    shown = printed(width, [rows[0], rows[1] | {"learning_rate": 2e-5}])
    assert "87.7" in shown and max(map(len, shown.splitlines())) <= width
    assert "0.0005" in shown and "2e-05" in shown
    one_rate = comparison_markdown([each | {"learning_rate": 5e-4} for each in rows])
    assert "without duplicates" in one_rate and "learning rate" not in one_rate
    assert "without duplicates" not in comparison_markdown([rows[1]])


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
        (format_difference({"difference": None, "failure": FAILURE}), "failed"),
        (format_difference({"difference": difference(-2.1, 0.9)}), "−2.1 [−3.0, −1.2]"),
        (
            format_difference({"difference": between(-53.1, -81.2, 0.2)}),
            "within noise (−53.1 [−81.2, +0.2])",
        ),
        (format_points(between(0, -1.5, 1.5)), "0.0 [−1.5, +1.5]"),
        (format_points(between(0.04, 0.01, 0.07)), "+0.0 [+0.0, +0.1]"),
    ],
)
def test_formats(formatted: str, expected: str) -> None:
    assert formatted == expected
