"""An adapted model copied, pickled and saved whole: the same model, with memory of its own."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deltafit.adapters import activate, adapt, is_adapted, merge, remove_adapter, unmerge
from deltafit.methods import LoRA
from tests.adapters.adapted import anatomy, head_of, logits, new_head, randomise
from tests.tiny_models import tiny_model


def through_torch_save(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "pickle's first protocol": lambda model: pickle.loads(pickle.dumps(model, 0)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_the_same_model_and_shares_nothing(way: str) -> None:
    model = tiny_model("bert")
    before, outputs = anatomy(model), {None: logits(model)}
    adapt(model, LoRA(("query", "word_embeddings")), name="a", head=head_of(model))
    randomise(model, "a")
    outputs["a"] = logits(model)
    adapt(model, LoRA(("value",)), name="b", head=head_of(model), initial=new_head(5))
    randomise(model, "b")
    outputs["b"] = logits(model)
    other = COPIES[way](model)
    assert {**anatomy(other), "identities": 0} == {**anatomy(model), "identities": 0}
    randomise(other, "b", seed=9)
    assert torch.equal(logits(model), outputs["b"])
    assert not torch.equal(logits(other), outputs["b"])
    for name in ("a", None, "a"):
        activate(other, name)
        assert torch.equal(logits(other), outputs[name])
    merge(other)
    merged = COPIES[way](other)
    unmerge(merged)
    assert torch.equal(logits(merged), outputs["a"])
    for name in ("a", "b"):
        remove_adapter(merged, name)
    assert {**anatomy(merged), "identities": 0} == {**before, "identities": 0}


@pytest.mark.parametrize("way", COPIES)
def test_the_hook_of_a_fused_layer_goes_along(way: str) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    adapt(model, LoRA(target_modules="all-linear"))
    randomise(model)
    other, x = COPIES[way](model), torch.randn(2, 5, 16)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
    remove_adapter(other, "default")
    assert not any(m._forward_pre_hooks or is_adapted(m) for m in other.modules())


IN_A_NEW_PROCESS = """
import sys, torch
model, x, y = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(model(x), y)
"""


@pytest.mark.slow
def test_another_process_reads_it(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4)
    adapt(model, LoRA("all-linear"))
    randomise(model)
    torch.save((model, x, model(x).detach()), tmp_path / "model.pt")
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, str(tmp_path / "model.pt")]
    subprocess.run(command, check=True)
