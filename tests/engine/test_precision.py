"""The probe: what it measures, when it believes it, and what it remembers."""

import json
from pathlib import Path

import pytest
import torch

from deltafit.engine import precision, probe_attention, probe_precision
from deltafit.engine.precision import (
    AttentionShape,
    cache_file,
    measure_attention,
    measure_products,
)

SHAPES = ((48, 96), (96, 48))


class Measured:
    """Gives these seconds in the measurement's place, and counts how often it was asked."""

    def __init__(self, float32: float, bf16: float) -> None:
        self.seconds, self.calls = (float32, bf16), 0

    def __call__(self, shapes: object) -> tuple[float, float]:
        self.calls += 1
        return self.seconds


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder than the person's own, and a torch that has oneDNN's bf16."""
    path = tmp_path / "cache" / "precision.json"
    monkeypatch.setattr(precision, "cache_file", lambda: path)
    monkeypatch.setattr(precision, "_has_kernels", lambda: True)
    return path


def measured(monkeypatch: pytest.MonkeyPatch, float32: float, bf16: float) -> Measured:
    found = Measured(float32, bf16)
    monkeypatch.setattr(precision, "measure_products", found)
    return found


@pytest.mark.parametrize(
    ("float32", "bf16", "chosen"),
    [(3.0, 1.0, "bf16"), (1.25, 1.0, "bf16"), (1.15, 1.0, "float32"), (1.0, 4.0, "float32")],
)
def test_bf16_must_be_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, float32: float, bf16: float, chosen: str
) -> None:
    measured(monkeypatch, float32, bf16)
    assert probe_precision(SHAPES) == chosen


def test_what_was_measured_is_remembered(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    first = measured(monkeypatch, 3.0, 1.0)
    assert probe_precision(SHAPES) == "bf16"
    later = measured(monkeypatch, 1.0, 3.0)
    # The same shapes, in whatever order and number, are known; others are not.
    assert probe_precision([*reversed(SHAPES), SHAPES[0]]) == "bf16"
    assert (first.calls, later.calls) == (1, 0)
    assert probe_precision([(48, 48)]) == "float32" and later.calls == 1
    assert sorted(json.loads(cache.read_text()).values()) == ["bf16", "float32"]


def test_another_machine_torch_or_number_of_threads_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = measured(monkeypatch, 3.0, 1.0)
    probe_precision(SHAPES)
    for name in ("processor_key", "torch.__version__", "torch.get_num_threads"):
        with monkeypatch.context() as patch:
            value = "99" if name.endswith("__") else lambda: "99"
            patch.setattr(f"deltafit.engine.precision.{name}", value)
            probe_precision(SHAPES)
    assert found.calls == 4


@pytest.mark.parametrize("content", ["{", "[1]", "", '{"x": 1}', b"\xff"])
def test_a_damaged_cache_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, cache: Path, content: str | bytes
) -> None:
    cache.parent.mkdir()
    cache.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = measured(monkeypatch, 3.0, 1.0)
    assert [probe_precision(SHAPES) for _ in range(2)] == ["bf16"] * 2
    assert found.calls == 1


def test_an_entry_that_says_neither_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    measured(monkeypatch, 3.0, 1.0)
    probe_precision(SHAPES)
    cache.write_text(json.dumps({key: ["int4"] for key in json.loads(cache.read_text())}))
    again = measured(monkeypatch, 3.0, 1.0)
    assert probe_precision(SHAPES) == "bf16" and again.calls == 1


def test_a_cache_that_cannot_be_written_is_no_error(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    cache.parent.write_text("a file where the folder should be")
    found = measured(monkeypatch, 3.0, 1.0)
    assert [probe_precision(SHAPES) for _ in range(2)] == ["bf16"] * 2
    assert found.calls == 2


def test_without_kernels_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_kernels", lambda: False)
    found = measured(monkeypatch, 3.0, 1.0)
    assert probe_precision(SHAPES) == "float32" and not found.calls


def test_attention_is_remembered_by_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Measured(3.0, 1.0)
    monkeypatch.setattr(precision, "measure_attention", found)
    shape = AttentionShape(heads=2, width=8, length=16)
    for known in (shape, shape, shape._replace(width=4), shape._replace(length=32)):
        assert probe_attention(known) == "bf16"
    assert found.calls == 3
    products = measured(monkeypatch, 1.0, 3.0)
    assert probe_precision(SHAPES) == "float32" and products.calls == 1


@pytest.mark.parametrize("length", [2, 16, 10_000])  # as long rows as that take seconds each
def test_attention_is_measured_in_both(length: int) -> None:
    state = torch.get_rng_state()
    with torch.no_grad():
        float32, bf16 = measure_attention(AttentionShape(2, 8, length))
    assert float32 > 0 and bf16 > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_it_measures_both_and_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    with torch.no_grad():  # whatever the caller was doing
        float32, bf16 = measure_products(SHAPES)
    assert float32 > 0 and bf16 > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_the_slower_product_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: float(next(ticks)))
    right = precision.reduced_product

    def slow(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            next(ticks)
        return right(x, weight)

    monkeypatch.setattr(precision, "reduced_product", slow)
    assert measure_products(SHAPES) == (1.0, 7.0)  # three ticks more for each of two layers


def test_the_cache_is_the_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert cache_file().name == "precision.json" and cache_file().parent.name == "deltafit"
    assert cache_file().is_absolute()
