"""Calling the command line in this process, as a terminal of 80 columns would.

Import as ``from tests.cli.commands import deltafit, refused``.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from deltafit.cli import app

WIDTH = 80


@dataclass(frozen=True)
class Tiny:
    """A tiny model, tables of texts, and a run on them that the command line left."""

    model: str
    train: str
    test: str
    run: Path

    def start(self, output: Path) -> list[str]:
        """The flags that ``train`` and ``compare`` cannot do without, and quick settings."""
        return [
            *("--model", self.model, "--data", self.train, "--test-data", self.test),
            *("--validation", "0.2", "--epochs", "2", "--batch-size", "8", "--max-length", "12"),
            *("--output", str(output)),
        ]


def deltafit(*words: object, stdin: str | bytes | None = None) -> Any:
    """Run ``deltafit WORDS``; whatever happens, no exception may come out of it."""
    environment = {"COLUMNS": str(WIDTH), "TERM": "xterm", "NO_COLOR": None, "FORCE_COLOR": None}
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output, "control codes in a pipe"
    return result


def done(*words: object, stdin: str | bytes | None = None) -> str:
    """Run ``deltafit WORDS``, which must succeed; return standard output."""
    result = deltafit(*words, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def refused(code: int, *words: object, stdin: str | bytes | None = None) -> str:
    """Run ``deltafit WORDS``, which must fail with this code; return what it said, on one line."""
    result = deltafit(*words, stdin=stdin)
    assert result.exit_code == code, result.output
    assert result.stdout == "", "what failed prints no result"
    return re.sub(r"[\s│]+", " ", result.stderr)
