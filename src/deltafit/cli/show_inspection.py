"""How a model's structure and costs, and a saved adapter's changes, look in a terminal."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console

from deltafit.adapters.inspection import Inspection, MatrixCost
from deltafit.cli.show import CLASSES_SHOWN, add_row, percent, say, table_of
from deltafit.experiments.tables import format_bytes, format_count
from deltafit.methods.values import write
from deltafit.prediction.inspecting import AdapterInspection


def show_inspection(console: Console, found: Inspection | AdapterInspection) -> None:
    """Print a model's structure and costs, or a saved adapter's changes."""
    if isinstance(found, AdapterInspection):
        _show_adapter(console, found)
        return
    tree = table_of(
        f"{found.model_class} ({format_count(found.parameters)} parameters)",
        *("module", "type", "shape", "parameters", "adapted"),
        left=("module", "type", "shape", "adapted"),
    )
    for line in found.tree:
        if not line.name:
            continue  # the model itself, which the title tells
        shape = "×".join(map(str, line.shape)) if line.shape else ""
        add_row(
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
        for sentence in _about_matrix(matrix, found.rank):
            say(console, sentence)
    costs = table_of(
        f"Training, {found.batch_size} examples of {found.sequence_length} tokens, float32",
        *("", f"LoRA, rank {found.rank}", "full"),
        left=("",),
    )
    for label, cell in _COST_LINES:
        add_row(costs, label, cell(found.adapter), cell(found.full))
    console.print(costs)


def _about_matrix(matrix: MatrixCost, rank: int) -> Iterator[str]:
    if matrix.times_fewer > 1:
        # 1.04 is shown as 1.0, and 47.6 as 48.
        saved = f"{matrix.times_fewer:.{0 if matrix.times_fewer >= 10 else 1}f}× fewer"
    else:
        saved = "more than the matrix itself" if matrix.times_fewer < 1 else "as many"
    yield (
        f"{matrix.name} ×{matrix.count}: r(d+k) = {matrix.adapter_values:,} against d·k = "
        f"{matrix.weight_values:,} ({saved})"
    )
    smaller = min(matrix.inputs, matrix.outputs)
    if rank > smaller:
        yield (
            f"Note: no change of {matrix.name} ({matrix.outputs}×{matrix.inputs}) can have a rank "
            f"above {smaller}, so rank {rank} trains more values there and can say no more."
        )


_COST_LINES = (
    ("trained values", lambda cost: format_count(cost.trainable)),
    ("share of all", lambda cost: percent(cost.share)),
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
    facts, method = found.facts, found.method.to_dict()
    name = method.pop("method")
    labels = ", ".join(facts["label_names"][:CLASSES_SHOWN])
    say(console, f"{found.folder}: {name} on {facts['base']['name']}, labels {labels}")
    settings = [f"{key}={write(value)}" for key, value in method.items() if value not in (None, ())]
    if settings:
        say(console, f"{name}: {', '.join(settings)}")
    for part, figures in facts.get("metrics", {}).items():
        low, high = figures["accuracy_interval"]
        say(
            console,
            f"{part} accuracy when it was trained: {figures['accuracy']:.4f} "
            f"(95 %: {low:.3f}–{high:.3f}; {figures['count']:,} rows)",
        )
    if found.changes:
        table = table_of(
            "What the adapter changed",
            *("matrix", "shape", "‖ΔW‖", "‖W‖", "share"),
            left=("matrix",),
        )
        for change in found.changes:
            add_row(
                table,
                change.name,
                "×".join(map(str, change.shape)),
                f"{change.delta_norm:.4f}",
                f"{change.weight_norm:.2f}",
                percent(change.share),
            )
        console.print(table)
    for words, tensors in (("Inserted", found.inserted), ("Stored whole", found.replaced)):
        count = sum(math.prod(shape) for shape in tensors.values())
        if tensors or tensors is found.replaced:
            plural = "" if len(tensors) == 1 else "s"
            values = format_count(count)
            say(console, f"{words}: {len(tensors)} tensor{plural}, {values} values.")


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
        "inserted": found.inserted,
    }
