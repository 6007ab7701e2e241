"""``predict`` and ``evaluate`` with a saved classifier."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from deltafit.errors import DeltafitError, UsageError
from deltafit.prediction.folder import SavedClassifier, load_saved
from deltafit.prediction.using import Done, evaluate, predict
from tests.prediction.test_folder import logits, saved
from tests.training.tiny_runs import LABELS, tiny_texts, write_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    saved(path)
    return path / "adapter"


@pytest.fixture(scope="module")
def loaded(folder: Path) -> SavedClassifier:
    return load_saved(folder)


def test_probabilities_are_the_softmax_of_the_logits_in_order(
    folder: Path, loaded: SavedClassifier
) -> None:
    texts = [text for text, _ in tiny_texts(7)]
    expected = logits(loaded.classifier).double().softmax(1)
    found = list(predict(folder, texts, batch_tokens=20))
    assert [prediction.text for prediction in found] == texts
    for prediction, row in zip(found, expected, strict=True):
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert tuple(prediction.probabilities) == LABELS
        assert list(prediction.probabilities.values()) == pytest.approx(row.tolist(), abs=1e-5)
        assert prediction.label == LABELS[int(row.argmax())]
        assert prediction.probability == max(prediction.probabilities.values())


def test_texts_are_read_as_they_are_needed(
    loaded: SavedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.prediction.using._TEXTS_AT_ONCE", 4)
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for number in range(10**9):
            read += 1
            yield f"w{number % 50} w7"

    found = predict(loaded, texts())
    first = [next(found) for _ in range(6)]
    assert read == 8
    assert [prediction.text for prediction in first] == [f"w{number} w7" for number in range(6)]


def test_an_empty_text_gives_its_number(
    loaded: SavedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.prediction.using._TEXTS_AT_ONCE", 3)
    found = predict(loaded, ["w1", "w2", "w3", "w4", " \n", "w5"])
    before = []
    with pytest.raises(DeltafitError, match="Text 5 is empty"):
        before.extend(found)
    with pytest.raises(DeltafitError, match="Text 1 is empty"):
        list(predict(loaded, [""]))


def test_no_text_gives_no_prediction(loaded: SavedClassifier) -> None:
    assert list(predict(loaded, [])) == []


def test_a_long_text_is_cut_as_in_training(loaded: SavedClassifier) -> None:
    words = " ".join(f"w{number}" for number in range(50))
    cut = " ".join(f"w{number}" for number in range(loaded.max_length))
    whole, short = predict(loaded, [words, cut], batch_tokens=1)
    assert whole.probabilities == short.probabilities


def test_evaluate_equals_scikit_learns_figures(
    folder: Path, loaded: SavedClassifier, tmp_path: Path
) -> None:
    data = write_table(tmp_path / "texts.csv", 31, seed=4)
    with Path(data).open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [row["label"] for row in rows]
    predicted = [p.label for p in predict(loaded, (row["text"] for row in rows))]
    metrics = evaluate(folder, data)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert metrics["macro_f1"] == pytest.approx(
        f1_score(labels, predicted, labels=list(LABELS), average="macro", zero_division=0)
    )
    assert metrics["count"] == 31 and metrics["truncated"] == 0
    assert evaluate(loaded, data, batch_tokens=12)["accuracy"] == metrics["accuracy"]


def test_evaluate_refuses_a_label_it_never_learned(loaded: SavedClassifier, tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    table.write_text("text,label\nw1 w2,good\nw3,awful\n")
    with pytest.raises(DeltafitError, match="awful"):
        evaluate(loaded, table)


def test_a_batch_of_nothing_is_refused(loaded: SavedClassifier) -> None:
    with pytest.raises(UsageError, match="batch of 0 tokens"):
        list(predict(loaded, ["w1"], batch_tokens=0))


def test_progress_counts_texts_and_cuts(
    loaded: SavedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.prediction.using._TEXTS_AT_ONCE", 4)
    length = loaded.max_length
    long = " ".join(["w7"] * (length + 1))
    told: list[Done] = []
    texts = [long, "w1", "w2", "w3", "w4", long]
    list(predict(loaded, texts, batch_tokens=length, progress=told.append))
    # Chunks of four and two texts, a long one in a pass of its own; cuts are known before a chunk.
    counts = [(0, 0), (1, 1), (4, 1), (5, 2), (6, 2)]
    assert [(done.texts, done.truncated) for done in told] == counts
    assert {(done.total, done.max_length) for done in told} == {(None, length)}

    told.clear()
    table = tmp_path / "texts.csv"
    table.write_text(f"text,label\n{long},good\nw1,bad\nw2,mixed\n")
    metrics = evaluate(loaded, table, batch_tokens=length, progress=told.append)
    assert [(done.texts, done.total) for done in told] == [(0, 3), (1, 3), (3, 3)]
    assert told[-1].truncated == metrics["truncated"] == 1 and metrics["max_length"] == length
