"""Prefix and prompt tuning beside PEFT's: logits, gradients and files."""

import json
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

from deltafit.adapters import adapt, adapter_tensors, load_adapter, read_adapter, save_adapter
from deltafit.adapters.saving import CONFIG_FILE
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import Method, Prefix, Prompt
from tests.adapters.adapted import head_of, in_peft, logits, randomise, through_peft
from tests.tiny_models import tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EXACT = {"rtol": 1e-5, "atol": 1e-5}
COUNT = 4
SHIFTED = Prefix(count=COUNT, shift_positions=True)
WITH_A_CACHE = ["bert", "roberta", "electra", "gpt2", "gpt_neox", "opt", "llama", "qwen2", "qwen3"]


def one_row(model: nn.Module) -> dict[str, Tensor]:
    """One text without padding: PEFT gives embeddings alone, and so its head of a decoder reads the
    last place of every row, padding or not."""
    return {name: tensor[:1] for name, tensor in tiny_inputs(model).items()}


def theirs_of(architecture: str, method: Method) -> nn.Module:
    kind = peft.PrefixTuningConfig if isinstance(method, Prefix) else peft.PromptTuningConfig
    config = kind(task_type="SEQ_CLS", num_virtual_tokens=COUNT)
    wrapped = peft.get_peft_model(tiny_model(architecture), config).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return wrapped


def test_positions_may_be_counted_from_behind() -> None:
    """As a plain model counts that is told the positions."""
    method, own = Prefix(count=3, shift_positions=True), Prefix(count=3)
    for architecture in ("bert", "roberta", "gpt2", "llama"):
        model, plain = tiny_model(architecture), tiny_model(architecture)
        for each, chosen in ((model, method), (plain, own)):
            adapt(each, chosen)
            randomise(each)
        batch = tiny_inputs(model, batch=1)
        places = torch.arange(batch["input_ids"].shape[1])[None]
        first = 1 + model.config.pad_token_id if architecture == "roberta" else 0
        with torch.no_grad():
            expected = plain(**batch, position_ids=places + first + 3).logits
            found = model(**batch).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if architecture in ("gpt2", "llama"):
            with torch.no_grad():
                found = model(**batch, position_ids=places).logits
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="Give one of them"):
        Prefix(layers=(0,), shift_positions=True)


@pytest.mark.parametrize("architecture", WITH_A_CACHE)
def test_a_prefix_loads_in_peft_and_comes_back(architecture: str, tmp_path: Path) -> None:
    through_peft(architecture, SHIFTED, tmp_path)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
def test_a_prompt_loads_in_peft_and_comes_back(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    adapt(model, Prompt(count=COUNT), head=head_of(model))
    randomise(model)
    save_adapter(model, tmp_path, base_name="somewhere", task_type="SEQ_CLS")
    theirs = in_peft(architecture, tmp_path)
    with torch.no_grad():
        adapted, found = model(**one_row(model)).logits, theirs(**one_row(model)).logits
    torch.testing.assert_close(found, adapted, **EXACT)
    assert not torch.allclose(adapted, logits(tiny_model(architecture))[:1], atol=1e-2)
    theirs.save_pretrained(tmp_path / "again")
    for one in (tmp_path, tmp_path / "again"):
        again = tiny_model(architecture)
        load_adapter(again, stored := read_adapter(one))
        assert stored.method == Prompt(count=COUNT) and stored.notes == ()
        assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        *((architecture, SHIFTED) for architecture in ("gpt2", "llama", "bert")),
        *((architecture, Prompt(count=COUNT)) for architecture in ("gpt2", "llama")),
    ],
    ids=str,
)
def test_gradients_are_pefts(architecture: str, method: Method, tmp_path: Path) -> None:
    theirs = theirs_of(architecture, method)
    theirs.save_pretrained(tmp_path)
    model = tiny_model(architecture)
    load_adapter(model, read_adapter(tmp_path), trainable=True)
    ours = [t for n, t in adapter_tensors(model, "default").items() if "pre" in n or "prompt" in n]
    for each in (model, theirs):
        each(**one_row(model)).logits.square().sum().backward()
    expected = theirs.prompt_encoder["default"].embedding.weight.grad
    found = torch.cat([tensor.grad for tensor in ours], 1)
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_perceptron_of_pefts_is_in_its_table(tmp_path: Path) -> None:
    config = peft.PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=6
    )
    theirs = peft.get_peft_model(tiny_model("bert"), config).eval()
    theirs.save_pretrained(tmp_path)
    model = tiny_model("bert")
    load_adapter(model, stored := read_adapter(tmp_path))
    assert stored.method == Prefix(count=3, shift_positions=True) and stored.notes == ()
    torch.testing.assert_close(logits(model), logits(theirs), **EXACT)


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        ("bert", Prefix(count=2)),  # positions are counted otherwise
        ("distilbert", Prefix(count=2)),
        ("gpt2", Prefix(count=2, layers=(0,))),
        ("bert", Prompt(count=2)),  # whose head reads the first token
        ("modernbert", Prompt(count=2)),
    ],
    ids=str,
)
def test_what_peft_computes_otherwise_is_saved_for_deltafit_alone(
    architecture: str, method: Method, tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    adapt(model, method, head=head_of(model))
    randomise(model)
    save_adapter(model, tmp_path, task_type="SEQ_CLS")
    assert not (tmp_path / CONFIG_FILE).exists()
    again = tiny_model(architecture)
    load_adapter(again, stored := read_adapter(tmp_path))
    assert stored.method == method and torch.equal(logits(again), logits(model))


def test_a_prompt_of_pefts_for_an_encoder_is_refused(tmp_path: Path) -> None:
    theirs_of("bert", Prompt()).save_pretrained(tmp_path)
    model = tiny_model("bert")
    before = logits(model)
    with pytest.raises(DeltafitError, match="its head may read the first token"):
        load_adapter(model, read_adapter(tmp_path))
    assert torch.equal(logits(model), before)


def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    theirs_of("gpt2", SHIFTED).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["peft_type"] == "PREFIX_TUNING"
    with pytest.raises(DeltafitError, match=r"has the shape .* and not"):
        load_adapter(tiny_model("llama"), read_adapter(tmp_path))
