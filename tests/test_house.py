"""The rules of the house that no linter holds: sizes, documents that are true of the code."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn
from transformers.pytorch_utils import Conv1D

import deltafit
from deltafit.adapters import (
    adapt,
    disabled,
    layer_state,
    load_adapter,
    merge,
    read_adapter,
    save_adapter,
    unmerge,
)
from deltafit.cli import app
from deltafit.engine import mixed
from deltafit.methods import METHODS, DeltaMethod, method_from_dict, parse_method
from tests.adapters.adapted import head_of, logits, randomise
from tests.tiny_models import tiny_model

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "deltafit"
FILES = sorted(SOURCE.rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
DOCUMENTS = [
    ROOT / name
    for name in (
        *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
        *("docs/architecture.md", "docs/methods.md", "docs/adapters.md", "docs/recipes.md"),
        *("docs/doctor.md", "docs/estimate.md"),
    )
]


@pytest.mark.parametrize("path", FILES + BENCHMARKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    for rule in re.findall(r"# (?:noqa|type: ignore)(.?)", text):
        assert rule in (":", "["), "an ignore names its rule"


def test_every_room_has_its_tests() -> None:
    for room in ROOMS:
        assert list((ROOT / "tests" / room).glob("test_*.py")), room


def layers() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """One layer of every type that has a view, with an input, in float64."""
    torch.manual_seed(1)
    made = {
        "linear": (nn.Linear(5, 3), torch.randn(2, 4, 5)),
        "no bias": (nn.Linear(5, 3, bias=False), torch.randn(2, 5)),
        "conv1d": (Conv1D(3, 5), torch.randn(2, 5)),
        "embedding": (nn.Embedding(6, 4), torch.randint(0, 6, (2, 3))),
        "convolution": (nn.Conv1d(4, 3, 3, stride=2, padding=1), torch.randn(2, 4, 7)),
        "in groups": (nn.Conv2d(4, 6, (2, 3), groups=2, dilation=2), torch.randn(3, 4, 5, 6)),
    }
    return {
        n: (m.double(), x.double() if x.is_floating_point() else x) for n, (m, x) in made.items()
    }


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if issubclass(m, DeltaMethod)])
@pytest.mark.parametrize("kind", layers())
def test_the_law_of_every_delta_method(name: str, kind: str) -> None:
    """Its line in METHODS alone brings a method here: fast = reference = mixed = merged, Δ₀ = 0."""
    layer, x = layers()[kind]
    model = nn.Sequential(layer).eval()
    base = model(x)
    adapt(model, METHODS[name](target_modules=("0",)))  # type: ignore[call-arg]  # a DeltaMethod
    assert torch.equal(model(x), base)
    randomise(model)
    state = layer_state(layer)
    reference = state.view.forward_with(state.deltas("default"), x)
    assert not torch.allclose(reference, base)
    torch.testing.assert_close(model(x), reference, rtol=1e-12, atol=1e-12)
    with mixed(model, [(None, len(x)), ("default", len(x))]):
        both = model(torch.cat([x, x]))
    torch.testing.assert_close(both, torch.cat([base, reference]), rtol=1e-12, atol=1e-12)
    before = layer.weight.clone()
    merge(model)
    torch.testing.assert_close(model(x), reference, rtol=1e-12, atol=1e-12)
    unmerge(model)
    assert torch.equal(layer.weight, before)
    with disabled(model):
        assert torch.equal(model(x), base)


# What a method does not work without.
NEEDED = {"modules": r"modules:pattern=re:.*\.(attention|attn)"}


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_saved_and_loaded_and_is_data(
    name: str, architecture: str, tmp_path: Path
) -> None:
    method = parse_method(NEEDED.get(name, name))
    assert parse_method(str(method)) == method_from_dict(method.to_dict()) == method
    assert method.default_learning_rate > 0
    model, head = tiny_model(architecture), head_of(tiny_model(architecture))
    base = logits(model)
    adapt(model, method, head=head)
    randomise(model)
    changed = logits(model)
    assert not torch.allclose(changed, base)
    save_adapter(model, tmp_path)
    other = tiny_model(architecture)
    load_adapter(other, read_adapter(tmp_path))
    assert torch.equal(logits(other), changed)
    with disabled(other):
        assert torch.equal(logits(other), base)


def test_every_method_is_in_the_documents() -> None:
    readme, _, _, architecture, *_ = (path.read_text(encoding="utf-8") for path in DOCUMENTS)
    for name, method in METHODS.items():
        row = f"| `{name}` | `{method.__name__}` | `{method.result_name}` |"
        assert row in readme
        assert f"| `{method.__name__}` |" in architecture


def test_every_room_and_nothing_else_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = text.split("## The rooms", 1)[1].split("```")[1]
    drawn = dict(re.findall(r"^  (\w+)\s+(\S.*)$", drawing, flags=re.MULTILINE))
    assert sorted(name for name, what in drawn.items() if "(planned)" not in what) == ROOMS
    # Every file of a room stands in its line, and no other.
    lines = dict(re.findall(r"^- \*\*(\w+)\*\*: (.+(?:\n  .+)*)", text, flags=re.MULTILINE))
    for room in ROOMS:
        files = sorted(path.stem for path in (SOURCE / room).glob("*.py"))
        assert sorted(re.findall(r"`(\w+)`", lines[room])) == files[1:], room  # but __init__
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
            *(
                "train",
                "compare",
                "run",
                "doctor",
                "estimate",
                "plan",
                "evaluate",
                "predict",
                "inspect",
                "merge",
                "verify",
            ),
            *("ranks", "truncate", "combine", "extract"),
        }
    for words in lines:
        if words[0].islower() and not words[0].startswith("-"):
            parsed_command(words)


def test_unknown_flags_in_documents_would_be_found() -> None:
    for words in (["train", "--colour", "red"], ["fit"], ["verify"], ["train", "--epochs", "x"]):
        with pytest.raises(Exception, match=r"."):
            parsed_command(words)


def test_methods_in_documents_are_understood() -> None:
    found = []
    for document in DOCUMENTS:
        found += re.findall(r"--method ([a-z-]+:\S+?)[`\s]", document.read_text(encoding="utf-8"))
    assert found
    for text in found:
        parse_method(text)


def test_the_changelog_has_the_version_and_the_commands() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]", text, flags=re.MULTILINE)
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"`{command.callback.__name__}`" in text
