"""Labels that were swapped are found, and none where all are right."""

from pathlib import Path

import numpy as np
import pytest

from deltafit.experiments import label_noise as noise
from deltafit.experiments.label_noise import confident_disagreement, label_noise, suspicious_rows
from tests.experiments.cases import case_of, healthy_rows, only
from tests.training.tiny_runs import LABELS


def test_right_labels_are_not_suspicious(tmp_path: Path) -> None:
    assert list(label_noise(case_of(tmp_path, validation="none"))) == []


def test_swapped_labels_are_found_with_their_lines(tmp_path: Path) -> None:
    rows = healthy_rows(240)
    planted = range(7, 240, 20)
    for index in planted:
        text, label = rows[index]
        rows[index] = (text, LABELS[(LABELS.index(label) + 1) % 3])
    case = case_of(tmp_path, train=rows, validation="none")
    found = suspicious_rows(case.splits.train)
    assert found is not None and len(found.rows) >= 10 and set(found.rows) <= set(planted)
    for row, guess in zip(found.rows, found.guesses, strict=True):
        assert case.splits.train.label_names[guess] == LABELS[row % 3], "what it was"
    told = only(list(label_noise(case)))
    assert (
        told.severity == "warning"
        and f"{len(found.rows)} labels ({len(found.rows) / 240:.1%}) of" in told.sentence
    )
    first = found.rows[0]
    assert f"row {first + 1} (line {first + 2})" in told.rows[0]
    assert f"it looks like '{LABELS[first % 3]}'" in told.rows[0]


def test_the_definition_row_by_row() -> None:
    """Against the words of the paper's section 3.1, on random probabilities."""
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(4), size=200)
    labels = generator.integers(0, 4, size=200)
    order, guesses = confident_disagreement(shares, labels)
    expected = {}
    for row in range(200):
        sure = [
            j for j in range(4)
            if shares[row, j] >= np.mean([shares[k, j] for k in range(200) if labels[k] == j])
        ]  # fmt: skip
        if not sure:
            continue
        guess = max(sure, key=lambda j: shares[row, j])
        if guess != labels[row] and shares[row, guess] > shares[row, labels[row]]:
            expected[row] = guess
    assert dict(zip(order, guesses, strict=True)) == expected and expected
    margins = [shares[r, g] - shares[r, labels[r]] for r, g in zip(order, guesses, strict=True)]
    assert margins == sorted(margins, reverse=True)


def test_only_a_sample_of_many_rows_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "_MOST_ROWS", 90)
    rows = [(text, LABELS[0] if index % 9 == 1 else label)
            for index, (text, label) in enumerate(healthy_rows(240))]  # fmt: skip
    told = only(list(label_noise(case_of(tmp_path, train=rows, validation="none"))))
    assert "of 90 training rows, a sample of 240, may" in told.sentence


def test_rare_classes_and_texts_without_words_are_let_be(tmp_path: Path) -> None:
    rows = [*healthy_rows(60), ("alone", "rare"), ("two", "rare")]
    found = suspicious_rows(case_of(tmp_path, train=rows, validation="none").splits.train)
    assert found is not None and found.looked_at == 60
    rows = [("!" * (number + 1), LABELS[number % 2]) for number in range(30)]
    test = [("!", LABELS[0])]
    case = case_of(tmp_path, train=rows, test=test, validation="none")
    assert suspicious_rows(case.splits.train) is None
