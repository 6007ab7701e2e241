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
    without_products,
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

SPEED = (
    *("work", "pairs", "deltafit s", "rival s", "against the rival", "bar", "stretch"),
    *("against grouped", "against bf16, grouped", "against loralib"),
    *("in float32", "in float32 against grouped", "predicting in bf16"),
    *("without base dropout", "in turn"),
)
BESIDE = (
    *("work", "precision", "last loss", "accuracy", "held out"),
    *("roofline", "were products free", "ahead s", "peak MB", "memory above imports"),
)
NOTES = (
    "Ratios are times for a real token (in prediction, for a text): the rival's divided by "
    "deltafit's in the same pair; the median, and of more than one pair the smallest and the "
    "largest. The rival is transformers' Trainer with its defaults in float32 (but for "
    "`logging_steps=1`), with PEFT where the method is LoRA; in prediction transformers' "
    "pipeline on the merged model; with many adapters PEFT's adapter_names, both sides giving "
    "each row the logits it has alone under its adapter. Grouped: the same Trainer with "
    "batches of like length. loralib: in a plain loop. In float32: deltafit with --precision "
    "float32, where bf16 units make it train in bf16. Predicting in bf16: with --precision "
    "bf16, the rival still in float32. Without base dropout: deltafit with --base-dropout "
    "off, against the rival with it. In turn: deltafit's own runs of the sweep, one after "
    "another; a sweep's loss and accuracy are those of its runs in the mean. The bars are for "
    "a machine with bf16 units.",
    f"Precision, loss (the mean of the last {LAST} steps) and accuracy on held-out rows: "
    "deltafit / rival. The steps are too few to learn much: losses that agree show that the "
    "same work was done, and `benchmarks/learning.py` compares what is learned. Roofline is "
    "the time of the base's matrix products alone, at the precision of the run and without "
    "padding, as a share of deltafit's time; taken right after the run, and as noisy. Were "
    "products free: the ratio against the rival if they took no time at all. Ahead: what "
    "deltafit does before its first step, once a run: looking for frozen layers, running "
    "a batch packed and padded. It is part of the time only where it computes states that "
    "spare the steps their frozen layers. Peak: of the whole process, deltafit / rival. "
    "Memory above imports: deltafit's peak without what the imports take, as a share of the "
    f"rival's (the bar in the first two rows: {MEMORY_BAR}).",
)
WITHOUT_BF16 = (
    f"{REDUCED!r} was left out where the machine has no bf16 units: there bf16 is emulated, and "
    "slower than float32."
)


def speeds(works: Mapping[str, Work], pairs: Mapping[str, list[Pair]]) -> list[list[str]]:
    """Return the cells of every work that has pairs, as ``SPEED`` names them."""
    return [_speed(name, work, pairs[name]) for name, work in works.items() if name in pairs]


def others(works: Mapping[str, Work], pairs: Mapping[str, list[Pair]]) -> list[list[str]]:
    """Return the cells of every work that has pairs, as ``BESIDE`` names them."""
    return [_beside(name, work, pairs[name]) for name, work in works.items() if name in pairs]


def _speed(name: str, work: Work, pairs: list[Pair]) -> list[str]:
    rival = work.sides(bf16=False)[1]
    # What is float32 by itself is not another run with it asked for.
    pinned = [p for p in pairs if FLOAT32 in p and p[OURS]["precision"] != p[FLOAT32]["precision"]]
    return [
        name,
        str(len(pairs)),
        *(f"{typical(pairs, side, _seconds):.1f}" for side in (OURS, rival)),
        spread(ratios(pairs, rival)),
        *(f"{goal:g}×" for goal in (work.bar, work.stretch)),
        *(spread(ratios(pairs, side)) for side in (GROUPED, REDUCED, LORALIB)),
        *(spread(ratios(pinned, side, FLOAT32)) for side in (rival, GROUPED)),
        *(spread(ratios(pairs, rival, ours)) for ours in (BF16, WITHOUT_DROPOUT)),
        spread(ratios(pairs, IN_TURN)),
    ]


def _beside(name: str, work: Work, pairs: list[Pair]) -> list[str]:
    rival = work.sides(bf16=False)[1]
    both, first = (OURS, rival), pairs[0][OURS]

    def figures(figure: str, digits: int, scale: float = 1.0) -> str:
        found = (typical(pairs, side, lambda run: run[figure] / scale) for side in both)
        return " / ".join(f"{value:.{digits}f}" for value in found)

    shares = roofline_shares(pairs)
    ends = f" ({min(shares):.0%} to {max(shares):.0%})" if len(shares) > 1 else ""
    return [
        name,
        " / ".join("; ".join(dict.fromkeys(p[side]["precision"] for p in pairs)) for side in both),
        " / ".join(f"{typical(pairs, side, last_loss):.3f}" for side in both)
        if first["losses"]
        else "–",
        figures("accuracy", 3) if first["accuracy"] is not None else "–",
        str(first.get("held_out", "–")),
        f"{median(shares):.0%}{ends}",
        spread(without_products(pairs, rival)),
        f"{typical(pairs, OURS, _ahead):.1f}" if "ahead" in first else "–",
        figures("peak_memory", 0, 1e6),
        f"{median(memory_shares(pairs, rival)):.2f}",
    ]


def spread(values: Sequence[float], *, digits: int = 1) -> str:
    """Return "2.1× (2.0 to 2.3)": median, smallest and largest; "2.1×" of one, a dash of none."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}×" if values else "–"
    middle, least, most = (f"{of(values):.{digits}f}" for of in (median, min, max))
    return f"{middle}× ({least} to {most})"


def notes_on(pairs: Mapping[str, list[Pair]]) -> list[str]:
    """Return what is to be known of the table: its words, the machine, what was left out."""
    machines = {_machine(pair["machine"]) for group in pairs.values() for pair in group}
    units = {pair["machine"]["bf16_units"] for group in pairs.values() for pair in group}
    left_out = [WITHOUT_BF16] if False in units else []
    codes = sorted({pair["code"] for group in pairs.values() for pair in group})
    code = f"Code of deltafit, a digest of its sources: {', '.join(codes)}."
    return [*NOTES, *left_out, *(f"Machine: {words}." for words in sorted(machines)), code]


def _machine(facts: Mapping[str, Any]) -> str:
    units = "with" if facts["bf16_units"] else "without"
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"{facts['processor']}, {units} bf16 units, {facts['threads']} threads; {versions}"


def curves(pairs: Mapping[str, list[Pair]]) -> list[str]:
    """Return a line a work: the mean losses of the five fifths of every side's first run."""
    lines = []
    for name, group in pairs.items():
        runs = {k: v for k, v in group[0].items() if isinstance(v, dict) and "losses" in v}
        if runs[OURS]["losses"]:
            each = (
                f"{side} {' '.join(f'{loss:.3f}' for loss in fifths(run['losses']))}"
                for side, run in runs.items()
            )
            lines.append(f"{name}: loss in fifths of the run: {'; '.join(each)}")
    return lines


def markdown(works: Mapping[str, Work], pairs: Mapping[str, list[Pair]]) -> str:
    """Return the two tables, their notes and the curves as Markdown."""
    of_speed = markdown_table(SPEED, speeds(works, pairs), words=1)
    beside = markdown_table(BESIDE, others(works, pairs), words=2)
    notes, lines = notes_on(pairs), (f"- {line}" for line in curves(pairs))
    return "\n".join([*of_speed, "", *beside, "", *notes, "", *lines])


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
