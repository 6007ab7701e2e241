"""A processor's name and key."""

import platform
from pathlib import Path

import pytest

from deltafit.engine.processor import processor_key, processor_name


def listed(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    first = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: first)


def test_a_processor_goes_by_its_instructions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual machine's name may say little."""
    keys = []
    for flags in ("avx2 fma", "fma avx2", "avx2 fma avx512_bf16"):
        listed(monkeypatch, flags)
        assert processor_name() == "Some CPU"
        keys.append(processor_key())
    plain, same, units = keys
    assert plain == same != units and plain.startswith("Some CPU ")


def test_where_the_system_lists_nothing_its_own_word_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert processor_name() == processor_key() == "arm"
