"""The cheap baselines against counting and against scikit-learn's pipeline."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from deltafit.errors import DeltafitError
from deltafit.experiments.baselines import majority_baseline, tfidf_svm
from deltafit.tasks.metrics import classification_metrics

TOPICS = {
    0: ["refund my card", "the card was declined", "card payment failed"],
    1: ["transfer to my account", "account transfer pending", "a transfer is late"],
    2: ["forgot the passcode", "reset passcode please", "new passcode needed"],
}


def texts_of(topics: list[int]) -> tuple[list[str], list[int]]:
    pairs = [(text, topic) for topic in topics for text in TOPICS[topic]]
    return [text for text, _ in pairs], [topic for _, topic in pairs]


def test_majority_predicts_the_commonest_class_with_its_share() -> None:
    scores = majority_baseline([2, 2, 2, 0], count=5, num_classes=4)
    assert scores.shape == (5, 4)
    np.testing.assert_allclose(np.exp(scores), [[2 / 8, 1 / 8, 4 / 8, 1 / 8]] * 5)
    measured = classification_metrics(np.array([2, 2, 0, 1, 3]), scores, ["a", "b", "c", "d"])
    assert measured["accuracy"] == pytest.approx(0.4)


@pytest.mark.parametrize("topics", [[0, 1], [0, 1, 2]])
def test_svm_scores_are_the_pipelines(topics: list[int]) -> None:
    texts, labels = texts_of(topics)
    test = ["my card", "late transfer", "lost passcode", "zzz"]
    result = tfidf_svm(texts, labels, test, num_classes=len(topics), seed=3)
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC(random_state=3)
    ).fit(texts, labels)
    expected = pipeline.decision_function(test)
    if len(topics) == 2:
        np.testing.assert_allclose(result.scores[:, 1], expected)
        np.testing.assert_allclose(result.scores[:, 0], -expected)
    else:
        np.testing.assert_allclose(result.scores, expected)
    assert list(result.scores.argmax(axis=1)) == list(pipeline.predict(test))
    assert result.seconds > 0


def test_svm_never_predicts_a_class_without_training_rows() -> None:
    texts, labels = texts_of([0, 2])
    result = tfidf_svm(texts, labels, [*texts, "zzz"], num_classes=5, seed=0)
    assert result.scores.shape == (7, 5)
    assert np.isfinite(result.scores).all()
    assert list(result.scores[:6].argmax(axis=1)) == labels
    assert set(result.scores.argmax(axis=1)) <= {0, 2}


def test_svm_with_a_single_class_predicts_it() -> None:
    result = tfidf_svm(["good film", "great film"], [1, 1], ["bad film"], num_classes=3, seed=0)
    assert list(result.scores.argmax(axis=1)) == [1]


def test_svm_repeats_with_its_seed() -> None:
    texts, labels = texts_of([0, 1, 2])
    first, second = (
        tfidf_svm(texts, labels, texts, num_classes=3, seed=1).scores for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_svm_takes_every_seed_that_training_takes() -> None:
    texts, labels = texts_of([0, 1, 2])
    small, large = (
        tfidf_svm(texts, labels, texts, num_classes=3, seed=seed).scores for seed in (5, 2**33 + 5)
    )
    np.testing.assert_array_equal(small, large)


def test_texts_without_words_are_an_error_with_a_way_out() -> None:
    with pytest.raises(DeltafitError, match="text column"):
        tfidf_svm(["?", "!!"], [0, 1], ["."], num_classes=2, seed=0)
