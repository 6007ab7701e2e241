"""A report begins with its task, what exactly is shipped, how sure that is, and its caveats."""

import json
from pathlib import Path
from typing import Any

import pytest

from deltafit.experiments.csv_table import comparison_csv
from deltafit.experiments.heading import task, title, what_it_is, where_it_is
from deltafit.experiments.report import write_report
from deltafit.experiments.rows import failed_row
from deltafit.experiments.training_gap import gap_section
from deltafit.methods import BitFit, Full, Head, LoRA, Method
from tests.experiments.html_page import Page
from tests.experiments.rows import against, difference, row, run

FACTS: dict[str, Any] = {
    **{"recipe": "sms-sweep-minilm", "model": "minilm", "judged_on": "test"},
    **{"about": "Rank against alpha in 16 runs.", "changes": "The twin on MiniLM, an encoder."},
    "settings": {"epochs": 20, "batch_size": 8},
    "data": {"data": "sms_spam", "label_names": ["ham", "spam"]},
}


def of(method: Method, name: str, after: float, compared: Any, **known: Any) -> dict[str, Any]:
    settings = {"settings": method.to_dict(), "count": 300, "learning_rate": 5e-5}
    return run(name, after, compared, **{**settings, **known})


@pytest.fixture
def sweep() -> list[dict[str, Any]]:
    small = LoRA("all-linear", rank=4, alpha=4, scaling="alpha")
    return [
        row("TF-IDF", "baseline", 0.93, difference(-5, 2), count=300),
        of(small, "r=4 α=4", 0.97, difference(-1, 1.5), **against("TF-IDF", 4, 2)),
        of(Full(), "all", 0.98, None, trainable=10**8, **against("TF-IDF", 5, 2)),
    ]


def test_the_first_screen_names_task_method_settings_rows_seed_and_baseline(
    sweep: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())
    write_report(tmp_path, sweep, {}, {}, {}, FACTS)
    words = Page((tmp_path / "report.html").read_text(encoding="utf-8")).words()
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert markdown.startswith("# sms-sweep-minilm: minilm on sms_spam\n")
    heads = words[: words.index("All methods")], markdown[: markdown.index("| method |")]
    for head in heads:
        for said in (
            *("sms-sweep-minilm: minilm on sms_spam", "300 test rows, 2 classes, one seed"),
            "Ship r=4 α=4",
            "lora on all linear layers: rank 4, α 4, scaling alpha; learning rate 5e-05, "
            "20 epochs, batches of 8",
            *("97.0 % accuracy, one seed,", "at most 2.5 points (95 %) less"),
            "r=4 α=4 beats the best cheap baseline, TF-IDF, beyond noise (+4.0 [+2.0, +6.0]",
            *(FACTS["about"], FACTS["changes"]),
        ):
            assert said in head, said
        # What a word means stands where it is first used, and the caveats before all figures.
        assert head.index("within noise") < head.index("includes 0") < head.index(FACTS["about"])
    assert "of memory at the peak of the whole process" in heads[0]
    for text in (words, markdown):  # not again among the facts
        assert text.count(FACTS["about"]) == text.count(FACTS["changes"]) == 1
    stored = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert stored["advised"] == "r=4 α=4" and stored["facts"]["about"] == FACTS["about"]
    assert stored["title"] == title(FACTS) and stored["advised_settings"].startswith("lora on all")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (LoRA(), "lora on query and value: rank 8, α 16, scaling alpha/r; "),
        (
            LoRA(("key", "dense"), layers=(0, 5), rank=2, dropout=0.1),
            "lora on key and dense of blocks 0 and 5: rank 2, α 16, scaling alpha/r, dropout 0.1; ",
        ),
        (Full(), "full (every parameter); "),
        (Head(), "head (the new head alone); "),
        (BitFit(), "bitfit (every bias, and the head); "),
    ],
    ids=lambda value: str(value).split(";")[0] if isinstance(value, Method) else "",
)
def test_a_method_is_told_with_its_places_and_settings(method: Method, said: str) -> None:
    made = of(method, "mine", 0.9, None, targets=["query", "value"])
    assert what_it_is(made, {}) == f"{said}learning rate 5e-05"
    assert what_it_is({**made, "head_learning_rate": 5e-5}, {}) == f"{said}learning rate 5e-05"
    made["head_learning_rate"] = 5e-3
    assert what_it_is(made, {}) == f"{said}learning rate 5e-05, of the head 0.005"


def test_settings_of_a_row_go_before_shared_ones() -> None:
    facts = {"settings": {"batch_size": 8}, "settings_by_row": {"a": {"epochs": 3}}}
    assert str(what_it_is(of(Full(), "a", 0.9, None), facts)).endswith("3 epochs, batches of 8")
    unknown = of(LoRA(), "b", 0.9, None, learning_rate=None)
    assert what_it_is(unknown, {}) == (
        "lora on its default matrices: rank 8, α 16, scaling alpha/r"
    )
    assert what_it_is(None, {}) is what_it_is(row("TF-IDF", "baseline", 0.9, None), {}) is None


def test_where_the_advised_files_lie_is_said() -> None:
    assert where_it_is(None) is where_it_is(of(Full(), "a", 0.9, None)) is None
    one = of(Full(), "a", 0.9, None, folder="../runs/ab12", seeds=1)
    assert where_it_is(one) == "It is in ../runs/ab12, seen from this report."
    assert str(where_it_is(one | {"seeds": 3})).endswith(
        "this report, of the seed that does best on the validation rows."
    )
    said = where_it_is(row("TF-IDF + linear SVM", "baseline", 0.9, None))
    assert said is not None and said.startswith("No file is kept of TF-IDF + linear SVM")


def test_titles_and_tasks_say_as_much_as_is_known() -> None:
    assert title({}) == "Comparison of methods"
    assert title({"model": "minilm"}) == "Comparison of methods: minilm"
    paths = {"model": "/home/me/minilm", "data": {"data": "/home/me/reviews.csv"}}
    assert title(paths) == "Comparison of methods: minilm on reviews.csv"
    assert title({"model": "google-bert/bert-base"}).endswith(": google-bert/bert-base")
    several = [run("a", 0.9, None, seeds=3, count=1200), failed_row("b", "all", "diverged.")]
    assert task(several, {}) == "1,200 rows, 3 seeds"
    assert task([], {}) == task([failed_row("b", "all", "diverged.")], {}) == ""


def test_the_gap_between_training_and_judged_rows_is_a_section_and_in_the_csv() -> None:
    rows = [
        row("TF-IDF", "baseline", 0.9, difference(-6, 2)),
        run("r=4", 0.95, difference(-1, 2), training=0.96),
        run("r=32", 0.943, difference(-2, 3), training=1.0),
        run("head", 0.96, None, training=0.955),
    ]
    (section,) = gap_section(rows)
    (part,) = section.parts
    assert part.table is not None
    shown = [(line[0], line[1], line[2], line[4]) for line in part.table.rows]
    assert shown == [
        *(("r=32", "100.0", "94.3", "+5.7"), ("r=4", "96.0", "95.0", "+1.0")),
        ("head", "95.5", "96.0", "−0.5"),
    ]
    kept = [(record["row"], record["training"], record["after"]) for record in part.table.records]
    assert kept == [("r=32", 1.0, 0.943), ("r=4", 0.96, 0.95), ("head", 0.955, 0.96)]
    assert [round(record["gap"], 4) for record in part.table.records] == [0.057, 0.01, -0.005]
    assert "largest gap is that of r=32, 5.7 points, the smallest that of head" in section.text
    header, *lines = [line.split(",") for line in comparison_csv(rows).splitlines()]
    place = header.index("training_gap")
    gaps = [line[place] for line in lines]
    assert gaps[0] == "" and [round(float(gap), 4) for gap in gaps[1:]] == [0.01, 0.057, -0.005]
    assert gap_section(rows[:1]) == gap_section([]) == []
