"""Reliability by confidence, against counting it row by row."""

import numpy as np
import pytest
from scipy.special import softmax

from deltafit.experiments.answers import Answers, answers_of
from deltafit.experiments.calibration import calibration_plot, format_error, reliability
from deltafit.tasks.metrics import accuracy_interval, expected_calibration_error
from tests.experiments.figures import assert_inside, texts


def scores(seeds: int) -> tuple[np.ndarray, list[np.ndarray]]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, size=500)
    return labels, [2 * np.eye(4)[labels] + generator.normal(size=(500, 4)) for _ in range(seeds)]


@pytest.mark.parametrize("seeds", [1, 3])
def test_bins_and_errors_are_those_of_the_rows(seeds: int) -> None:
    labels, logits = scores(seeds)
    found = reliability(labels, answers_of(logits))
    assert found is not None
    expected = [expected_calibration_error(labels, each) for each in logits]
    assert found.errors == pytest.approx(expected)
    said = [
        (probabilities.max(), probabilities.argmax() == label)
        for each in logits
        for probabilities, label in zip(softmax(each, axis=1), labels, strict=True)
    ]
    by_bin = []
    for low in range(15):
        within = [right for sure, right in said if low / 15 < sure <= (low + 1) / 15]
        if within:
            by_bin.append((len(within), np.mean(within)))
    assert [each.count for each in found.bins] == [count for count, _ in by_bin]
    assert [each.accuracy for each in found.bins] == pytest.approx([share for _, share in by_bin])
    for each in found.bins:
        right = round(each.count * each.accuracy)
        assert each.interval == pytest.approx(accuracy_interval(right, each.count))


def test_margins_are_no_probabilities() -> None:
    labels, logits = scores(1)
    said = answers_of(logits, probabilistic=False)
    assert said.confidence is None and reliability(labels, said) is None
    np.testing.assert_array_equal(said.predicted[0], logits[0].argmax(1))


def test_the_error_is_written_with_its_range_over_seeds() -> None:
    assert format_error([0.031]) == "3.1 %"
    assert format_error([0.028, 0.034]) == "3.1 % (2.8–3.4)"


def test_the_plot_names_every_method_and_keeps_inside() -> None:
    labels, logits = scores(2)
    certain = Answers(labels[None], np.ones((1, len(labels))))
    curves = {"lora": reliability(labels, answers_of(logits)), "sure": reliability(labels, certain)}
    known = {name: found for name, found in curves.items() if found is not None}
    figure = calibration_plot(known | {f"lora {index}": known["lora"] for index in range(3)})
    assert_inside(figure)
    assert any(text.startswith("sure error 0.0 %") for text in texts(figure))
