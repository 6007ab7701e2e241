"""What a comparison leaves for people: a verdict, and a folder with report, data and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltafit.experiments.plots import accuracy_plot, save_png, share_plot
from deltafit.experiments.run_plots import History, class_f1_plot, confusion_plot, loss_plot
from deltafit.experiments.tables import (
    PERCENT_METRICS,
    Row,
    comparison_csv,
    comparison_markdown,
    comparison_table,
    format_bytes,
    format_count,
    format_metric,
    format_points,
    is_best,
)
from deltafit.files import write_folder_atomically, write_json_atomically, write_text_atomically

__all__ = ["comparison_csv", "comparison_markdown", "comparison_table", "verdict", "write_report"]


def verdict(rows: Sequence[Row]) -> str:
    """Say in a sentence or two what to ship, and what the figures do not decide.

    Methods whose difference to the best is within noise are tied with it; of those tied, the
    cheapest is advised: a baseline before an adapter, then the smallest saved size, then the
    fewest trainable parameters, then the shortest training.
    """
    if not rows:
        return "Nothing was compared."
    best = next((row for row in rows if is_best(row)), rows[0])
    tied = [row for row in rows if row is not best and row["difference"]["within_noise"]]
    chosen = min([best, *tied], key=_cost)
    sentences = [_recommendation(chosen, best, tied, len(rows))]
    sentences += _against_baselines(chosen, best, rows)
    return " ".join(sentences)


def write_report(
    folder: Path,
    rows: Sequence[Row],
    histories: Mapping[str, History],
    metrics: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> None:
    """Write ``report.md``, ``comparison.csv``, ``comparison.json`` and ``plots/`` into ``folder``.

    Every file is replaced whole; whatever else stands in the folder stays.

    Args:
        folder: made if absent.
        rows: the comparison, as `deltafit.experiments.tables` describes a row.
        histories: of each run, by name: records with ``step`` and ``train_loss`` or
            ``validation_loss``.
        metrics: of each run, by name: what `classification_metrics` returned on the judged rows.
        facts: about data and environment, for the report's last section; must be JSON.
    """
    plots = _write_plots(folder / "plots", rows, histories, metrics)
    conclusion = verdict(rows)
    write_text_atomically(folder / "comparison.csv", comparison_csv(rows))
    write_json_atomically(
        folder / "comparison.json",
        {"verdict": conclusion, "rows": [dict(row) for row in rows], "facts": dict(facts)},
    )
    write_text_atomically(folder / "report.md", _markdown_report(rows, conclusion, plots, facts))


def _cost(row: Row) -> tuple[float, ...]:
    unknown = float("inf")
    amounts = [row.get(key) for key in ("saved_bytes", "trainable", "seconds")]
    return (row["kind"] == "run", *(unknown if amount is None else amount for amount in amounts))


def _result(row: Row) -> str:
    name = str(row["metric_name"])
    unit = " %" if name in PERCENT_METRICS else ""
    return f"{format_metric(row.get('after'), name)}{unit} {name.replace('_', ' ')}"


def _size(row: Row) -> str:
    known = [
        (row.get("trainable"), format_count(row.get("trainable")) + " trained parameters"),
        (row.get("saved_bytes"), format_bytes(row.get("saved_bytes")) + " saved"),
    ]
    parts = [text for amount, text in known if amount is not None]
    return f", {', '.join(parts)}" if parts else ""


def _recommendation(chosen: Row, best: Row, tied: Sequence[Row], count: int) -> str:
    use = "Ship" if chosen["kind"] == "run" else "Use"
    advice = f"{use} {chosen['name']} ({_result(chosen)}{_size(chosen)})"
    if count == 1:
        return f"{advice}: nothing else was compared with it."
    if not tied:
        return f"{advice}: it is better than every other method beyond noise."
    if chosen is best:
        names, are = _listing([row["name"] for row in tied]), "is" if len(tied) == 1 else "are"
        return f"{advice}: the best and the cheapest of a tie; {names} {are} within noise of it."
    others = [row["name"] for row in tied if row is not chosen]
    also = f"; {_listing(others)} tied as well" if others else ""
    return (
        f"{advice}: within noise of the best, {best['name']} ({_result(best)}), and the cheapest "
        f"of those tied{also}."
    )


def _against_baselines(chosen: Row, best: Row, rows: Sequence[Row]) -> list[str]:
    """Say of what is advised, and of the best, whether it beats the best cheap baseline."""
    runs = [row for row in rows if row.get("against_baseline")]
    if not runs:
        return []
    name = runs[0]["against_baseline"]["name"]
    if not any(_beats_baseline(row) for row in runs):
        baseline = next(row for row in rows if row["name"] == name)
        return [
            "No adapter beats the cheap baselines beyond noise: "
            f"{name} reaches {_result(baseline)} without one."
        ]
    spoken_of = [chosen] if chosen is best else [chosen, best]
    return [_against_baseline(row) for row in spoken_of if row["kind"] == "run"]


def _against_baseline(row: Row) -> str:
    compared = row["against_baseline"]
    cheap, points = f"the best cheap baseline, {compared['name']},", format_points(compared)
    if _beats_baseline(row):
        return f"{row['name']} beats {cheap} by {points.lstrip('+')} points."
    return f"{row['name']} does not beat {cheap} beyond noise ({points} points)."


def _beats_baseline(row: Row) -> bool:
    return bool(row["against_baseline"]["low"] > 0)


def _listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _write_plots(
    folder: Path,
    rows: Sequence[Row],
    histories: Mapping[str, History],
    metrics: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, str]]:
    """Draw every plot there are figures for; return ``(caption, file name)`` of each."""
    figures = [("Result with its 95 % interval", "accuracy.png", accuracy_plot(rows))]
    if any(row.get("trainable") for row in rows):
        figures.append(("Result against the share trained", "share.png", share_plot(rows)))
    if any(histories.values()):
        figures.append(("Loss in training", "loss.png", loss_plot(histories)))
    for index, (name, measured) in enumerate(metrics.items(), start=1):
        figures += [
            (f"Confusion of {name}", f"confusion-{index}.png", confusion_plot(measured, name)),
            (f"F1 by class of {name}", f"class-f1-{index}.png", class_f1_plot(measured, name)),
        ]
    with write_folder_atomically(folder) as temporary:
        for _, file_name, figure in figures:
            save_png(figure, temporary / file_name)
    return [(caption, file_name) for caption, file_name, _ in figures]


def _markdown_report(
    rows: Sequence[Row],
    conclusion: str,
    plots: Sequence[tuple[str, str]],
    facts: Mapping[str, Any],
) -> str:
    notes = [f"- {row['name']}: {note}" for row in rows for note in row.get("notes") or ()]
    sections = [
        "# Comparison",
        f"**{conclusion}**",
        comparison_markdown(rows).rstrip(),
        "The interval of a result is Wilson's, 95 %. The difference is in points of accuracy, "
        "paired on the same rows; *within noise* means that its 95 % interval includes 0. "
        "Time and examples/s are training alone; memory is the peak of the process.",
    ]
    if notes:
        sections.append("\n".join(notes))
    for caption, file_name in plots:
        sections += [f"## {caption}", f"![{caption}](plots/{file_name})"]
    if facts:
        sections += ["## Facts", "\n".join(_bullets(facts))]
    return "\n\n".join(sections) + "\n"


def _bullets(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}- {key}:", *_bullets(value, indent + "  ")]
        else:
            lines.append(f"{indent}- {key}: {value}")
    return lines
