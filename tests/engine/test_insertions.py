"""Insertions in the engine: packed, beside others in one pass, and above a frozen prefix."""

from contextlib import nullcontext

import pytest
import torch

from deltafit.adapters import activate, adapt
from deltafit.engine import check_packing, find_prefix, mixed, packed
from deltafit.engine.checking import find_reading
from deltafit.errors import DeltafitError
from deltafit.methods import Bottleneck, LoRA, Method, Prefix, Prompt
from deltafit.tasks.classification import logits_of
from tests.adapters.adapted import head_of, randomise
from tests.engine.mixes import LENGTHS, assert_each_has_its_own, with_adapters
from tests.engine.ragged import PACKABLE, classifier, ragged, shapes_in_blocks
from tests.tiny_models import tiny_model

BATCH = ragged((9, 5, 1, 5, 7))
BESIDE: dict[str, Method] = {
    "one": Bottleneck(size=3),
    "two": LoRA(target_modules="all-linear", rank=4),
    "three": Bottleneck(size=5, variant="pfeiffer", activation="tanh", layers=(0, 2)),
}


@pytest.mark.parametrize("method", [Bottleneck(size=4), Prefix(count=3)], ids=str)
@pytest.mark.parametrize("architecture", PACKABLE)
def test_they_run_packed(architecture: str, method: Method) -> None:
    model = classifier(architecture)
    adapt(model, method, head=head_of(model))
    randomise(model)
    assert check_packing(model, BATCH) is None
    left = ragged((9, 5, 1, 5, 7), left=True)
    expected = logits_of(model, left)
    with packed(model), shapes_in_blocks(model) as shapes:
        model(**BATCH)
        torch.testing.assert_close(logits_of(model, left), expected, rtol=1e-5, atol=1e-5)
    assert shapes == [(1, 27), (5, 9)]  # padded on the left it runs padded


@pytest.mark.parametrize("method", [Bottleneck(size=4), Prefix(count=3)], ids=str)
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_in_a_last_block_for_first_tokens(architecture: str, method: Method) -> None:
    model = tiny_model(architecture)
    adapt(model, method, head=head_of(model))
    randomise(model)
    assert find_reading(model, BATCH) is not None


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "t5"])
def test_prompts_run_packed_and_all_of_them_in_the_last_block(architecture: str) -> None:
    model = classifier(architecture)
    adapt(model, Prompt(count=3), head=head_of(model))
    randomise(model)
    assert check_packing(model, BATCH) is None
    assert find_reading(model, BATCH) is None  # the first token of a row is a virtual one
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert find_prefix(model, trained, BATCH) is None
    with packed(model), shapes_in_blocks(model) as shapes:
        model(**BATCH)
    assert shapes == [(1, 27 + 5 * 3)]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_dropped_attention_weights_have_the_mean_of_those_that_are_kept(architecture: str) -> None:
    """On a sheet on a CPU dropout goes through attention that is written out."""
    model = tiny_model(architecture, task="base").double()
    adapt(model, Prefix(count=3))
    randomise(model)
    block = next(m for n, m in model.named_modules() if n.endswith(("layer.0", "h.0")))
    expected, kept = [], []
    names = ("attention.self", "attn")
    attention = next(m for n, m in block.named_modules() if n in names)
    for dropout, found in ((0.0, expected), (0.2, kept)):
        attention.train(dropout > 0)
        dropped = attention.dropout if architecture == "bert" else attention.attn_dropout
        dropped.p = dropout
        hook = attention.register_forward_hook(
            lambda module, args, output, found=found: found.append(output[0].detach())
        )
        with packed(model), torch.no_grad():
            for seed in range(200 if dropout else 1):
                torch.manual_seed(seed)
                model(**BATCH)
        hook.remove()
    mean = torch.stack(kept).mean(0)
    assert not torch.allclose(kept[0], kept[1])
    assert float((mean - expected[0]).norm() / expected[0].norm()) < 0.1


@pytest.mark.parametrize("run_packed", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_each_row_goes_through_its_own(architecture: str, run_packed: bool) -> None:
    model = with_adapters(tiny_model(architecture).double(), BESIDE)
    with packed(model) if run_packed else nullcontext():
        assert_each_has_its_own(model, ragged(LENGTHS))


@pytest.mark.parametrize("run_packed", [False, True])
def test_virtual_tokens_share_no_pass(run_packed: bool) -> None:
    virtual: dict[str, Method] = {"four": Prefix(count=2), "five": Prompt(count=3)}
    methods: dict[str, Method] = {**BESIDE, "three": LoRA(rank=1), **virtual}
    model, batch = with_adapters(tiny_model("bert").double(), methods), ragged(LENGTHS)
    with packed(model) if run_packed else nullcontext():
        # The model's attention carries an adapter that has no part in this pass.
        assert_each_has_its_own(model, batch)
        for active in ("one", "four", "five"):  # which has no say within
            activate(model, active)
            assert_each_has_its_own(model, batch)
            assert_each_has_its_own(model, batch, [("four", len(LENGTHS))])
            assert_each_has_its_own(model, batch, [("five", len(LENGTHS))])
    with pytest.raises(DeltafitError, match=r"'four' \(prefix\) has virtual tokens"):
        mixed(model, [("four", 3), ("one", 4)]).__enter__()


@pytest.mark.parametrize(
    "method", [Bottleneck(size=4, layers=(-1,)), Prefix(count=2, layers=(-1,))], ids=str
)
def test_what_lies_below_is_a_constant(method: Method) -> None:
    model = tiny_model("bert")
    adapt(model, method, head=head_of(model))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    prefix = find_prefix(model, trained, BATCH)
    assert prefix is not None and len(prefix.blocks) == 2 and not prefix.whole
