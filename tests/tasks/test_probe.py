"""The folded probe against scikit-learn's own decision function."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from deltafit.errors import DeltafitError
from deltafit.tasks.probe import logistic_probe


def clusters(classes: int, rows: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters with features of very different means and scales, float32."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centres = np.random.default_rng(99).normal(size=(classes, 12))
    features = centres[labels] + rng.normal(scale=1.2, size=(rows, 12))
    scales, means = np.geomspace(0.05, 20, 12), np.linspace(-3, 3, 12)
    return (features * scales + means).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_folded_logits_are_scikit_learns(classes: int, c: float) -> None:
    features, labels = clusters(classes)
    held_out, held_out_labels = clusters(classes, rows=100, seed=1)
    probe = logistic_probe(
        features, labels, classes=classes, validation=(held_out, held_out_labels), c_grid=[c]
    )
    scaler = StandardScaler().fit(features.astype(np.float64))
    reference = LogisticRegression(C=c, max_iter=1000)
    reference.fit(scaler.transform(features.astype(np.float64)), labels)
    scaled = scaler.transform(held_out.astype(np.float64))
    expected = reference.decision_function(scaled)
    logits = probe.logits(held_out)
    ours = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(logits.sum(axis=1), 0, atol=1e-5)
    assert probe.validation_accuracy == reference.score(scaled, held_out_labels)
    in_float32 = held_out @ probe.weight.astype(np.float32).T + probe.bias.astype(np.float32)
    np.testing.assert_allclose(in_float32, logits, atol=1e-4)


def test_validation_data_chooses_c() -> None:
    features, labels = clusters(3)
    held_out = clusters(3, rows=300, seed=1)
    grid = [1e-6, 0.01, 0.1, 10.0]
    single = [
        logistic_probe(features, labels, classes=3, validation=held_out, c_grid=[c]) for c in grid
    ]
    chosen = logistic_probe(features, labels, classes=3, validation=held_out, c_grid=grid)
    best = max(single, key=lambda probe: probe.validation_accuracy)
    assert (chosen.C, chosen.validation_accuracy) == (best.C, best.validation_accuracy)
    # Warm starts change the path of the fit, not where it ends.
    np.testing.assert_allclose(chosen.logits(held_out[0]), best.logits(held_out[0]), atol=0.02)


def test_folds_choose_c_and_the_result_is_fitted_on_every_row() -> None:
    features, labels = clusters(4)
    chosen = logistic_probe(features, labels, classes=4, seed=5, c_grid=[1e-6, 0.1])
    assert chosen.C == 0.1
    every_row = logistic_probe(
        features, labels, classes=4, validation=(features, labels), c_grid=[0.1]
    )
    np.testing.assert_allclose(chosen.weight, every_row.weight)
    assert 0.5 < chosen.validation_accuracy < every_row.validation_accuracy


@pytest.mark.parametrize("present", [[0, 2, 4], [1, 4], [3]])
def test_classes_without_training_rows_are_never_predicted(present: list[int]) -> None:
    features, labels = clusters(5)
    kept = np.isin(labels, present)
    probe = logistic_probe(features[kept], labels[kept], classes=5)
    logits = probe.logits(features)
    assert probe.weight.shape == (5, 12)
    assert set(logits.argmax(axis=1)) == set(present)
    absent = [index for index in range(5) if index not in present]
    assert not probe.weight[absent].any()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert (probabilities[:, absent] > 0).all()
    assert (probabilities[:, absent] < 1 / kept.sum()).all()


def test_rare_classes_and_constant_features_neither_warn_nor_break() -> None:
    features, labels = clusters(3, rows=30)
    labels[0] = 3
    features[:, 2] = 7.25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = logistic_probe(features, labels, classes=4)
    assert not probe.weight[:, 2].any()
    assert np.isfinite(probe.weight).all()
    assert (probe.logits(features).argmax(axis=1) == labels).mean() > 0.7


def test_same_inputs_give_the_same_probe() -> None:
    features, labels = clusters(3)
    first, second = (logistic_probe(features, labels, classes=3, seed=2) for _ in range(2))
    np.testing.assert_array_equal(first.weight, second.weight)
    assert first.validation_accuracy == second.validation_accuracy


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = clusters(2)
    features[3, 3] = np.nan
    with pytest.raises(DeltafitError, match="not finite"):
        logistic_probe(features, labels, classes=2)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DeltafitError, match="at least 3 training rows, got 2"):
        logistic_probe(np.eye(2), np.array([0, 1]), classes=2)
