"""The table of the speed benchmark, from the pairs that are kept."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from records import (
    LAST,
    Pair,
    fifths,
    last_loss,
    memory_shares,
    ratios,
    roofline_shares,
    typical,
)
from works import (
    BF16,
    FLOAT32,
    GROUPED,
    IN_TURN,
    LORALIB,
    MEMORY_BAR,
    OURS,
    REDUCED,
    WITHOUT_DROPOUT,
    Work,
)

COLUMNS = (
    *("work", "pairs", "deltafit s", "rival s", "against the rival", "bar"),
    *("in float32", "predicting in bf16"),
    *("without base dropout", "against grouped", "against bf16, grouped", "against loralib"),
    *("in turn", "ahead s", "memory", "roofline"),
    *("precision", "last loss", "accuracy"),
)
NOTES = (
    "Ratios are times for a real token (in prediction, for a text): the rival's divided by "
    "deltafit's in the same pair; median (smallest to largest). The rival is transformers' Trainer "
    "with its defaults in float32, with PEFT where the method is LoRA; in prediction transformers' "
    "pipeline on the merged model; with many adapters PEFT's adapter_names, both sides giving each "
    "row the logits it has alone under its adapter. Grouped: the same Trainer with batches of like "
    "length. loralib: in a plain loop. Without base dropout: deltafit with --base-dropout off, "
    "against the rival with it. In float32: with --precision float32, where bf16 units make it "
    "train in bf16. Predicting in bf16: with --precision bf16, the rival still in float32. "
    "In turn: deltafit's own runs of the sweep, one after another; a sweep's loss and accuracy are "
    "those of its runs in the mean. The bars are for a machine with bf16 units. The steps are too "
    "few to learn much: losses that agree show that the same work was done, and "
    "`benchmarks/learning.py` compares what is learned.",
    "Ahead: what deltafit does before its first step, once a run: looking for frozen layers, "
    "running a batch packed and padded. It is part of the time only where it computes states "
    "that spare the steps their frozen layers.",
    "Memory is deltafit's peak above the imports as a share of the rival's (bar: at most "
    f"{MEMORY_BAR}). Roofline is the time of the base's matrix products alone, at the precision of "
    "the run and without padding, as a share of deltafit's time. Precision, loss (the mean of the "
    f"last {LAST} steps) and accuracy (of held-out rows): deltafit / rival.",
)
WITHOUT_BF16 = (
    f"{REDUCED!r} was left out where the machine has no bf16 units: there bf16 is emulated, and "
    "slower than float32."
)


def rows_of(works: Mapping[str, Work], pairs: Mapping[str, list[Pair]]) -> list[list[str]]:
    """Return the cells of every work that has pairs, as ``COLUMNS`` names them."""
    return [_row(name, work, pairs[name]) for name, work in works.items() if name in pairs]


def _row(name: str, work: Work, pairs: list[Pair]) -> list[str]:
    rival = work.sides(bf16=False)[1]
    both = (OURS, rival)
    return [
        name,
        str(len(pairs)),
        *(f"{typical(pairs, side, _seconds):.1f}" for side in both),
        spread(ratios(pairs, rival)),
        f"{work.bar:g}×",
        *(spread(ratios(pairs, rival, ours)) for ours in (FLOAT32, BF16, WITHOUT_DROPOUT)),
        *(spread(ratios(pairs, side)) for side in (GROUPED, REDUCED, LORALIB, IN_TURN)),
        f"{typical(pairs, OURS, _ahead):.1f}" if "ahead" in pairs[0][OURS] else "–",
        f"{median(memory_shares(pairs, rival)):.2f}",
        f"{median(roofline_shares(pairs)):.0%}",
        " / ".join(pairs[0][side]["precision"] for side in both),
        " / ".join(f"{typical(pairs, side, last_loss):.3f}" for side in both)
        if pairs[0][OURS]["losses"]
        else "–",
        " / ".join(f"{typical(pairs, side, _accuracy):.3f}" for side in both)
        if pairs[0][OURS]["accuracy"] is not None
        else "–",
    ]


def spread(values: Sequence[float], *, digits: int = 1) -> str:
    """Return "2.1× (2.0 to 2.3)": median, smallest and largest; a dash without values."""
    if not values:
        return "–"
    middle, least, most = (f"{of(values):.{digits}f}" for of in (median, min, max))
    return f"{middle}× ({least} to {most})"


def notes_on(pairs: Mapping[str, list[Pair]]) -> list[str]:
    """Return what is to be known of the table: its words, the machine, what was left out."""
    machines = {_machine(pair["machine"]) for group in pairs.values() for pair in group}
    units = {pair["machine"]["bf16_units"] for group in pairs.values() for pair in group}
    left_out = [WITHOUT_BF16] if False in units else []
    return [*NOTES, *left_out, *(f"Machine: {words}." for words in sorted(machines))]


def _machine(facts: Mapping[str, Any]) -> str:
    units = "with" if facts["bf16_units"] else "without"
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"{facts['processor']}, {units} bf16 units, {facts['threads']} threads; {versions}"


def curves(pairs: Mapping[str, list[Pair]]) -> list[str]:
    """Return a line a work: the mean losses of the five fifths of every side's first run."""
    lines = []
    for name, group in pairs.items():
        runs = {k: v for k, v in group[0].items() if k not in ("machine", "wall_seconds")}
        if runs[OURS]["losses"]:
            each = (
                f"{side} {' '.join(f'{loss:.3f}' for loss in fifths(run['losses']))}"
                for side, run in runs.items()
            )
            lines.append(f"{name}: loss in fifths of the run: {'; '.join(each)}")
    return lines


def markdown(rows: list[list[str]], notes: Sequence[str], lines: Sequence[str]) -> str:
    """Return the table, its notes and the curves as Markdown."""
    table = markdown_table(COLUMNS, rows, words=1)
    return "\n".join([*table, "", *notes, "", *(f"- {line}" for line in lines)])


def markdown_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int
) -> list[str]:
    """Return a table's lines as Markdown; behind the first ``words`` columns there are figures."""
    align = ["---"] * words + ["---:"] * (len(columns) - words)
    return [f"| {' | '.join(cells)} |" for cells in (columns, align, *rows)]


def _seconds(run: dict[str, Any]) -> float:
    return float(run["seconds"])


def _ahead(run: dict[str, Any]) -> float:
    return float(run["ahead"])


def _accuracy(run: dict[str, Any]) -> float:
    return float(run["accuracy"])
