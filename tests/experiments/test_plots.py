"""The plots hold the figures they were given, and no text leaves the picture or overlaps."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text

from deltafit.experiments.plots import (
    accuracy_plot,
    class_f1_plot,
    confusion_plot,
    loss_plot,
    save_png,
    share_plot,
)
from deltafit.tasks.metrics import classification_metrics
from tests.experiments.rows import difference, example, run


def measured(classes: int, name: str = "class {}") -> dict[str, Any]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, size=20 * classes)
    logits = generator.normal(size=(len(labels), classes)) + 3 * np.eye(classes)[labels]
    return classification_metrics(labels, logits, [name.format(index) for index in range(classes)])


def texts(figure: Figure) -> set[str]:
    return {text.get_text().replace("\n", " ") for text in figure.findobj(match=_is_text)}


def _is_text(artist: Artist) -> bool:
    return isinstance(artist, Text) and bool(artist.get_text())


def assert_inside(figure: Figure) -> None:
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= -0.02
    assert box.y0 >= -0.02
    assert box.x1 <= width + 0.02
    assert box.y1 <= height + 0.02


FIGURES = {
    "accuracy": lambda: accuracy_plot(example()),
    "share": lambda: share_plot(example()),
    "loss": lambda: loss_plot(
        {f"run {i}": [{"step": s, "train_loss": 1 / s} for s in range(1, 900)] for i in range(5)}
    ),
    "confusion of 6": lambda: confusion_plot(measured(6), "lora"),
    "confusion of 77": lambda: confusion_plot(measured(77, "a_rather_long_intent_name_{}"), "lora"),
    "class F1": lambda: class_f1_plot(measured(77, "a_rather_long_intent_name_{}"), "lora"),
}


@pytest.mark.parametrize("name", list(FIGURES))
def test_nothing_leaves_the_picture(name: str, tmp_path: Path) -> None:
    figure = FIGURES[name]()
    assert_inside(figure)
    save_png(figure, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_accuracy_plot_shows_every_method_and_points_at_the_far_one() -> None:
    figure = accuracy_plot(example())
    shown = texts(figure)
    assert {"◂ 1.3", "89.4", "93.4", "93.8"} <= shown
    assert {row["name"] for row in example()} <= shown
    assert "accuracy %, with 95 % interval" in shown
    low, _ = figure.axes[0].get_xlim()
    assert low > 80


def test_share_plot_labels_do_not_overlap() -> None:
    rows = [run(f"lora rank={r}", 0.93 + r / 1e5, difference(-0.1, 1)) for r in range(14)]
    figure = share_plot([*rows, run("full", 0.94, None, trainable=22_742_861)])
    figure.draw_without_rendering()
    labels = [text for text in figure.axes[0].texts if "rank" in text.get_text()]
    boxes = sorted((Text.get_window_extent(text) for text in labels), key=lambda box: box.y0)
    assert len(boxes) == 14
    assert all(upper.y0 >= lower.y1 - 2 for lower, upper in itertools.pairwise(boxes))


def test_loss_plot_draws_the_values_of_each_run() -> None:
    history = [
        {"step": 1, "train_loss": 3.0},
        {"step": 2, "train_loss": 2.0, "validation_loss": 2.5},
        {"step": 3, "train_loss": None},
    ]
    figure = loss_plot({"a": history, "b": []})
    training, validation = figure.axes[0].get_lines()
    assert training.get_xydata().tolist() == [[1, 3], [2, 2]]
    assert validation.get_xydata().tolist() == [[2, 2.5]]
    assert {"a", "b", "training step", "training", "validation"} <= texts(figure)


def test_long_curves_are_averaged_not_sampled() -> None:
    history = [{"step": step, "train_loss": float(step % 2)} for step in range(4000)]
    training = loss_plot({"a": history}).axes[0].get_lines()[0]
    assert len(training.get_ydata()) == 200
    np.testing.assert_allclose(training.get_ydata(), 0.5)


def test_large_confusion_names_only_the_classes_of_lowest_recall() -> None:
    metrics = measured(30)
    recalls = {name: figures["recall"] for name, figures in metrics["per_class"].items()}
    axes = confusion_plot(metrics, "lora").axes[0]
    named = [label.get_text() for label in axes.get_yticklabels()]
    assert len(named) == 15
    unnamed = set(recalls) - set(named)
    assert max(recalls[name] for name in named) <= min(recalls[name] for name in unnamed)
    expected = np.array(metrics["confusion_matrix"], dtype=float)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(axes.images[0].get_array(), expected)


def test_small_confusion_writes_its_counts() -> None:
    metrics = measured(3)
    written = [text.get_text() for text in confusion_plot(metrics, "lora").axes[0].texts]
    assert written == [str(count) for line in metrics["confusion_matrix"] for count in line]


def test_class_bars_are_the_worst_first() -> None:
    metrics = measured(30)
    axes = class_f1_plot(metrics, "lora").axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    scores = sorted(100 * figures["f1"] for figures in metrics["per_class"].values())
    np.testing.assert_allclose(widths, scores[:20])


def test_a_very_long_method_name_leaves_the_axes_their_room() -> None:
    rows = example()
    rows[-1]["name"] = f"lora:target_modules={'+'.join(f'layer.{i}.query' for i in range(40))}"
    for figure in (accuracy_plot(rows), share_plot(rows)):
        figure.draw_without_rendering()
        assert figure.axes[0].get_position().width > 0.35
        assert figure.axes[0].get_position().height > 0.5
