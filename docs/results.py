"""Writes a finished report into the documents: python docs/results.py STORE/NAME "COMMAND".

COMMAND is what made it, as a reader would type it. The page is ``docs/results/NAME.md``: the words
and tables of the report, without its pictures and the facts that name folders of one machine.
"""

import re
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from deltafit.experiments.words import named
from deltafit.files import read_json, write_text_atomically

RESULTS = Path(__file__).parent / "results"


def page(folder: Path, command: str) -> str:
    """Return the page of a report.

    Args:
        folder: that ``deltafit run`` wrote the report to.
        command: that made it.

    Raises:
        SystemExit: the report names a folder of the machine that it was made on.
    """
    title, _, text = (folder / "report.md").read_text(encoding="utf-8").partition("\n")
    words, *_ = re.split(r"^(?:## [^\n]*\n\n!\[|## Facts$)", text, maxsplit=1, flags=re.M)
    if found := re.search(r"(?<![\w.])/(?:[\w.-]+/)+[\w.-]*\w", words):
        sys.exit(f"{folder / 'report.md'} names {found[0]}, which no reader has.")
    words = re.sub(r"^It is in \S+, seen from this report[^\n]*\n\n", "", words, flags=re.M)
    facts = read_json(folder / "comparison.json")["facts"]
    day = date.fromtimestamp((folder / "report.md").stat().st_mtime)
    made = (
        f"`{command}`, on {_machine(facts)}; {day}. {_precision(facts)} What "
        "follows is `report.md` as it was written there, without its pictures and list of facts."
    )
    return f"{title}\n\n{made}\n{words.rstrip()}\n"


def _machine(facts: Mapping[str, Any]) -> str:
    def known(key: str) -> str:
        """Return what all rows have in common, or what any of them has."""
        if key in facts["environment"]:
            return str(facts["environment"][key])
        return " or ".join(dict.fromkeys(str(value) for value in facts[key].values()))

    names = ("deltafit", "torch", "transformers", "scikit-learn")
    versions = ", ".join(
        f"{name} {known(name)}" for name in names if name in {*facts, *facts["environment"]}
    )
    cores, threads = known("cores"), known("threads")
    return f"{known('processor')} ({cores} cores, threads a run: {threads}), {versions}"


def _precision(facts: Mapping[str, Any]) -> str:
    rows: dict[str, list[str]] = {}
    for row, precision in facts["precision"].items():
        rows.setdefault(precision, []).append(row)
    if len(rows) == 1:
        return f"All rows trained in {next(iter(rows))}."
    return " ".join(f"In {precision}: {named(names)}." for precision, names in rows.items())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    report = Path(sys.argv[1])
    RESULTS.mkdir(exist_ok=True)
    write_text_atomically(RESULTS / f"{report.name}.md", page(report, sys.argv[2]))
