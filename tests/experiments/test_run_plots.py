"""The plots of runs hold the figures they were given, and no text leaves the picture."""

import math
from typing import Any

import numpy as np
import pytest

from deltafit.experiments.run_plots import class_f1_plot, confusion_plot, loss_plot
from deltafit.tasks.metrics import classification_metrics
from tests.experiments.figures import LONG, assert_apart, assert_inside, texts

LONG_CLASS = "a_rather_long_intent_name_that_somebody_thought_of_{}"


def measured(classes: int, name: str = "class {}") -> dict[str, Any]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, size=20 * classes)
    logits = generator.normal(size=(len(labels), classes)) + 3 * np.eye(classes)[labels]
    return classification_metrics(labels, logits, [name.format(index) for index in range(classes)])


def history(steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "train_loss": 1 / step} for step in range(1, steps + 1)]


FIGURES = {
    **{
        f"loss of {count}": lambda count=count: loss_plot(
            {f"{LONG},{i}": [history(900)] for i in range(count)}
        )
        for count in (1, 2, 4, 5, 12)
    },
    **{
        f"confusion of {count}": lambda count=count, name=name: confusion_plot(
            measured(count, name), LONG
        )
        for count, name in [(2, "{}"), (2, LONG_CLASS), (6, LONG_CLASS), (77, LONG_CLASS)]
    },
    "class F1": lambda: class_f1_plot(measured(77, LONG_CLASS), LONG),
    "class F1 of few": lambda: class_f1_plot(measured(2), LONG),
}


@pytest.mark.parametrize("name", list(FIGURES))
def test_nothing_leaves_the_picture(name: str) -> None:
    figure = FIGURES[name]()
    assert_inside(figure)
    axes = figure.axes[0]
    assert min(axes.get_position().width, axes.get_position().height) > 0.15
    assert_apart([label for label in axes.get_yticklabels() if label.get_text()])


@pytest.mark.parametrize("steps", [1, 3, 4000])
@pytest.mark.parametrize("runs", [1, 2, 4, 5])
def test_steps_are_whole_and_every_panel_names_them(steps: int, runs: int) -> None:
    figure = loss_plot({f"run {index}": [history(steps)] for index in range(runs)})
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == runs
    for axes in panels:
        low, high = axes.get_xlim()
        ticks = [t for t in axes.xaxis.get_major_ticks() if low <= t.get_loc() <= high]
        assert ticks and all(float(tick.get_loc()).is_integer() for tick in ticks)
        assert all(tick.label1.get_visible() and tick.label1.get_text() for tick in ticks)
        assert all(t.label1.get_visible() for t in axes.yaxis.get_major_ticks())


def test_a_single_step_is_a_point_to_be_seen() -> None:
    training, validation = loss_plot({"a": [history(1)]}).axes[0].get_lines()
    assert training.get_marker() == "o" and training.get_xydata().tolist() == [[1, 1]]
    assert not len(validation.get_xydata())


def test_a_run_that_diverges_does_not_squash_the_others() -> None:
    losses = [2.0, 1.5, 40.0, 1e12, math.nan, math.inf]
    diverged = [{"step": step, "train_loss": loss} for step, loss in enumerate(losses)]
    nothing = [{"step": 1, "train_loss": math.nan}]
    figure = loss_plot({"full": [diverged], "lora": [history(5)], "head": [nothing]})
    assert_inside(figure)
    assert figure.axes[1].get_ylim() == (0, 4)  # twice the highest first loss
    said = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert said == [["goes on to 1e+12"], [], ["no loss is finite"]]


def test_loss_plot_draws_the_values_of_each_run() -> None:
    history = [
        {"step": 1, "train_loss": 3.0},
        {"step": 2, "train_loss": 2.0, "validation_loss": 2.5},
        {"step": 3, "train_loss": None},
    ]
    figure = loss_plot({"a": [history], "b": []})
    training, validation = figure.axes[0].get_lines()
    assert training.get_xydata().tolist() == [[1, 3], [2, 2]]
    assert validation.get_xydata().tolist() == [[2, 2.5]]
    assert {"a", "b", "training step", "training", "validation"} <= texts(figure)


def test_every_seed_is_a_thin_line_and_their_mean_a_thick_one() -> None:
    seeds = [
        [{"step": s, "train_loss": a / s, "validation_loss": a + s} for s in range(1, last)]
        for a, last in ((1.0, 5), (2.0, 5), (6.0, 4))
    ]
    figure = loss_plot({"lora": seeds, "head": seeds[:1]})
    assert_inside(figure)
    lines = figure.axes[0].get_lines()
    for key, found in (("train_loss", lines[:4]), ("validation_loss", lines[4:])):
        *thin, thick = found
        for line, history in zip(thin, seeds, strict=True):
            assert line.get_xydata().tolist() == [[r["step"], r[key]] for r in history]
            assert line.get_linewidth() < thick.get_linewidth() / 2
        # The third seed ended a step earlier: a mean of two would jump.
        means = [np.mean([history[at][key] for history in seeds]) for at in range(3)]
        assert thick.get_xdata().tolist() == [1, 2, 3]
        np.testing.assert_allclose(thick.get_ydata(), means)
        assert len({line.get_color() for line in found}) == 1
    assert len(figure.axes[1].get_lines()) == 2
    assert "thin: each seed" in texts(figure)
    assert "thin: each seed" not in texts(loss_plot({"head": seeds[:1]}))


def test_a_seed_that_diverges_is_told_where_the_others_are_drawn() -> None:
    diverged = [{"step": 1, "train_loss": 2.0}, {"step": 2, "train_loss": 1e9}]
    figure = loss_plot({"lora": [history(5), diverged]})
    assert figure.axes[0].get_ylim() == (0, 4)
    assert [text.get_text() for text in figure.axes[0].texts] == ["goes on to 1e+09"]


def test_long_curves_are_averaged_not_sampled() -> None:
    history = [{"step": step, "train_loss": float(step % 2)} for step in range(4000)]
    training = loss_plot({"a": [history]}).axes[0].get_lines()[0]
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
