"""What ``ranks`` found as tables, files and plots."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from deltafit.experiments.forms import csv_text, markdown_table
from deltafit.experiments.plots import save_png
from deltafit.experiments.rank_curve import rank_curve
from deltafit.experiments.rank_plot import matrix_plot
from deltafit.experiments.rank_rows import (
    Dispensable,
    MatrixRow,
    Measured,
    PartRow,
    RankRow,
    smallest_rank,
)
from deltafit.experiments.statistics import PairedComparison
from deltafit.experiments.tables import (
    NOTHING,
    format_bytes,
    format_count,
    format_points,
)
from deltafit.files import write_folder_atomically, write_json_atomically, write_text_atomically

# A line break is one in a terminal's table.
RANK_HEADER = (
    *("rank", "parameters", "size", "kept\n%", "accuracy %\n[95 % interval]", "macro\nF1 %"),
    *("difference\nto the whole", "to the best"),
)
PART_HEADER = (
    *("ΔW of", "energy\n%", "accuracy\nwithout it", "difference\nwithout it", "changed"),
    *("standing", "accuracy\nalone", "difference\nalone"),
)
MATRIX_HEADER = ("matrix", "shape", "rank", "effective\nrank", "‖ΔW‖", "% of\n‖W‖", "energy\n%")


@dataclass(frozen=True)
class RankReport:
    """What ``ranks`` found.

    Attributes:
        folder: of the adapter, as it was given.
        source: of the rows.
        count: how many rows.
        ranks: from the lowest to the highest, which is the whole adapter.
        parts: blocks, kinds of matrices and single matrices, kind by kind; what matters most of a
            kind is first.
        dispensable: of each kind, what can be left out together.
        matrices: in the model's order.
        verdict: which rank to ship, in words.
        about_parts: which parts carry the change, in words.
    """

    folder: Path
    source: str
    count: int
    ranks: tuple[RankRow, ...]
    parts: tuple[PartRow, ...]
    dispensable: tuple[Dispensable, ...]
    matrices: tuple[MatrixRow, ...]
    verdict: str
    about_parts: str

    def _repr_markdown_(self) -> str:
        """Return what a notebook shows."""
        return report_markdown(self, ())


def rank_cells(row: RankRow) -> list[str]:
    """Return a row's figures as they are shown, under ``RANK_HEADER``."""
    figures, (low, high) = row.measured, row.measured.interval
    return [
        str(row.rank),
        format_count(row.parameters),
        format_bytes(row.stored_bytes),
        _percent(row.energy_kept),
        f"{_percent(figures.accuracy)} [{_percent(low)}, {_percent(high)}]",
        _percent(figures.macro_f1),
        _difference(figures.against_whole),
        row.standing,
    ]


def part_cells(row: PartRow) -> list[str]:
    """Return a row's figures as they are shown, under ``PART_HEADER``."""
    return [
        row.title,
        _percent(row.energy),
        _percent(row.without.accuracy),
        _difference(row.without.against_whole),
        str(row.without.changed),
        row.standing,
        _percent(row.alone.accuracy),
        _difference(row.alone.against_whole),
    ]


def matrix_cells(row: MatrixRow) -> list[str]:
    """Return a row's figures as they are shown, under ``MATRIX_HEADER``."""
    return [
        row.title,
        "×".join(map(str, row.shape)),
        str(row.rank),
        NOTHING if row.effective_rank is None else _tenth(row.effective_rank),
        f"{row.delta_norm:.3f}",
        _percent(row.share),
        _percent(row.energy),
    ]


def _percent(part: float) -> str:
    return f"{100 * part:.1f}"


def _difference(comparison: PairedComparison) -> str:
    return format_points(asdict(comparison))


def how_to_read(report: RankReport) -> str:
    """Return what the columns mean."""
    return (
        f"All are judged on the same {report.count:,} rows. Rank 0 is the base with the trained "
        "head. *Kept* and *energy* are shares of ‖ΔW‖², all matrices together. Differences are to "
        "the whole adapter, in points of accuracy, paired on the same rows, with their 95 % "
        "interval. *Within noise* means that the interval of the difference includes 0 (of a rank: "
        "of that to the best rank), *worse* that the difference stays one (p < 0.05) "
        "when corrected for all that were compared; between the two it is "
        "*undecided*. *Changed* counts predictions that are others than the whole adapter's."
    )


def report_markdown(report: RankReport, plots: Sequence[tuple[str, str]]) -> str:
    """Return the report as Markdown.

    Args:
        report: what was found.
        plots: caption and file name, below ``plots/``, of each.
    """
    chosen = smallest_rank(report.ranks)
    ranks = _table(
        RANK_HEADER, [*map(rank_cells, report.ranks)], [row is chosen for row in report.ranks]
    )
    sections = [
        "# Ranks",
        f"{report.folder} on {report.source}, {report.count:,} rows.",
        f"**{report.verdict}**",
        ranks,
        how_to_read(report),
    ]
    if report.parts:
        sections += [
            "## Which layers and matrices carry the change",
            report.about_parts,
            _table(PART_HEADER, [*map(part_cells, report.parts)]),
        ]
    sections += [
        "## Each matrix",
        _table(MATRIX_HEADER, [*map(matrix_cells, report.matrices)]),
    ]
    for caption, name in plots:
        sections += [f"## {caption}", f"![{caption}](plots/{name})"]
    return "\n\n".join(sections) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[bool] = ()) -> str:
    return markdown_table([name.replace("\n", " ") for name in header], rows, bold).rstrip()


def write_rank_report(folder: Path, report: RankReport) -> None:
    """Write ``report.md``, ``ranks.json``, ``ranks.csv``, ``parts.csv`` and ``plots/``.

    Args:
        folder: appears whole or not at all.
        report: what was found.
    """
    with write_folder_atomically(folder) as temporary:
        plots = _plots(report)
        (temporary / "plots").mkdir()
        for _, name, figure in plots:
            save_png(figure, temporary / "plots" / name)
        write_json_atomically(temporary / "ranks.json", report_as_dict(report))
        ranks = [_plain_rank(row) for row in report.ranks]
        write_text_atomically(temporary / "ranks.csv", csv_text(ranks))
        parts = [_plain_part(row) for row in report.parts]
        write_text_atomically(temporary / "parts.csv", csv_text(parts))
        captions = [(caption, name) for caption, name, _ in plots]
        write_text_atomically(temporary / "report.md", report_markdown(report, captions))


def _plots(report: RankReport) -> list[tuple[str, str, Figure]]:
    """Draw every plot; return its caption, its file's name and the figure."""
    folder = str(report.folder)
    energies = {row.name: 100 * row.energy for row in report.matrices}
    spread = {r.name: r.effective_rank for r in report.matrices if r.effective_rank is not None}
    changed = {r.modules[0]: r.without.changed for r in report.parts if r.kind == "matrix"}
    figures = [
        ("Accuracy against rank", "ranks.png", rank_curve(report.ranks, folder)),
        ("Share of the change", "energy.png", matrix_plot(energies, folder, "% of ‖ΔW‖²", _tenth)),
    ]
    if spread:
        caption, unit = "Effective rank of each matrix", "effective rank"
        figure = matrix_plot(spread, folder, unit, _tenth)
        figures.append((caption, "effective-ranks.png", figure))
    if changed:
        unit = "predictions that change without it"
        figure = matrix_plot(changed, folder, unit, lambda count: f"{count:.0f}", whole=True)
        figures.append((unit.capitalize(), "changed.png", figure))
    return figures


def _tenth(value: float) -> str:
    return f"{value:.1f}"


def report_as_dict(report: RankReport) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "folder": str(report.folder),
        "source": report.source,
        "count": report.count,
        "verdict": report.verdict,
        "about_parts": report.about_parts,
        "smallest_within_noise": smallest_rank(report.ranks).rank,
        "ranks": [_plain_rank(row) for row in report.ranks],
        "parts": [_plain_part(row) | {"modules": row.modules} for row in report.parts],
        "dispensable": [
            {
                "kind": one.parts[0].kind,
                "names": [part.name for part in one.parts],
                **_plain(one.without),
            }
            for one in report.dispensable
        ],
        # JSON has no infinity, which is the share of a weight that is all zeros.
        "matrices": [
            asdict(row) | {"share": row.share if math.isfinite(row.share) else None}
            for row in report.matrices
        ],
    }


def _plain_rank(row: RankRow) -> dict[str, Any]:
    to_best = row.against_best
    return {
        "rank": row.rank,
        "parameters": row.parameters,
        "stored_bytes": row.stored_bytes,
        "energy_kept": row.energy_kept,
        **_plain(row.measured),
        "to_best": to_best.difference if to_best else None,
        "to_best_low": to_best.low if to_best else None,
        "to_best_high": to_best.high if to_best else None,
        "to_best_p_corrected": row.p_value,
        "standing": row.standing,
    }


def _plain_part(row: PartRow) -> dict[str, Any]:
    alone = {f"alone_{key}": value for key, value in _plain(row.alone).items()}
    return {
        "kind": row.kind,
        "name": row.name,
        "energy": row.energy,
        **_plain(row.without),
        "p_corrected": row.p_value,
        "standing": row.standing,
        **alone,
    }


def _plain(figures: Measured) -> dict[str, Any]:
    """Return a variant's figures by plain names: shares of one, and differences of them."""
    low, high = figures.interval
    difference = figures.against_whole
    return {
        "accuracy": figures.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": figures.macro_f1,
        "changed": figures.changed,
        "difference": difference.difference,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "p_value": difference.p_value,
    }
