"""The page's sections on matrices: how far each moved, and the ranks that were learned."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from deltafit.adapters.movement import LARGEST_SIDE, MatrixChange
from deltafit.experiments.answers import Evidence
from deltafit.experiments.page_parts import Part, Section, Table, pictured, runs_in_order
from deltafit.experiments.rank_plot import matrix_and_block, matrix_plot, rank_plot
from deltafit.experiments.tables import NOTHING, Row

Changes = Sequence[MatrixChange]


def changes_section(rows: Sequence[Row], evidence: Evidence) -> Section:
    """Return how far each matrix moved: the advised run first, then the best.

    Args:
        rows: of the comparison, all of them judged.
        evidence: what methods changed.
    """
    names = [str(row["name"]) for row in runs_in_order(rows)]
    known = {
        evidence.runs.get(name, name): evidence.changes[name]
        for name in names
        if evidence.changes.get(name)
    }
    parts = []
    drawn, not_drawn = pictured([*known])
    for index, name in enumerate(drawn):
        moved = known[name]
        shares = {c.name: 100 * c.share for c in moved if c.weight_norm}
        directions = {c.name: c.effective_rank for c in moved if c.effective_rank is not None}
        for values, what, unit, shown in (
            (shares, "‖ΔW‖ as a share of ‖W‖", "‖ΔW‖ / ‖W‖, %", _share),
            (directions, "effective rank of ΔW", "effective rank", _directions),
        ):
            if values:
                figure = partial(matrix_plot, values, name, unit, shown)
                parts.append(Part(f"{name}: {what}.", figure, folded=index > 0))
    text = (
        "How far each matrix moved from the base (Frobenius norms), and in how many directions: "
        "the effective rank is the exponential of the entropy of ΔW's singular values (Roy and "
        "Vetterli, 2007), between 1 and the rank. One run stands for each method; heads, which "
        f"start new, are left out, and so are dense ΔW above {LARGEST_SIDE:,} on their smaller "
        "side."
    )
    legend = f"The advised method comes first, then the best.{not_drawn}"
    caption = "Every run by kind of matrix: the smallest and the largest over the blocks."
    every = [Part(caption, table=_table(known), folded=True)] if known else []
    title = "What moved: ΔW by matrix and layer"
    return Section("changes", title, text, [*parts, *every], legend)


def _table(known: Mapping[str, Changes]) -> Table:
    lines = []
    for name, moved in known.items():
        kinds: dict[str, list[MatrixChange]] = {}
        for change in moved:
            kinds.setdefault(matrix_and_block(change.name)[0], []).append(change)
        for kind, changes in kinds.items():
            shares = (100 * change.share for change in changes if change.weight_norm)
            ranks = (c.effective_rank for c in changes if c.effective_rank is not None)
            cells = [_range(shares, _share), _range(ranks, _directions)]
            lines.append([f"{name}: {kind}", str(len(changes)), *cells])
    headers = ["run: matrix", "matrices", "‖ΔW‖ / ‖W‖, %", "effective rank"]
    return Table(headers, lines, [_record(name, c) for name, moved in known.items() for c in moved])


def _record(run: str, change: MatrixChange) -> dict[str, Any]:
    return {
        **{"run": run, "matrix": change.name, "shape": list(change.shape)},
        **{"delta_norm": change.delta_norm, "weight_norm": change.weight_norm},
        "share": change.share if change.weight_norm else None,
        "effective_rank": change.effective_rank,
    }


def _share(value: float) -> str:
    return f"{value:.2g}"


def _directions(value: float) -> str:
    return f"{value:.1f}"


def _range(values: Iterable[float], shown: Callable[[float], str]) -> str:
    found = sorted(values)
    if not found:
        return NOTHING
    ends = dict.fromkeys((shown(found[0]), shown(found[-1])))
    return "–".join(ends)


def ranks_section(ranks: Mapping[str, Mapping[str, int]]) -> Section:
    """Return the ranks of matrices by run, where they were learned."""
    parts = [
        Part(f"Rank of each matrix in {name}.", partial(rank_plot, moved, name))
        for name, moved in ranks.items()
        if moved
    ]
    text = "Where a method moved ranks between matrices while it trained."
    return Section("ranks", "Ranks that were learned", text, parts)
