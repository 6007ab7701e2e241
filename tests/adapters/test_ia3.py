"""(IA)³ against PEFT's and the paper's formula."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from deltafit.adapters import (
    adapt,
    adapter_tensors,
    layer_state,
    load_adapter,
    merge,
    model_adapters,
    read_adapter,
    save_adapter,
    unmerge,
)
from deltafit.adapters.targets import DEFAULT_TARGETS, select_targets
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import IA3, parse_method
from tests.adapters.adapted import (
    anatomy,
    gradients_beside_peft,
    head_of,
    logits,
    randomise,
    through_peft,
)
from tests.adapters.test_law import OneLayer, example, make
from tests.tiny_models import ARCHITECTURES, LAYERS, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EXACT = {"rtol": 1e-5, "atol": 1e-5}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ARCHITECTURES),
    ("bert", {"target_modules": ("key", "dense"), "feedforward_modules": ("output.dense",)}),
    ("llama", {"target_modules": "all-linear", "layers": (0, -1)}),
    ("gpt2", {"feedforward_modules": ()}),
]


def theirs_with_values(model: nn.Module, **settings: Any) -> nn.Module:
    """PEFT's adapter with random values."""
    config = peft.IA3Config(task_type="SEQ_CLS", **settings)
    theirs = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = 1 + 0.3 * torch.randn(parameter.shape, generator=generator)
    return theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("feedforward", [False, True])
def test_the_formulas_of_the_paper(kind: str, bias: bool, feedforward: bool) -> None:
    model, x = make(kind, 7, 5, bias), example(kind, 7, (2, 3), 0).requires_grad_()
    plain = make(kind, 7, 5, bias).layer
    plain.load_state_dict(model.layer.state_dict())
    adapt(model, IA3(("layer",), feedforward_modules=("layer",) if feedforward else ()))
    randomise(model)
    (vector,) = adapter_tensors(model, "default").values()
    expected = plain(vector * x) if feedforward else vector * plain(x)
    state = layer_state(model.layer)
    reference = state.view.forward_with(state.deltas("default"), x)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [vector, x], direction)
    for found in (model(x), reference):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        gradients = torch.autograd.grad(found, [vector, x], direction)
        torch.testing.assert_close(gradients, wanted, rtol=1e-12, atol=1e-12)
    merge(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    unmerge(model)
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in _base(model.layer).items())


def _base(layer: nn.Module) -> dict[str, Tensor]:
    return {
        name: getattr(layer, name)
        for name in ("weight", "bias")
        if getattr(layer, name, None) is not None
    }


def test_an_embedding_is_scaled_by_features() -> None:
    model, x = make("embedding", 7, 5), example("embedding", 7, (2, 3), 0)
    adapt(model, IA3(("layer",)))
    randomise(model)
    (vector,) = adapter_tensors(model, "default").values()
    expected = functional.embedding(x, model.layer.weight) * vector
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    merge(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_what_has_no_input_to_scale_is_refused() -> None:
    model = make("embedding", 7, 5)
    with pytest.raises(DeltafitError, match="layer is an embedding, which has no input to scale"):
        adapt(model, IA3(("layer",), feedforward_modules=("layer",)))
    assert not model_adapters(model).adapters


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_defaults_are_keys_values_and_the_second_feed_forward_layer(architecture: str) -> None:
    model, method = tiny_model(architecture), IA3()
    targets = select_targets(model, None, defaults=method.default_targets)
    scaled = [t for t in targets if method.for_module(t).scales_inputs]
    packed = architecture in ("modernbert", "gpt2", "gpt_neox")
    assert len(scaled) == LAYERS and len(targets) == (2 if packed else 3) * LAYERS
    shapes = {tuple(model.get_submodule(name).weight.shape) for name in scaled}
    assert shapes == {(48, 32) if architecture == "gpt2" else (32, 48)}
    assert not any("attention.output" in name or "attn" in name for name in scaled)


def test_defaults_are_those_of_peft_where_it_scales_keys_and_values() -> None:
    theirs = peft.utils.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    for architecture in ("gpt2", "gpt_neox", "llama", "mistral"):
        assert list(IA3.default_targets[architecture]) == theirs[architecture]
    # In BERT's family PEFT's output.dense is attention's too; elsewhere it scales queries.
    model = tiny_model("bert")
    wider = select_targets(model, tuple(theirs["bert"]), exclude=head_of(model))
    ours = select_targets(model, None, defaults=IA3.default_targets)
    assert set(wider) - set(ours) == {
        f"bert.encoder.layer.{index}.attention.output.dense" for index in range(LAYERS)
    }
    assert set(IA3.default_targets) == set(DEFAULT_TARGETS)


@pytest.mark.parametrize(("architecture", "settings"), SETTINGS, ids=str)
def test_ours_loads_in_peft_and_comes_back(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    _, theirs = through_peft(architecture, IA3(**settings), tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    own = peft.get_peft_model_state_dict(theirs)
    assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in stored.items()}


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("bert", {}),
        ("llama", {}),
        ("opt", {}),
        ("gpt2", {"fan_in_fan_out": True}),
        ("bert", {"target_modules": ["key", "dense"], "feedforward_modules": []}),
        (
            "bert",
            {
                "target_modules": r".*\.(key|output\.dense)",
                "feedforward_modules": r".*\.\d\.output\.dense",
            },
        ),
    ],
    ids=str,
)
def test_theirs_loads_here(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = theirs_with_values(tiny_model(architecture), **settings)
    theirs.save_pretrained(tmp_path)
    model = tiny_model(architecture)
    before = anatomy(model)
    load_adapter(model, stored := read_adapter(tmp_path))
    assert stored.notes == () and anatomy(model) != before
    torch.testing.assert_close(logits(model), logits(theirs), **EXACT)
    merge(model)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_gradients_are_pefts(architecture: str, tmp_path: Path) -> None:
    gradients, named = gradients_beside_peft(architecture, IA3(), tmp_path)
    vectors = {n: gradient for n, gradient in gradients.items() if n.endswith(".ia3_l")}
    assert len(vectors) == sum(n.endswith(".ia3_l.default") for n in named)
    for name, gradient in vectors.items():
        theirs_grad = named[f"{name}.default"]
        assert theirs_grad is not None
        torch.testing.assert_close(gradient, theirs_grad.flatten(), rtol=1e-4, atol=1e-5)


def test_one_name_is_the_end_of_another(tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), OneLayer(nn.Sequential(nn.Linear(4, 4))))

    ours, x = model(), torch.randn(3, 4)
    adapt(ours, IA3("0|1.layer.0", feedforward_modules="0"))
    randomise(ours)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(model(), tmp_path)
    torch.testing.assert_close(theirs(x), ours(x))
    theirs.save_pretrained(tmp_path / "again")
    again = model()
    load_adapter(again, read_adapter(tmp_path / "again"))
    assert torch.equal(again(x), ours(x))


def test_an_embedding_leaves_no_configuration_that_peft_would_stumble_over(tmp_path: Path) -> None:
    model = tiny_model("bert")
    adapt(model, IA3(("word_embeddings", "key")), head=head_of(model))
    randomise(model)
    save_adapter(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_model.safetensors"]
    again = tiny_model("bert")
    load_adapter(again, read_adapter(tmp_path))
    assert torch.equal(logits(again), logits(model))


def test_files_that_do_not_fit_themselves_are_refused(tmp_path: Path) -> None:
    theirs_with_values(tiny_model("bert")).save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    text = config.read_text()
    assert '"output.dense"' in text
    for other, said in (
        (text.replace('"feedforward_modules": [', '"feedforward_modules": 3, "x": ['), "is 3 and"),
        (text.replace('"feedforward_modules": [', '"feedforward_modules": "(", "x": ['), "is no"),
        (text.replace('"feedforward_modules": [', '"feedforward_modules": [], "x": ['), "output"),
    ):
        config.write_text(other)
        with pytest.raises(DeltafitError, match=said):
            read_adapter(tmp_path)
    config.write_text(text)
    path = tmp_path / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "ia3_l" not in n}, path)
    with pytest.raises(DeltafitError, match="holds no tensor of"):
        read_adapter(tmp_path)


def test_settings_as_text_and_such_as_are_refused() -> None:
    for text in ("ia3", "ia3:feedforward_modules=wo", r"ia3:feedforward_modules=re:.*\.(wo|fc)"):
        assert str(parse_method(text)) == text
    assert IA3(feedforward_modules=".*wo") == IA3(feedforward_modules="re:.*wo")
    assert parse_method(str(IA3(feedforward_modules=()))) == IA3(feedforward_modules=())
    with pytest.raises(UsageError, match="no regular expression"):
        IA3(feedforward_modules="(")
    with pytest.raises(UsageError, match="feedforward_modules takes a tuple of module names"):
        IA3(feedforward_modules=(1,))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"given for 'output\.dense', which is the end of no"):
        adapt(tiny_model("bert"), IA3(("key",), feedforward_modules=("output.dense",)))
