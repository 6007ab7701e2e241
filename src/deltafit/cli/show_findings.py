"""How the doctor's findings look in a terminal."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from deltafit.cli.show import say
from deltafit.experiments.findings import Finding, counted
from deltafit.experiments.recipe import Recipe


def show_findings(console: Console, recipe: Recipe, findings: Sequence[Finding]) -> None:
    """Print findings in their order, each with its remedy, and how many there are."""
    for finding in findings:
        say(console, f"{finding.severity}: {finding.subject}\n  {finding.sentence}")
        for row in finding.rows:
            say(console, f"    {row}")
        say(console, f"  → {finding.remedy}")
        say(console)
    counts = Counter(finding.severity for finding in findings)
    listed = ", ".join(counted(counts[kind], kind) for kind in ("error", "warning", "note"))
    healthy = "" if counts["error"] or counts["warning"] else " Nothing stands in its way."
    say(console, f"{recipe.name} on {recipe.model}: {listed}.{healthy}")
