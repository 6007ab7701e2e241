"""The rules of the house that no linter holds: sizes, documents that are true of the code."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import deltafit
from deltafit.cli import app
from deltafit.methods import METHODS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "deltafit"
FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
DOCUMENTS = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md")
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
    ignores = re.findall(r"# (?:noqa|type: ignore)[^#\n]*(.*)", text)
    assert not re.search(r"#\s*(TODO|FIXME|XXX)", text)
    for reason in ignores:
        # A reason stands behind, in a second comment or in the code's own words beside it.
        assert reason or "[" in text


def test_every_room_has_its_tests() -> None:
    for room in ROOMS:
        assert list((ROOT / "tests" / room).glob("test_*.py")), room


def test_the_laws_of_methods_are_tested_by_enumeration() -> None:
    """A new method comes under the laws by its line in METHODS alone."""
    texts = {
        path.relative_to(ROOT / "tests"): path.read_text(encoding="utf-8")
        for path in (ROOT / "tests").rglob("test_*.py")
    }
    for test in ("adapters/test_law.py", "methods/test_methods.py", "cli/test_train.py"):
        assert re.search(r"\bMETHODS\b", texts[Path(test)]), test


def test_every_method_is_in_the_documents() -> None:
    readme, _, _, architecture = (path.read_text(encoding="utf-8") for path in DOCUMENTS)
    for name, method in METHODS.items():
        row = f"| `{name}` | `{method.__name__}` | `{method.result_name}` |"
        assert row in readme
        assert f"| `{method.__name__}` |" in architecture


def test_every_room_and_nothing_else_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = text.split("## The rooms", 1)[1].split("```")[1]
    drawn = dict(re.findall(r"^  (\w+)\s+(\S.*)$", drawing, flags=re.MULTILINE))
    assert sorted(name for name, what in drawn.items() if "(planned)" not in what) == ROOMS
    # Files named with their place exist.
    for path in re.findall(r"`((?:\w+/)+\w+\.py)`", text):
        assert (SOURCE / path).is_file() or (ROOT / path).is_file(), path


def test_links_and_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (document.parent / target).exists(), (document.name, target)
        for target in re.findall(r"`make (\w+)", text):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), (document.name, target)


def test_pythons_names_in_the_documents_exist() -> None:
    for document in DOCUMENTS:
        for name in re.findall(r"\bdeltafit\.(\w+)\(", document.read_text(encoding="utf-8")):
            assert name in deltafit.__all__, (document.name, name)


def example_lines(text: str, *, after: str = "") -> list[list[str]]:
    """The words of every ``deltafit`` command in a text; a line may go on in the next."""
    joined = re.sub(r"\\\n\s*", "", text)
    if after:  # in a docstring, up to the empty line
        joined = re.sub(r"(?<=\S)\n(?=\S)", " ", joined)
    lines = re.findall(rf"^{after}(deltafit .*)$", joined, flags=re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def parsed_command(words: list[str]) -> str:
    """Parse a command as the command line does, without running it; return its name."""
    group: Any = typer.main.get_command(app)
    with group.make_context("deltafit", list(words), resilient_parsing=True) as context:
        name, command, rest = group.resolve_command(context, words)
        # Parsing alone: it finds unknown flags, missing ones and values of the wrong type.
        command.make_context(name, rest, parent=context)
    return str(name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_command_lines_in_documents_are_understood(path: Path) -> None:
    lines = example_lines(path.read_text(encoding="utf-8"))
    if path.name == "README.md":
        assert {parsed_command(words) for words in lines} == {
            *("train", "compare", "evaluate", "predict", "inspect", "merge", "verify"),
        }
    for words in lines:
        if words[0].islower() and not words[0].startswith("-"):
            parsed_command(words)


def test_unknown_flags_in_documents_would_be_found() -> None:
    for words in (["train", "--colour", "red"], ["fit"], ["verify"], ["train", "--epochs", "x"]):
        with pytest.raises(Exception, match=r"."):
            parsed_command(words)


def test_methods_in_documents_are_understood() -> None:
    from deltafit.methods import parse_method

    found = []
    for document in DOCUMENTS:
        found += re.findall(r"--method (\S+:\S+?)[`\s]", document.read_text(encoding="utf-8"))
    assert found
    for text in found:
        parse_method(text)


def test_the_changelog_has_the_version_and_the_commands() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]", text, flags=re.MULTILINE)
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"`{command.callback.__name__}`" in text
