"""Several adapters as one: sums of Δ, TIES and DARE, against the formulas and against PEFT."""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from torch import Tensor

from deltafit.adapters import StoredAdapter, adapt, load_adapter, read_adapter, save_adapter
from deltafit.adapters.combination import (
    Combination,
    combined_changes,
    combined_whole,
    dare,
    stacked,
    ties,
)
from deltafit.adapters.low_rank import Change, stored_of
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import DoRA, LoRA
from tests.adapters.adapted import logits, randomise
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

METHODS = (
    LoRA(("query", "word_embeddings"), rank=3, alpha=5),
    LoRA(("query", "value"), rank=2, scaling="alpha"),
    LoRA(("value", "key"), rank=4, scaling="alpha/sqrt(r)"),
)
WEIGHTS = (0.7, -0.4, 1.3)


def on_disk(folder: Path, methods: Sequence[LoRA] = METHODS) -> list[StoredAdapter]:
    stored = []
    for number, method in enumerate(methods):
        model = tiny_model("bert")
        adapt(model, method)
        randomise(model, seed=number, std=0.2)
        save_adapter(model, folder / str(number))
        stored.append(read_adapter(folder / str(number)))
    return stored


def dense(changes: dict[str, Change]) -> dict[str, Tensor]:
    return {name: change.dense() for name, change in sorted(changes.items())}


def combine(stored: Sequence[StoredAdapter], **settings: Any) -> dict[str, Change]:
    named = [str(number) for number in range(len(stored))]
    return combined_changes(stored, Combination(**settings), named).adapter


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=0, atol=atol)


def changes(count: int, seed: int, outputs: int = 5, inputs: int = 4) -> list[Change]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        Change(0.5 + number, random(outputs, number + 1), random(number + 1, inputs))
        for number in range(count)
    ]


@hypothesis_settings(deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    st.integers(0, 10**6),
)
def test_stacked_factors_are_the_sum_of_the_changes(weights: list[float], seed: int) -> None:
    those = changes(len(weights), seed)
    expected = sum(w * c.factor * (c.left @ c.right) for w, c in zip(weights, those, strict=True))
    found = stacked(those, weights)
    assert found.rank == sum(change.rank for change in those)
    torch.testing.assert_close(found.dense(), expected, rtol=0, atol=1e-10)


@hypothesis_settings(deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(3)), st.floats(0.05, 1))
def test_the_order_does_not_matter(seed: int, order: list[int], density: float) -> None:
    those = changes(3, seed)
    moved, weights = [those[i] for i in order], [WEIGHTS[i] for i in order]
    first, other = stacked(those, WEIGHTS), stacked(moved, weights)
    torch.testing.assert_close(first.dense(), other.dense(), rtol=0, atol=1e-12)
    one = ties([change.dense() for change in those], WEIGHTS, density)
    two = ties([change.dense() for change in moved], weights, density)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_the_order_of_whole_adapters_does_not_matter(tmp_path: Path) -> None:
    stored = on_disk(tmp_path)
    for settings in ({}, {"way": "svd", "rank": 3}, {"way": "ties", "density": 0.3, "rank": 3}):
        found = [
            dense(
                combine([stored[i] for i in order], weights=[WEIGHTS[i] for i in order], **settings)
            )
            for order in permutations(range(3))
        ]
        for other in found[1:]:
            assert_same(other, found[0], atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"way": "svd"}, {"way": "svd", "rank": 9}], ids=str)
def test_one_adapter_of_weight_1_keeps_its_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    for method in METHODS:
        (stored,) = on_disk(tmp_path, [method])
        result = stored_of(combine([stored], weights=(1.0,), **settings), {})
        for name, tensor in stored.tensors.items():
            assert torch.equal(result.tensors[name], tensor), name
        models = [tiny_model("bert"), tiny_model("bert")]
        for model, one in zip(models, (stored, result), strict=True):
            load_adapter(model, one)
        assert torch.equal(logits(models[0]), logits(models[1]))


def test_one_adapter_through_ties_or_dare_that_leave_all(tmp_path: Path) -> None:
    (stored,) = on_disk(tmp_path, METHODS[:1])
    expected = dense(combine([stored]))
    for way in ("ties", "dare"):
        found = combine([stored], way=way, density=1.0, rank=3)
        assert_same(dense(found), expected, atol=1e-5)


PEFTS = [
    ("cat", {}, {"way": "linear"}),
    ("svd", {"svd_rank": 3}, {"way": "svd", "rank": 3}),
    ("ties_svd", {"svd_rank": 4, "density": 0.3}, {"way": "ties", "rank": 4, "density": 0.3}),
]


def pefts(folder: Path, kind: str, **settings: Any) -> dict[str, Tensor]:
    """What PEFT's add_weighted_adapter makes, each Δ as ``[outputs, inputs]``."""
    model = peft.PeftModel.from_pretrained(tiny_model("bert"), folder / "0", adapter_name="a0")
    names = [f"a{number}" for number in range(len(METHODS))]
    for number, name in list(enumerate(names))[1:]:
        model.load_adapter(folder / str(number), adapter_name=name)
    model.base_model.add_weighted_adapter(
        names, list(WEIGHTS), "all", combination_type=kind, **settings
    )
    found = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            delta = module.get_delta_weight("all").detach()
            found[name] = delta.T if "all" in module.lora_embedding_A else delta
    return dict(sorted(found.items()))


@pytest.mark.parametrize(("kind", "theirs", "ours"), PEFTS)
def test_pefts_combination_on_the_change_is_ours(
    kind: str, theirs: dict[str, Any], ours: dict[str, Any], tmp_path: Path
) -> None:
    found = dense(combine(on_disk(tmp_path), weights=WEIGHTS, **ours))
    assert_same(found, pefts(tmp_path, kind, **theirs), atol=1e-5)


def test_pefts_linear_has_products_across_adapters(tmp_path: Path) -> None:
    same = [LoRA(("query",), rank=2), LoRA(("query",), rank=2), LoRA(("query",), rank=2)]
    found = dense(combine(on_disk(tmp_path, same), weights=WEIGHTS))
    theirs = pefts(tmp_path, "linear")
    assert found.keys() == theirs.keys()
    assert not any(torch.allclose(found[n].float(), theirs[n], atol=1e-2) for n in found)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_and_dare_are_pefts_formulas(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = [change.dense() for change in changes(3, 1, 8, 7)]
    scale = torch.tensor(WEIGHTS, dtype=torch.float64)
    expected = merge_utils.ties(deltas, scale, density)
    torch.testing.assert_close(ties(deltas, WEIGHTS, density), expected)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    masks = [
        (torch.rand(8, 7, generator=generator, dtype=torch.float64) < density).double()
        for generator in generators()
    ]
    remaining = iter(masks)
    monkeypatch.setattr(torch, "bernoulli", lambda input: next(remaining))
    expected = merge_utils.dare_linear(deltas, scale, density)
    torch.testing.assert_close(dare(deltas, WEIGHTS, density, generators()), expected)


def test_ties_by_hand() -> None:
    one = torch.tensor([[4.0, -3.0, 0.1, 2.0]])
    two = torch.tensor([[2.0, 5.0, -6.0, -0.2]])
    # Half of each is left: [4, -3, 0, 0] and [0, 5, -6, 0]; of 2 = -3 + 5 the sign is that of 5.
    found = ties([one, two], (1.0, 1.0), 0.5)
    torch.testing.assert_close(found, torch.tensor([[4.0, 5.0, -6.0, 0.0]]))
    both = ties([one, two], (1.0, 0.5), 1.0)
    torch.testing.assert_close(both, torch.tensor([[2.5, 2.5, -3.0, 2.0]]))


def test_dare_keeps_the_expectation_and_depends_on_the_seed(tmp_path: Path) -> None:
    delta = torch.tensor([[3.0, -2.0], [0.5, 1.0]], dtype=torch.float64)
    drawn = [
        dare([delta], (0.5,), 0.25, [torch.Generator().manual_seed(seed)]) for seed in range(4000)
    ]
    assert all(bool(((one == 0) | (one == 2 * delta)).all()) for one in drawn)
    torch.testing.assert_close(torch.stack(drawn).mean(0), 0.5 * delta, rtol=0, atol=0.2)
    stored = on_disk(tmp_path)
    settings: dict[str, Any] = {"way": "dare", "density": 0.5, "rank": 32}
    one, again = (dense(combine(stored, **settings, seed=3)) for _ in range(2))
    other = dense(combine(stored, **settings, seed=4))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.allclose(one[name], other[name], atol=1e-2) for name in one)


def test_the_exact_combination_and_its_cut_differ_by_what_is_said(tmp_path: Path) -> None:
    stored = on_disk(tmp_path)
    for settings in (
        {"way": "svd"}, {"way": "svd", "energy": 0.8}, {"way": "ties", "density": 0.2},
        {"way": "dare", "density": 0.5, "energy": 0.6},
    ):  # fmt: skip
        found = combined_changes(stored, Combination(**settings), "abc")  # type: ignore[arg-type]  # a string is a sequence of names
        for loss in found.losses:
            exact, kept = found.exact[loss.name].dense(), found.adapter[loss.name].dense()
            distance = float((exact - kept).norm() / exact.norm())
            assert distance == pytest.approx(loss.error, abs=1e-5)
            assert loss.error**2 <= 1 - settings.get("energy", 0.0) + 1e-6
            assert loss.rank <= 4 or "energy" in settings  # the largest of the adapters' ranks


def test_what_is_stored_whole() -> None:
    base = {"norm.weight": torch.tensor([1.0, 1.0])}
    one = StoredAdapter(LoRA(), {"head": torch.tensor([1.0, 2.0])}, ("head",))
    other = StoredAdapter(
        LoRA(),
        {"head": torch.tensor([3.0, 6.0]), "norm.weight": torch.tensor([2.0, 0.0])},
        ("head", "norm.weight"),
    )
    mean = combined_whole([one, other], (1.0, 3.0), base, ["head"], None)
    assert mean["head"].tolist() == [2.5, 5.0]
    assert mean["norm.weight"].tolist() == [4.0, -2.0]  # 1 + 3·(2 - 1) and 1 + 3·(0 - 1)
    for index, expected in enumerate(([1.0, 2.0], [3.0, 6.0])):
        assert combined_whole([one, other], (1.0, 3.0), base, ["head"], index)["head"].tolist() == (
            expected
        )
    with pytest.raises(UsageError, match="add up to zero"):
        combined_whole([one, other], (1.0, -1.0), base, ["head"], None)
    assert combined_whole([one, other], (1.0, -1.0), base, ["head"], 0)["head"].tolist() == [1, 2]


def test_a_module_adapted_here_and_whole_there_is_refused(tmp_path: Path) -> None:
    whole = ("bert.encoder.layer.0.attention.self.query",)
    methods = [LoRA(("query",)), LoRA(("value",), trained_modules=whole)]
    with pytest.raises(DeltafitError, match=r"1 stores 'bert\..*query.*' whole, and another"):
        combine(on_disk(tmp_path, methods))


def test_dora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeltafitError, match="1 holds an adapter of the method dora"):
        combine(on_disk(tmp_path, [LoRA(("query",)), DoRA(("query",))]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"way": "slerp"}, "way must be one of linear, svd, ties, dare"),
        ({"weights": (float("inf"),)}, "weights must be finite"),
        ({"rank": 3}, "not for linear"),
        ({"way": "ties"}, "density, the share"),
        ({"density": 0.5}, "density, the share"),
        ({"way": "dare", "density": 0.0}, "density must be above 0"),
        ({"way": "svd", "rank": 2, "energy": 0.5}, "give one of them"),
        ({"way": "svd", "energy": 2.0}, "energy must be"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Combination(**settings)


def test_weights() -> None:
    assert Combination().weights_of(4) == (0.25,) * 4
    assert Combination("ties", density=0.2).weights_of(3) == (1.0,) * 3
    with pytest.raises(UsageError, match="weights must be one for each adapter; got 1 for 2"):
        Combination(weights=(1.0,)).weights_of(2)
