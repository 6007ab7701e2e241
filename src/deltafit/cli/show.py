"""How results look in a terminal."""

import math
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltafit.adapters.inspection import Inspection
from deltafit.experiments.comparison import Comparison
from deltafit.experiments.tables import (
    comparison_table,
    format_bytes,
    format_count,
    format_seconds,
)
from deltafit.files import read_json
from deltafit.prediction.folder import SavedClassifier
from deltafit.prediction.inspecting import AdapterInspection
from deltafit.prediction.merging import MergeReport
from deltafit.training.folders import RUN_FILE
from deltafit.training.run import RunResult

_CLASSES_SHOWN = 20


def say(console: Console, text: str = "") -> None:
    """Print text as it is, folded at the terminal's width; a pipe or file has none."""
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _table(title: str, *columns: str, left: Container[str] = ()) -> Table:
    """Return a table whose cells fold and are never cut; ``left`` names its columns of text."""
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))  # Text: a label such as "[spam]" is no markup


def show_run(console: Console, result: RunResult) -> None:
    """Print what a run gave and cost."""
    metrics, costs = result.metrics, result.metrics["costs"]
    for note in read_json(result.folder / RUN_FILE)["data"]["notes"]:
        say(console, note)
    table = _table(
        "Before and after training",
        *("part", "rows", "accuracy before", "accuracy after", "95 %", "macro F1"),
        left=("part",),
    )
    for name, figures in metrics["after"].items():
        before = metrics["before"].get(name)
        low, high = figures["accuracy_interval"]
        _add(
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
    speed = costs["examples_per_second"]
    say(
        console,
        f"Trained {format_count(costs['trainable_parameters'])} of "
        f"{format_count(costs['total_parameters'])} parameters "
        f"({_percent(costs['share_trainable'])}) in {format_seconds(costs['training_seconds'])}, "
        f"{speed:.0f} examples/s; peak memory {format_bytes(costs['peak_memory_bytes'])}.",
    )
    say(console, f"Adapter: {result.folder / 'adapter'} ({format_bytes(costs['saved_bytes'])}).")


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print the table, what the data said of itself, and the verdict."""
    for note in comparison.facts["data"]["notes"]:
        say(console, note)
    console.print(comparison_table(comparison.rows, console.width))
    say(console, comparison.verdict)
    say(console, f"Report: {comparison.folder / 'report.md'}")


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
    classes = sorted(metrics["per_class"].items(), key=lambda item: item[1]["f1"])
    table = _table(
        "By class, the worst first",
        *("class", "precision", "recall", "F1", "rows"),
        left=("class",),
    )
    for name, figures in classes[:_CLASSES_SHOWN]:
        shares = (f"{figures[key]:.3f}" for key in ("precision", "recall", "f1"))
        _add(table, name, *shares, str(figures["support"]))
    console.print(table)
    if len(classes) > _CLASSES_SHOWN:
        say(console, f"{len(classes) - _CLASSES_SHOWN} better classes are in --json.")


def show_inspection(console: Console, found: Inspection | AdapterInspection) -> None:
    """Print a model's structure and costs, or a saved adapter's changes."""
    if isinstance(found, AdapterInspection):
        _show_adapter(console, found)
        return
    tree = _table(
        f"{found.model_class} ({format_count(found.parameters)} parameters)",
        *("module", "type", "shape", "parameters", "adapted"),
        left=("module", "type", "shape", "adapted"),
    )
    for line in found.tree:
        if not line.name:
            continue  # the model itself, which the title tells
        shape = "×".join(map(str, line.shape)) if line.shape else ""
        _add(
            tree,
            "  " * (line.depth - 1) + line.name,
            line.kind,
            shape,
            format_count(line.parameters),
            "yes" if line.target else "",
        )
    console.print(tree)
    say(console, "Can be adapted: " + "; ".join(map(str, found.candidates)))
    for matrix in found.matrices:
        say(
            console,
            f"{matrix.name} ×{matrix.count}: r(d+k) = {matrix.adapter_values:,} against d·k = "
            f"{matrix.weight_values:,} ({matrix.times_fewer:.0f}× fewer)",
        )
    costs = _table(
        f"Training, {found.batch_size} examples of {found.sequence_length} tokens, float32",
        *("", f"LoRA, rank {found.rank}", "full"),
        left=("",),
    )
    for label, cell in _COST_LINES:
        _add(costs, label, cell(found.adapter), cell(found.full))
    console.print(costs)


_COST_LINES = (
    ("trained values", lambda cost: format_count(cost.trainable)),
    ("share of all", lambda cost: _percent(cost.share)),
    ("weights", lambda cost: format_bytes(cost.memory.weights)),
    ("gradients", lambda cost: format_bytes(cost.memory.gradients)),
    ("optimiser", lambda cost: format_bytes(cost.memory.optimiser)),
    ("activations, about", lambda cost: format_bytes(cost.memory.activations)),
    ("memory, about", lambda cost: format_bytes(cost.memory.total)),
    ("state, 3× convention", lambda cost: format_count(cost.state_values_3x)),
    ("state, exact 4×", lambda cost: format_count(cost.state_values_4x)),
    ("saved", lambda cost: format_bytes(cost.saved_bytes)),
)


def _show_adapter(console: Console, found: AdapterInspection) -> None:
    facts = found.facts
    say(
        console,
        f"{found.folder}: {facts['method']['method']} on {facts['base']['name']}, labels "
        f"{', '.join(facts['label_names'][:_CLASSES_SHOWN])}",
    )
    if found.changes:
        table = _table(
            "What the adapter changed",
            *("matrix", "shape", "‖ΔW‖", "‖W‖", "share"),
            left=("matrix",),
        )
        for change in found.changes:
            _add(
                table,
                change.name,
                "×".join(map(str, change.shape)),
                f"{change.delta_norm:.4f}",
                f"{change.weight_norm:.2f}",
                _percent(change.share),
            )
        console.print(table)
    count = sum(math.prod(shape) for shape in found.replaced.values())
    say(console, f"Stored whole: {len(found.replaced)} tensors, {format_count(count)} values.")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def inspection_as_json(found: Inspection | AdapterInspection) -> dict[str, Any]:
    """Return an inspection as JSON values."""
    if isinstance(found, Inspection):
        return found.to_dict()
    changes = [(asdict(change), change.share) for change in found.changes]
    return {
        "folder": str(found.folder),
        "facts": found.facts,
        # JSON has no infinity, which is the share of a weight that is all zeros.
        "changes": [{**c, "share": s if math.isfinite(s) else None} for c, s in changes],
        "replaced": found.replaced,
    }


def show_merge(console: Console, report: MergeReport) -> None:
    """Print where the checkpoint is and what merging changed."""
    say(
        console,
        f"Wrote {report.folder}. On the canary sentences the largest change of a logit is "
        f"{report.largest_change:.1e}, and {report.flipped} predictions flip.",
    )
    if report.head_apart:
        say(
            console,
            "transformers has no class for this head, so the checkpoint is the encoder alone; "
            "head.json says how to read logits off it with head.safetensors.",
        )


def show_verified(console: Console, folder: Path, saved: SavedClassifier) -> None:
    """Print that an adapter has proven itself."""
    for note in saved.notes:
        say(console, note)
    say(
        console,
        f"{folder} is as it was saved: base {saved.classifier.source.name} has the same "
        f"fingerprint, and the canary logits agree to {saved.canary_difference:.1e}.",
    )
