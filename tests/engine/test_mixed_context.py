"""What mixed refuses, and that it leaves nothing behind; PEFT's own mixing as an oracle."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from deltafit.adapters import activate, adapt, load_adapter, merge, read_adapter, remove_adapter
from deltafit.engine import CannotPackError, mixed, packed
from deltafit.errors import DeltafitError
from deltafit.methods import Full, LastBlocks, LoRA
from deltafit.training.gradients import enable_gradient_checkpointing
from tests.adapters.adapted import anatomy, head_of, randomise
from tests.engine.mixes import LENGTHS, METHODS, SEGMENTS, Segment, with_adapters
from tests.engine.ragged import ragged
from tests.tiny_models import tiny_model

WRONG: dict[str, Sequence[Segment]] = {
    "no adapter 'four' or 'five'; it has one, two, three": [("four", 1), ("one", 1), ("five", 1)],
    "at least one segment": [],
    "segment of 'one' has 0 rows": [("two", 1), ("one", 0)],
    "segment of the base alone has -1 rows": [(None, -1)],
}


@pytest.mark.parametrize("sentence", WRONG)
def test_segments_that_are_none(sentence: str) -> None:
    model = with_adapters(tiny_model("bert"))
    before = anatomy(model)
    with pytest.raises(DeltafitError, match=sentence), mixed(model, WRONG[sentence]):
        pass
    assert anatomy(model) == before


@pytest.mark.parametrize("by_name", [False, True])
def test_another_number_of_rows(by_name: bool) -> None:
    model, batch = with_adapters(tiny_model("bert")), ragged((4, 3))
    sentence = r"batch has 2 rows, and the segments have 3 \('one': 1, the base alone: 2\)"
    with mixed(model, [("one", 1), (None, 2)]):
        with pytest.raises(DeltafitError, match=sentence):
            model(**batch) if by_name else model(batch["input_ids"])
        with pytest.raises(DeltafitError, match="first dimension is not made of the 3 rows"):
            model.bert(**batch)
        with packed(model), pytest.raises(DeltafitError, match="2 rows, and the segments have 3"):
            model.bert(**batch)
        model(**ragged((4, 3, 1)))


def test_a_merged_adapter() -> None:
    model = with_adapters(tiny_model("bert"))
    activate(model, "one")
    merge(model)
    with pytest.raises(DeltafitError, match="'one' is merged"), mixed(model, [("one", 1)]):
        pass


def test_a_base_that_is_gone() -> None:
    model = tiny_model("bert")
    adapt(model, Full(), name="full", keep_base=False)
    model(**ragged((2,)))
    expected = model(**ragged((2,))).logits
    with mixed(model, [("full", 1)]):
        assert torch.equal(model(**ragged((2,))).logits, expected)
    gone = pytest.raises(DeltafitError, match="not kept, so the base alone cannot run")
    with gone, mixed(model, [("full", 1), (None, 1)]):
        pass


def test_one_in_another() -> None:
    model = with_adapters(tiny_model("bert"))
    with mixed(model, [("one", 1)]):
        refused = pytest.raises(DeltafitError, match="several adapters already")
        with refused, mixed(model, [("two", 1)]):
            pass
        model(**ragged((3,)))


class TwoScales(nn.Module):
    """Gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.scale, x + self.scale


class Gated(nn.Module):
    """Blocks in a model with a gate of its own, and a table that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.table = nn.Embedding(3, 4)
        self.gate = nn.Parameter(torch.ones(4))
        self.scales = TwoScales()

    def forward(self, x: Tensor) -> Tensor:
        x = self.scales(x)[0]
        for block in self.blocks:
            x = block(x)
        return x * self.gate + self.table.weight[1]


UNSHAREABLE: dict[str, Sequence[str]] = {
    "gate of the model itself is trained whole, .* holds one of the blocks": ["gate"],
    "weight of table is trained whole, .* without calling": ["table.weight"],
    "scales is trained whole and gives a tuple": ["scales.scale"],
}


@pytest.mark.parametrize("sentence", UNSHAREABLE)
def test_modules_that_cannot_run_once_a_segment(sentence: str) -> None:
    model, x = Gated(), torch.randn(2, 3, 4)
    for name in ("one", "two"):
        adapt(model, LoRA(("blocks.0.0",), rank=1), name=name, head=UNSHAREABLE[sentence])
    activate(model, None)
    before = anatomy(model)
    if "calling" in sentence:  # with the same values it does not matter
        with mixed(model, [("one", 1), ("two", 1)]):
            model(x)
    randomise(model, "two")
    with pytest.raises(DeltafitError, match=sentence), mixed(model, [("one", 1), ("two", 1)]):
        model(x)
    randomise(model, "two", std=0)
    assert anatomy(model)["attributes"] == before["attributes"]
    assert anatomy(model)["hooks"] == before["hooks"]


def test_a_module_that_reads_how_the_batch_is_packed() -> None:
    model = tiny_model("bert")
    attention = model.bert.encoder.layer[0].attention.self
    attention.register_parameter("own", nn.Parameter(torch.zeros(1)))
    for name in ("one", "two"):
        adapt(model, LoRA(rank=1), name=name, head=["bert.encoder.layer.0.attention.self.own"])
    refused = pytest.raises(CannotPackError, match="self is trained whole and reads how the batch")
    with mixed(model, [("one", 1), ("two", 1)]), packed(model), refused:
        model(**ragged((4, 2)))


@pytest.mark.parametrize("run_packed", [False, True])
@pytest.mark.parametrize("active", [None, "one", "last"])
def test_the_model_is_left_as_it_was(active: str | None, run_packed: bool) -> None:
    model = with_adapters(tiny_model("bert"))
    adapt(model, LastBlocks(1), name="last", head=head_of(model))
    activate(model, active)
    enable_gradient_checkpointing(model)
    block = model.bert.encoder.layer[1]
    before, checkpoint = anatomy(model), block._gradient_checkpointing_func
    segments = [*SEGMENTS[:-1], ("last", 1)]
    with mixed(model, segments):
        assert list(model.state_dict()) == before["keys"]
        assert anatomy(model)["gradients"] == before["gradients"]
        assert anatomy(model)["identities"] == before["identities"]
        with packed(model) if run_packed else nullcontext():
            model(**ragged(LENGTHS))
    assert anatomy(model) == before
    assert block._gradient_checkpointing_func is checkpoint
    with pytest.raises(RuntimeError, match="stop"), mixed(model, segments):
        hook = block.register_forward_hook(_stop)
        try:
            model(**ragged(LENGTHS))
        finally:
            hook.remove()
    assert anatomy(model) == before
    for name in ("one", "two", "three", "last"):
        remove_adapter(model, name)
    assert model(**ragged(LENGTHS)).logits.isfinite().all()


def _stop(*args: Any) -> None:
    raise RuntimeError("stop")


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "llama"])
def test_peft_mixes_to_the_same(architecture: str, tmp_path: Path) -> None:
    targets = {"bert": ["query", "dense"], "roberta": ["query", "dense"], "gpt2": ["c_attn"]}
    wanted = targets.get(architecture, ["q_proj", "down_proj"])
    theirs: Any = None
    for seed, (name, method) in enumerate(METHODS.items()):
        assert isinstance(method, LoRA)
        config = peft.LoraConfig(r=method.rank, lora_alpha=method.alpha, target_modules=wanted)
        if theirs is None:
            theirs = peft.get_peft_model(tiny_model(architecture), config, adapter_name=name)
        else:
            theirs.add_adapter(name, config)
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in theirs.named_parameters():
            if f".{name}." in key:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    theirs.eval().save_pretrained(tmp_path)
    ours = tiny_model(architecture)
    for name in METHODS:
        load_adapter(ours, read_adapter(tmp_path / name), name=name)
    batch = ragged(LENGTHS)
    names = [adapter or "__base__" for adapter, count in SEGMENTS for _ in range(count)]
    with torch.inference_mode():
        expected = theirs(**batch, adapter_names=names).logits
        with mixed(ours, SEGMENTS):
            padded = ours(**batch).logits
        with mixed(ours, SEGMENTS), packed(ours):
            found = ours(**batch).logits
    torch.testing.assert_close(padded, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
