"""What the sections of a page, and the tables of its Markdown and JSON, say of the figures."""

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from deltafit.adapters.movement import MatrixChange
from deltafit.experiments.answers import Answers, Evidence
from deltafit.experiments.class_statistics import class_differences
from deltafit.experiments.confusion_statistics import confusion_changes
from deltafit.experiments.forms import markdown_table
from deltafit.experiments.page_parts import MOST_RUNS, Part, Section, runs_in_order
from deltafit.experiments.pareto import pareto_front
from deltafit.experiments.report import write_report
from deltafit.experiments.sections import sections_of
from deltafit.experiments.tables import format_points
from deltafit.experiments.verdict import advised
from deltafit.methods import DoRA, Full, LoRA
from deltafit.tasks.metrics import calibration_gap
from tests.experiments.evidence import HOSTILE, losses, made_up
from tests.experiments.rows import difference, run

GRID = {
    LoRA(rank=rank, alpha=alpha): 0.72 + 0.01 * rank
    for rank, alpha in product((2, 4, 8), (8, 16, 32))
}
METHODS = {
    "majority class": 0.2,
    "TF-IDF + linear SVM": 0.6,
    **GRID,
    DoRA(rank=2): 0.7,
    Full(): 0.81,
}


def section(sections: list[Section], name: str) -> Section:
    (found,) = (each for each in sections if each.name == name)
    return found


def tables(found: Section) -> list[Any]:
    return [part.table for part in found.parts if part.table is not None]


@pytest.fixture(scope="module")
def made() -> tuple[list[dict[str, Any]], Evidence, list[Section]]:
    rows, evidence = made_up(METHODS, classes=5)  # type: ignore[arg-type]
    return rows, evidence, sections_of(rows, losses(rows), {}, evidence)


def test_the_advised_run_comes_first_and_then_the_best(made: Any) -> None:
    rows, _, _ = made
    chosen = advised(rows)
    assert chosen is not None and chosen["kind"] == "run" and chosen is not rows[2]
    first, *others = runs_in_order(rows)
    assert first is chosen and len(others) == len(rows) - 3
    results = [each["after"] for each in others]
    assert results == sorted(results, reverse=True)


def test_matrices_are_drawn_of_the_advised_run_and_the_best_and_the_others_are_named(
    made: Any,
) -> None:
    rows, evidence, sections = made
    found = section(sections, "changes")
    names = [each["name"] for each in runs_in_order(rows) if each["name"] in evidence.changes]
    assert len(names) == 10 > MOST_RUNS  # LoRA and DoRA, which is one
    pictures = [part for part in found.parts if part.figure is not None]
    assert [part.caption.split(": ‖")[0] for part in pictures[::2]] == [
        f"{name}, seed 0" for name in names[:MOST_RUNS]
    ]
    chosen = advised(rows)
    assert chosen is not None and pictures[0].caption.startswith(f"{chosen['name']}, seed 0: ")
    assert not pictures[0].folded and all(part.folded for part in pictures[2:])
    _, _, said = found.legend.partition("Not drawn: ")
    for name in names:
        assert (f"{name}, seed 0" in said) == (name in names[MOST_RUNS:])


def test_the_table_of_matrices_holds_every_run(made: Any) -> None:
    _, evidence, sections = made
    (table,) = tables(section(sections, "changes"))
    assert len(table.records) == sum(len(moved) for moved in evidence.changes.values())
    for record in table.records:
        moved = evidence.changes[record["run"].removesuffix(", seed 0")]
        (change,) = (each for each in moved if each.name == record["matrix"])
        assert record["share"] == pytest.approx(change.delta_norm / change.weight_norm)
        assert record["effective_rank"] == change.effective_rank
    # ‖ΔW‖ grows from 0.3 to 5.3 over six blocks, on a norm of 20.
    assert len(table.rows) == 2 * len(evidence.changes)
    assert all(line[1:] == ["6", "1.5–26", "3.2"] for line in table.rows)
    assert table.rows[0][0].endswith(", seed 0: attention.self.query")


def test_a_matrix_of_a_base_that_was_zero_has_no_share() -> None:
    rows, evidence = made_up({LoRA(rank=2): 0.9})
    (name,) = evidence.changes
    change = MatrixChange("layer.0.query", (4, 4), 0.5, 0.0, None)
    evidence = Evidence(
        *(evidence.labels, evidence.label_names, evidence.train_counts, evidence.answers),
        {name: (change,)},
    )
    (table,) = tables(section(sections_of(rows, {}, {}, evidence), "changes"))
    assert table.rows == [[f"{name}: query", "1", "–", "–"]]
    assert table.records[0]["share"] is None and table.records[0]["run"] == name


def test_who_is_on_a_front_is_told_for_every_cost(made: Any) -> None:
    rows, _, sections = made
    (table,) = tables(section(sections, "costs"))
    keys = {"share": "trainable", "time": "seconds", "memory": "peak_memory_bytes"}
    for column, key in keys.items():
        known = [each for each in rows if each[key]]
        front = pareto_front([(each[key], each["after"]) for each in known])
        expected = {known[index]["name"] for index in front}
        told = {each["name"] for each in table.records if column in each["on_front_of"]}
        assert told == expected
        (place,) = (
            index
            for index, title in enumerate(table.headers)
            if title == {"memory": "peak memory"}.get(column, column)
        )
        assert {
            each["name"]
            for each, line in zip(rows, table.rows, strict=True)
            if line[place].endswith(" (front)")
        } == expected


def test_classes_have_their_figures_and_the_rare_ones_a_mark(made: Any) -> None:
    rows, evidence, sections = made
    found = section(sections, "classes")
    others = [each for each in runs_in_order(rows) if each["name"] != "full"]
    assert len(found.parts) == MOST_RUNS
    for part, each in zip(found.parts, others, strict=False):
        assert part.figure is not None and part.table is not None
        ours, full = (evidence.answers[name].predicted for name in (each["name"], "full"))
        compared = class_differences(
            *(evidence.labels, evidence.label_names, evidence.train_counts, ours, full)
        )
        expected = compared.classes
        assert compared.rare is not None and format_points(vars(compared.rare)) in part.caption
        assert part.table.records == [
            {"method": each["name"], "reference": "full", **asdict(one)} for one in expected
        ]
        by_name = {one.name: one for one in expected}
        for line in part.table.rows:
            one = by_name[line[0].removesuffix(" (rare)")]
            assert line[0].endswith(" (rare)") == one.rare == (one.name == "class 4")
            assert line[1:3] == [str(one.support), str(one.train_count)]
            assert line[3:5] == [f"{100 * one.f1:.1f}", f"{100 * one.reference_f1:.1f}"]
            told = line[5].partition(" (")[0]
            assert (told == "within noise") == one.comparison.within_noise
            assert (told[0] in "+−0") == one.comparison.beyond_noise
    assert "Not drawn: " in found.text and others[-1]["name"] in found.text
    assert others[0]["name"] not in found.text


def planted() -> tuple[list[dict[str, Any]], Evidence]:
    """LoRA takes 40 of class 0 for class 1; full takes 9 of class 1 for class 0, LoRA 6."""
    labels = np.repeat(np.arange(3), 100)
    ours, full = labels.copy(), labels.copy()
    ours[:40], ours[100:106], full[100:109] = 1, 0, 0
    answers = {
        name: Answers(said[None], np.full((1, 300), 0.9))
        for name, said in (("lora", ours), ("full", full))
    }
    rows = [
        run("lora", 0.85, difference(-12, 4), settings=LoRA().to_dict()),
        run("full", 0.97, None, result_name="all"),
    ]
    return rows, Evidence(labels, ("ham", "spam", "other"), (100, 100, 10), answers)


def test_confusions_stand_in_their_columns_with_their_direction_and_sign() -> None:
    rows, evidence = planted()
    found = section(sections_of(rows, {}, {}, evidence), "confusions")
    (table,) = tables(found)
    assert table.headers == ["true class → taken for", "rows, lora", "rows, full", "change"]
    assert table.rows == [
        ["ham → spam", "40", "0", "+40"],
        ["spam → ham", "6", "9", "within noise (−3)"],
    ]
    (first, second) = table.records
    expected = confusion_changes(
        *(evidence.labels, evidence.label_names),
        *(evidence.answers[name].predicted for name in ("lora", "full")),
    )
    assert first == {"method": "lora", "reference": "full", **asdict(expected.tested[0])}
    assert (first["truth"], first["predicted"], first["rows"]) == ("ham", "spam", 40)
    assert first["comparison"]["beyond_noise"] and second["comparison"]["within_noise"]
    assert found.parts[0].caption == "lora against full."
    assert "All 2 confusions that either method makes were tested" in found.text


def test_a_change_that_does_not_stand_correction_is_undecided() -> None:
    rows, evidence = planted()
    ours, full = (evidence.answers[name].predicted[0] for name in ("lora", "full"))
    ours[200:206] = 0
    for both in (ours, full):
        both[210:215] = 1
    (table,) = tables(section(sections_of(rows, {}, {}, evidence), "confusions"))
    assert table.rows[1] == ["other → ham", "6", "0", "undecided (+6)"]
    (record,) = (each for each in table.records if each["truth"] == "other" and each["rows"] == 6)
    assert record["comparison"]["p_value"] < 0.05 < record["comparison"]["adjusted_p_value"]


def test_of_many_confusions_it_is_said_how_many_were_tested(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, evidence, _ = made
    monkeypatch.setattr("deltafit.experiments.confusion_statistics.CONFUSIONS_TESTED", 14)
    monkeypatch.setattr("deltafit.experiments.class_sections.CONFUSIONS_SHOWN", 5)
    found = section(sections_of(rows, {}, {}, evidence), "confusions")
    (table,) = tables(found)
    assert "Of the 20 confusions that either method makes, the 14 most frequent" in found.text
    assert "correction for these 14," in found.text
    assert len(table.records) == 14 and len(table.rows) == 5
    moved = [record for record in table.records if record["rows"] != record["reference_rows"]]
    assert f"The 5 largest of {len(moved)} changes." in found.parts[0].caption


def test_calibration_errors_are_those_of_the_answers(made: Any) -> None:
    _, evidence, sections = made
    (table,) = tables(section(sections, "calibration"))
    assert len(table.records) == len(METHODS) - 1  # all but the margins
    for line, record in zip(table.rows, table.records, strict=True):
        said = evidence.answers[record["method"]]
        assert said.confidence is not None
        expected = [
            calibration_gap(sure, predicted == evidence.labels)
            for sure, predicted in zip(said.confidence, said.predicted, strict=True)
        ]
        assert record["errors"] == pytest.approx(expected)
        assert line[0] == record["method"]
        assert line[1].startswith(f"{100 * np.mean(expected):.1f} %")
        assert sum(each["count"] for each in record["bins"]) == said.predicted.size
    means = [np.mean(record["errors"]) for record in table.records]
    assert means == sorted(means)


def test_grids_of_other_settings_are_all_there_and_the_advised_one_is_first() -> None:
    rates = {1e-4: 0.7, 1e-3: 0.9, 1e-2: 0.6}
    rows, _ = made_up(
        {f"{method} at {rate}": level for rate, level in rates.items() for method in GRID}
    )
    settings = [(method, rate) for rate in rates for method in GRID]
    for each, (method, rate) in zip(rows, settings, strict=True):
        each |= {"kind": "run", "settings": method.to_dict(), "learning_rate": rate}
        each["varied"] = {"learning_rate": rate}
    found = section(sections_of(rows, {}, {}, None), "grid")
    assert [part.caption.split(" by ")[0] for part in found.parts] == [
        f"lora, learning_rate={rate}" for rate in (1e-3, 1e-4, 1e-2)
    ]
    assert [part.folded for part in found.parts] == [False, True, True]
    assert "There are 3 grids" in found.text and "the advised method's comes first" in found.text
    held = [record["name"] for table in tables(found) for record in table.records]
    assert sorted(held) == sorted(each["name"] for each in rows)
    assert "In no grid" not in found.text
    alone = {**rows[0], "name": "alone", "settings": DoRA(rank=2).to_dict()}
    found = section(sections_of([*rows, alone], {}, {}, None), "grid")
    assert "In no grid, for want of others beside them: alone." in found.text


def test_markdown_and_json_have_every_table_of_the_page(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
    monkeypatch.setattr("deltafit.experiments.report.report_page", lambda *content: "")
    rows, evidence, sections = made
    write_report(tmp_path, rows, losses(rows), {}, {}, {}, evidence)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    stored = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["sections"]
    named = ["costs", "grid", "classes", "confusions", "calibration", "changes"]
    assert [*stored] == named
    for name in named:
        found = section(sections, name)
        assert f"\n## {found.title}\n\n{found.text}\n" in markdown
        parts = [part for part in found.parts if part.table is not None]
        for part, kept in zip(parts, stored[name], strict=True):
            assert part.table is not None
            assert f"\n{part.caption}\n\n{markdown_table(part.table.headers, part.table.rows)}" in (
                markdown
            )
            assert kept["caption"] == part.caption
            assert kept["figures"] == json.loads(json.dumps([*part.table.records]))
            assert kept["figures"]
        if found.legend:  # there are no such pictures
            assert found.legend not in markdown
    for said in ("(rare)", " tie |", " best |", "(front)", "–26 |", " → class "):
        assert said in markdown


def test_what_is_said_in_words_is_in_markdown_and_what_is_only_drawn_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
    words, drawn = Part("Which layers? All of them."), Part("Two lines.", Figure)
    beside = [
        Section("questions", "Which layers", "How to read it.", [words, drawn], "Of pictures."),
        Section("drawn", "Drawn", "How to look at it.", [drawn]),
    ]
    write_report(tmp_path, [run("lora", 0.9, None)], {}, {}, {}, {}, beside=beside)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"## Which layers\n\nHow to read it.\n\n{words.caption}\n" in markdown
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count(f"<p>{words.caption}</p>") == 1
    for text in (drawn.caption, "Of pictures.", "How to look at it."):
        assert text in page and text not in markdown


def test_names_of_classes_are_text_in_markdown() -> None:
    found = markdown_table(["a|b", "c"], [[HOSTILE, "two\nlines"]])
    assert found.splitlines()[0] == "| a\\|b | c |"
    assert found.splitlines()[2].startswith("| \\<script>") and found.count("\n") == 3
    assert found.endswith("| two lines |\n")
