"""How results look in a terminal."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deltafit.adapters.inspection import Inspection
from deltafit.experiments.comparison import Comparison
from deltafit.experiments.tables import (
    comparison_table,
    format_bytes,
    format_count,
    format_seconds,
)
from deltafit.prediction.folder import SavedClassifier
from deltafit.prediction.inspecting import AdapterInspection
from deltafit.prediction.merging import MergeReport
from deltafit.training.run import RunResult

_CLASSES_SHOWN = 20


def say(console: Console, text: str = "") -> None:
    """Print text as it is, folded at the terminal's width."""
    console.print(text, markup=False, highlight=False)


def show_run(console: Console, result: RunResult) -> None:
    """Print what a run gave and cost."""
    metrics, costs = result.metrics, result.metrics["costs"]
    table = Table(title="Before and after training")
    for title in ("part", "rows", "accuracy before", "accuracy after", "95 %", "macro F1"):
        table.add_column(title, justify="left" if title == "part" else "right", overflow="fold")
    for name, figures in metrics["after"].items():
        before = metrics["before"].get(name)
        low, high = figures["accuracy_interval"]
        table.add_row(
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
        f"({costs['share_trainable']:.2%}) in {format_seconds(costs['training_seconds'])}, "
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
    table = Table(title="By class, the worst first")
    for title in ("class", "precision", "recall", "F1", "rows"):
        table.add_column(title, justify="left" if title == "class" else "right", overflow="fold")
    for name, figures in classes[:_CLASSES_SHOWN]:
        shares = (f"{figures[key]:.3f}" for key in ("precision", "recall", "f1"))
        table.add_row(name, *shares, str(figures["support"]))
    console.print(table)
    if len(classes) > _CLASSES_SHOWN:
        say(console, f"{len(classes) - _CLASSES_SHOWN} better classes are in --json.")


def show_inspection(console: Console, found: Inspection | AdapterInspection) -> None:
    """Print a model's structure and costs, or a saved adapter's changes."""
    if isinstance(found, AdapterInspection):
        _show_adapter(console, found)
        return
    tree = Table(title=f"{found.model_class} ({format_count(found.parameters)} parameters)")
    for title in ("module", "type", "shape", "parameters", "adapted"):
        tree.add_column(
            title, justify="right" if title == "parameters" else "left", overflow="fold"
        )
    for line in found.tree:
        shape = "×".join(map(str, line.shape)) if line.shape else ""
        tree.add_row(
            "  " * line.depth + line.name,
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
    costs = Table(
        title=f"Training, {found.batch_size} examples of {found.sequence_length} tokens, float32"
    )
    costs.add_column("")
    for title in (f"LoRA, rank {found.rank}", "full"):
        costs.add_column(title, justify="right")
    for label, cell in _COST_LINES:
        costs.add_row(label, cell(found.adapter), cell(found.full))
    console.print(costs)


_COST_LINES = (
    ("trained values", lambda cost: format_count(cost.trainable)),
    ("share of all", lambda cost: f"{cost.share:.2%}"),
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
        table = Table(title="What the adapter changed")
        for title in ("matrix", "shape", "‖ΔW‖", "‖W‖", "share"):
            table.add_column(
                title, justify="left" if title == "matrix" else "right", overflow="fold"
            )
        for change in found.changes:
            table.add_row(
                change.name,
                "×".join(map(str, change.shape)),
                f"{change.delta_norm:.4f}",
                f"{change.weight_norm:.2f}",
                f"{change.share:.2%}",
            )
        console.print(table)
    count = sum(_size(shape) for shape in found.replaced.values())
    say(console, f"Stored whole: {len(found.replaced)} tensors, {format_count(count)} values.")


def _size(shape: tuple[int, ...]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result


def inspection_as_json(found: Inspection | AdapterInspection) -> dict[str, Any]:
    """Return an inspection as JSON values."""
    if isinstance(found, Inspection):
        return found.to_dict()
    return {
        "folder": str(found.folder),
        "facts": found.facts,
        "changes": [{**asdict(change), "share": change.share} for change in found.changes],
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
