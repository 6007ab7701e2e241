"""How much better runs do on the rows that they learned from: a section of the report."""

from collections.abc import Sequence

from deltafit.experiments.page_parts import Part, Section, Table
from deltafit.experiments.tables import Row, format_metric, gap_of, metric_title


def gap_section(rows: Sequence[Row]) -> list[Section]:
    """Return training figures beside those of the judged rows, the largest gap first.

    Args:
        rows: of the comparison; those without a training figure are left out.
    """
    known = [(gap, row) for row in rows if (gap := gap_of(row)) is not None]
    if not known:
        return []
    known.sort(key=lambda pair: -pair[0])
    metric = metric_title([known[0][1]])
    headers = ["row", f"training {metric}", f"judged {metric}", "95 % interval", "gap, points"]
    lines = [
        [
            row["name"],
            *(format_metric(row[key], row["metric_name"]) for key in ("training", "after")),
            f"[{', '.join(format_metric(end, row['metric_name']) for end in row['interval'])}]",
            format_gap(gap),
        ]
        for gap, row in known
    ]
    records = [
        {
            "row": row["name"],
            **{key: row[key] for key in ("training", "after", "interval")},
            "gap": gap,
        }
        for gap, row in known
    ]
    (largest, most), (least, fewest) = known[0], known[-1]
    text = (
        f"The largest gap is that of {most['name']}, {100 * largest:.1f} points, the smallest that "
        f"of {fewest['name']}, {100 * least:.1f}. A gap is what was learned by heart; the interval "
        "says how well the judged figure is known. By itself it makes no row worse than another: "
        "the differences of the table above do."
    )
    part = Part("Training rows and judged rows.", table=Table(headers, lines, records))
    return [Section("gap", "Training against judged rows", text, [part])]


def format_gap(gap: float) -> str:
    """Return "+1.2" or "−0.3", in points."""
    return f"{100 * gap:+.1f}".replace("-", "−")
