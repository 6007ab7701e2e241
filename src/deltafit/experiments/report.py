"""What a comparison leaves for people: a folder with a report, its data and its plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltafit.experiments.answers import Evidence
from deltafit.experiments.cost_plots import cost_plot
from deltafit.experiments.csv_table import comparison_csv
from deltafit.experiments.forms import markdown_table
from deltafit.experiments.heading import task, title, what_it_is, where_it_is
from deltafit.experiments.inline_svg import plain_text
from deltafit.experiments.page import ABOUT, listed, report_page
from deltafit.experiments.page_parts import Section
from deltafit.experiments.plots import accuracy_plot, save_png
from deltafit.experiments.rank_plot import rank_plot
from deltafit.experiments.run_plots import History, class_f1_plot, confusion_plot, loss_plot
from deltafit.experiments.sections import sections_of
from deltafit.experiments.summary import headline, summary
from deltafit.experiments.tables import (
    Row,
    comparison_markdown,
    headers_of,
    remarks,
)
from deltafit.experiments.terminal_table import comparison_table
from deltafit.experiments.verdict import advised, alternative, verdict
from deltafit.files import write_folder_atomically, write_json_atomically, write_text_atomically

__all__ = ["comparison_csv", "comparison_markdown", "comparison_table", "verdict", "write_report"]


def write_report(
    folder: Path,
    rows: Sequence[Row],
    histories: Mapping[str, Sequence[History]],
    metrics: Mapping[str, Mapping[str, Any]],
    ranks: Mapping[str, Mapping[str, int]],
    facts: Mapping[str, Any],
    evidence: Evidence | None = None,
    beside: Sequence[Section] = (),
) -> None:
    """Write a comparison's report into ``folder``, for people and for programs.

    That is ``report.html``, one page that needs no other file; ``report.md`` with ``plots/``;
    ``comparison.csv`` and ``comparison.json``.

    Every file is replaced whole; whatever else stands in the folder stays.

    Args:
        folder: made if absent.
        rows: the comparison, as `deltafit.experiments.tables` describes a row.
        histories: of each row's runs, by the row's name: records with ``step`` and ``train_loss``
            or ``validation_loss``.
        metrics: of runs that get pictures of their own, by name: what `classification_metrics`
            returned on the judged rows.
        ranks: of each run, by name: those of its matrices, where they differ; see `learned_ranks`.
        facts: about data and environment, for the report's last section; must be JSON.
        evidence: what methods said of each judged row, and what they changed.
        beside: sections that come before those of the rows.
    """
    with plain_text():
        plots = _write_plots(folder / "plots", rows, histories, metrics, ranks)
        sections = [*beside, *sections_of(rows, histories, ranks, evidence)]
        page = report_page(rows, sections, _how_to_read(rows).replace("*", ""), facts)
    write_text_atomically(folder / "report.html", page)
    conclusion, chosen = verdict(rows), advised(rows)
    write_text_atomically(folder / "comparison.csv", comparison_csv(rows))
    write_json_atomically(
        folder / "comparison.json",
        {
            "title": title(facts),
            "advised": (chosen or {}).get("name"),
            "advised_settings": what_it_is(chosen, facts),
            "advised_folder": (chosen or {}).get("folder"),
            "safer": (alternative(rows) or {}).get("name"),
            "verdict": conclusion,
            "summary": summary(rows),
            "rows": [dict(row) for row in rows],
            "sections": {
                section.name: records for section in sections if (records := _records(section))
            },
            "facts": dict(facts),
        },
    )
    write_text_atomically(
        folder / "report.md", _markdown_report(rows, conclusion, sections, plots, facts)
    )


def _write_plots(
    folder: Path,
    rows: Sequence[Row],
    histories: Mapping[str, Sequence[History]],
    metrics: Mapping[str, Mapping[str, Any]],
    ranks: Mapping[str, Mapping[str, int]],
) -> list[tuple[str, str]]:
    """Draw every plot there are figures for; return ``(caption, file name)`` of each."""
    judged = [row for row in rows if not row.get("failure")]
    figures = []
    if judged:
        figures.append(("Result with its 95 % interval", "accuracy.png", accuracy_plot(judged)))
    if any(row.get("trainable") for row in judged):
        figures.append(("Result against the share trained", "share.png", cost_plot(judged)))
    if any(history for runs in histories.values() for history in runs):
        figures.append(("Loss in training", "loss.png", loss_plot(histories)))
    for index, (name, measured) in enumerate(metrics.items(), start=1):
        figures += [
            (f"Confusion of {name}", f"confusion-{index}.png", confusion_plot(measured, name)),
            (f"F1 by class of {name}", f"class-f1-{index}.png", class_f1_plot(measured, name)),
        ]
    for index, (name, moved) in enumerate(ranks.items(), start=1):
        if moved:
            caption = f"Rank of each matrix in {name}"
            figures.append((caption, f"ranks-{index}.png", rank_plot(moved, name)))
    with write_folder_atomically(folder) as temporary:
        for _, file_name, figure in figures:
            save_png(figure, temporary / file_name)
    return [(caption, file_name) for caption, file_name, _ in figures]


def _markdown_report(
    rows: Sequence[Row],
    conclusion: str,
    sections: Sequence[Section],
    plots: Sequence[tuple[str, str]],
    facts: Mapping[str, Any],
) -> str:
    chosen = advised(rows)
    blocks = [
        f"# {title(facts)}",
        task(rows, facts),
        f"**{headline(rows)}**",
        what_it_is(chosen, facts),
        where_it_is(chosen),
        conclusion,
        *(facts.get(key) for key in ABOUT),
        "\n".join(f"- {sentence}" for sentence in summary(rows)),
        comparison_markdown(rows).rstrip(),
        _how_to_read(rows),
        "\n".join(f"- {remark}" for remark in remarks(rows)),
    ]
    for section in sections:
        # Of what is a picture alone there is nothing to say: those stand below.
        said = [part for part in section.parts if part.table or part.figure is None]
        if said:
            blocks += [f"## {section.title}", section.text]
        for part in said:
            blocks.append(part.caption)
            if part.table:
                blocks.append(markdown_table(part.table.headers, part.table.rows).rstrip())
    for caption, file_name in plots:
        blocks += [f"## {caption}", f"![{caption}](plots/{file_name})"]
    if facts:
        blocks += ["## Facts", "\n".join(_bullets(listed(facts)))]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _records(section: Section) -> list[dict[str, Any]]:
    """Return the figures of a section's tables for programs, each with what they are."""
    return [
        {"caption": part.caption, "figures": [dict(record) for record in part.table.records]}
        for part in section.parts
        if part.table and part.table.records
    ]


def _how_to_read(rows: Sequence[Row]) -> str:
    counts = sorted({row["count"] for row in rows if row.get("count")})
    judged = f"All are judged on the same {counts[0]} rows. " if len(counts) == 1 else ""
    duplicates = ""
    if "new_rows" in headers_of(rows):
        duplicates = "“Without duplicates” leaves out judged rows whose text stands in training. "
    return (
        f"{judged}The 95 % interval of a result is Wilson's where there is one seed, and holds "
        "the sampling of rows alone; with several seeds it holds rows and seeds both. The "
        "difference to best is in points of accuracy, paired on the same rows, with "
        "its 95 % interval; *within noise* means that this interval includes 0, *undecided* that "
        "it does not, but the p-value, corrected for all pairs of rows, is not below 0.05: of many "
        "equal methods some look worse by chance than the one that happens to look best. What is "
        "said to be better or worse has stood that correction. The best was chosen by these very "
        "rows, so its own figure flatters it, and the more so the more rows there are. "
        f"{duplicates}Time and examples/s are training alone; memory is the peak of the whole "
        "process."
    )


def _bullets(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}- {key}:", *_bullets(value, indent + "  ")]
        else:
            lines.append(f"{indent}- {key}: {value}")
    return lines
