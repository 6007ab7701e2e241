"""The documents say what every method is: tables made from the methods, a section for each."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from deltafit.methods import METHODS, parse_method

ROOT = Path(__file__).parents[1]
METHODS_DOCUMENT = ROOT / "docs" / "methods.md"


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "tables.py"))


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_tables_are_as_the_methods_make_them(tables: dict[str, Any], name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert tables["updated"](text) == text, "say: python docs/tables.py"
    # And a table that has gone stale is made anew.
    row = "| `full` | `Full` |" if name == "README.md" else "| `Full` | replacement |"
    assert row in text
    assert tables["updated"](text.replace(row, "| stale |")) == text


@pytest.mark.slow
def test_counts_are_what_minilm_has(tables: dict[str, Any], minilm_path: Path) -> None:
    text = METHODS_DOCUMENT.read_text(encoding="utf-8")
    assert tables["updated"](text) == text, "say: python docs/tables.py"
    counts = dict(re.findall(r"^\| `(\S+)` \| ([\d,]+) \|", text, flags=re.MULTILINE))
    assert {parse_method(method).command_line_name for method in counts} == set(METHODS)
    # By hand: 6 blocks of width d and inner width f, a pooler, a head for two classes.
    d, f = 384, 1536
    attention = 4 * d * (d + 1) + 2 * d  # with the norm behind it
    block = attention + f * (d + 1) + d * (f + 1) + 2 * d
    pooler, head = d * (d + 1), 2 * (d + 1)
    expected = {
        "head": head,
        "last-block": block + head,
        "freeze-first": 5 * block + pooler + head,
        "modules:pattern=attention": 6 * attention + head,
        "bitfit": d + 6 * (4 * d + f + d + 2 * d) + d + head,
        "norms": 2 * d + 6 * 4 * d + head,
        "lora": 6 * 2 * 8 * 2 * d + head,
        "dora": 6 * 2 * (8 * 2 * d + d) + head,
        "adalora": 6 * 2 * 12 * (2 * d + 1) + head,
        "ia3": 6 * (2 * d + f) + head,
        "vera": 6 * 2 * (d + 256) + head,
        "sparse": 6 * 2 * round(d * d / 5) + head,
    }
    found = {name: int(counts[name].replace(",", "")) for name in expected}
    assert found == expected


def test_every_method_has_its_section() -> None:
    text = METHODS_DOCUMENT.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `([\w-]+)`\n\n((?:(?!^## ).*\n?)+)", text, flags=re.MULTILINE))
    assert list(sections) == list(METHODS)
    for name, section in sections.items():
        assert "*Helps*" in section and "*Costs*" in section, name
        assert "arXiv:" in section, name
    # Settings that stand there exist and have such values.
    for setting in re.findall(r"^- `(\w+=\S+)`", sections["lora"], flags=re.MULTILINE):
        parse_method(f"lora:{setting}")
    for method in re.findall(rf"`((?:{'|'.join(METHODS)}):\S+=\S+)`", text):
        parse_method(method)
