"""How results look in a terminal."""

import os
import shlex
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltafit.experiments.tables import format_bytes, format_count, format_seconds
from deltafit.experiments.terminal_table import comparison_table
from deltafit.files import read_json
from deltafit.training.progress import format_rate

if TYPE_CHECKING:
    # Rooms that load torch and transformers: a command loads those that it uses.
    from deltafit.experiments.judgement import Comparison
    from deltafit.prediction.folder import SavedClassifier
    from deltafit.training.run import RunResult

CLASSES_SHOWN = 20


def say(console: Console, text: str = "") -> None:
    """Print text as it is, folded at the terminal's width; a pipe or file has none."""
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def table_of(title: str, *columns: str, left: Container[str] = ()) -> Table:
    """Return a table whose cells fold and are never cut; ``left`` names its columns of text."""
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row, its cells shown as they are."""
    table.add_row(*map(Text, cells))  # Text: a label such as "[spam]" is no markup


def percent(share: float) -> str:
    """Return 0.0123 as "1.23 %"."""
    return f"{100 * share:.2f} %"


def what_was_cut(texts: int, truncated: int, max_length: int) -> str:
    """Return the sentence about texts that were longer than the model was trained to read."""
    cut = "1 text" if truncated == 1 else f"{truncated:,} texts"
    were = "was" if truncated == 1 else "were"
    return f"{cut} ({100 * truncated / texts:.1f} %) {were} cut to {max_length} tokens."


def show_run(console: Console, result: "RunResult") -> None:
    """Print what a run gave and cost."""
    from deltafit.training.folders import RUN_FILE

    metrics, costs = result.metrics, result.metrics["costs"]
    for note in read_json(result.folder / RUN_FILE)["data"]["notes"]:
        say(console, note)
    table = table_of(
        "Before and after training",
        *("part", "rows", "accuracy before", "accuracy after", "95 %", "macro F1"),
        left=("part",),
    )
    for name, figures in metrics["after"].items():
        before = metrics["before"].get(name)
        low, high = figures["accuracy_interval"]
        add_row(
            table,
            name,
            str(figures["count"]),
            "–" if before is None else f"{before['accuracy']:.4f}",
            f"{figures['accuracy']:.4f}",
            f"{low:.3f}–{high:.3f}",
            f"{figures['macro_f1']:.4f}",
        )
    console.print(table)
    for name, figures in metrics["after"].items():
        without = figures.get("without_duplicates")
        if without:
            say(
                console,
                f"Without the {without['removed']} {name} rows that also stand in training: "
                f"{without['accuracy']:.4f}.",
            )
    if metrics["judged_on"] is None:
        say(console, "No rows were held out, so how good this is on new texts is not known.")
    attention = metrics["attention_precision"]
    apart = f" (attention in {attention})" if attention not in (None, metrics["precision"]) else ""
    say(
        console,
        f"Trained {format_count(costs['trainable_parameters'])} of "
        f"{format_count(costs['total_parameters'])} parameters "
        f"({percent(costs['share_trainable'])}) in {format_seconds(costs['training_seconds'])}, "
        f"{format_rate(costs['examples_per_second'])}, in {metrics['precision']}{apart}; "
        f"peak memory {format_bytes(costs['peak_memory_bytes'])}.",
    )
    say(console, f"Adapter: {result.folder / 'adapter'} ({format_bytes(costs['saved_bytes'])}).")


def show_comparison(console: Console, comparison: "Comparison") -> None:
    """Print the table, what the data said of itself, the verdict, and what it advises in full."""
    from deltafit.experiments.heading import what_it_is
    from deltafit.experiments.verdict import advised

    for note in comparison.facts["data"]["notes"]:
        say(console, note)
    console.print(comparison_table(comparison.rows, console.width))
    say(console, comparison.verdict)
    chosen = advised(comparison.rows)
    what = what_it_is(chosen, comparison.facts)
    if chosen is not None and what is not None:
        say(console, f"{chosen['name']} is {what}.")
    if chosen is not None and chosen.get("folder"):
        folder = Path(os.path.normpath(comparison.folder / chosen["folder"]))
        say(console, f"Use it: deltafit predict {shlex.quote(str(folder))} --data TEXTS")
    say(console, f"Report: {comparison.folder / 'report.html'}")


def show_metrics(console: Console, metrics: dict[str, Any]) -> None:
    """Print an evaluation: the figures, then every class, the worst first."""
    low, high = metrics["accuracy_interval"]
    say(
        console,
        f"{metrics['source']}: {metrics['count']} rows\n"
        f"accuracy {metrics['accuracy']:.4f} (95 %: {low:.3f}–{high:.3f}), "
        f"macro F1 {metrics['macro_f1']:.4f}, weighted F1 {metrics['weighted_f1']:.4f}, "
        f"log loss {metrics['log_loss']:.4f}, "
        f"calibration error {metrics['calibration_error']:.4f}",
    )
    for note in metrics["notes"]:
        say(console, note)
    if metrics["truncated"]:
        cut = what_was_cut(metrics["count"], metrics["truncated"], metrics["max_length"])
        say(console, cut)
    classes = sorted(metrics["per_class"].items(), key=lambda item: item[1]["f1"])
    table = table_of(
        "By class, the worst first",
        *("class", "precision", "recall", "F1", "rows"),
        left=("class",),
    )
    for name, figures in classes[:CLASSES_SHOWN]:
        shares = (f"{figures[key]:.3f}" for key in ("precision", "recall", "f1"))
        add_row(table, name, *shares, str(figures["support"]))
    console.print(table)
    if len(classes) > CLASSES_SHOWN:
        say(console, f"{len(classes) - CLASSES_SHOWN} better classes are in --json.")


def show_verified(console: Console, folder: Path, saved: "SavedClassifier") -> None:
    """Print that an adapter has proven itself."""
    for note in saved.notes:
        say(console, note)
    say(
        console,
        f"{folder} is as it was saved: base {saved.classifier.source.name} has the same "
        f"fingerprint, and the canary logits agree to {saved.canary_difference:.1e}.",
    )
