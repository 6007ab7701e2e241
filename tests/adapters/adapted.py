"""Helpers of the adapter tests: adapters with random values, and what a model is made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from deltafit.adapters import (
    activate,
    adapt,
    adapter_tensors,
    load_adapter,
    read_adapter,
    save_adapter,
)
from deltafit.methods import LoRA, Method
from tests.tiny_models import tiny_inputs, tiny_model

EXACT = {"rtol": 1e-5, "atol": 1e-5}


def randomise(model: nn.Module, name: str = "default", seed: int = 1, std: float = 0.3) -> None:
    """Give an adapter's tensors random values, as if it had been trained; indices stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_tensors(model, name).values():
            if not tensor.is_floating_point():
                continue
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(std * values)


@torch.no_grad()
def logits(model: nn.Module, **options: int) -> Tensor:
    """Logits of a tiny transformers model on its tiny inputs."""
    return model(**tiny_inputs(model, **options)).logits


def head_of(model: nn.Module) -> list[str]:
    """Names of the parameters outside the encoder."""
    prefix = getattr(model, "base_model_prefix", "encoder")  # that of a pooled head
    return [n for n, _ in model.named_parameters() if not n.startswith(prefix)]


def anatomy(model: nn.Module) -> dict[str, object]:
    """All that must be as before when adapters are gone: values by their bytes and identities."""
    modules = dict(model.named_modules())
    return {
        "classes": {name: type(module) for name, module in modules.items()},
        "attributes": {name: set(module.__dict__) for name, module in modules.items()},
        "shapes": {name: module.extra_repr() for name, module in modules.items()},
        "keys": list(model.state_dict()),
        "identities": {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)},
        "gradients": {n: p.requires_grad for n, p in model.named_parameters()},
        "hooks": {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in modules.items()},
        "bits": {n: bits(t) for n, t in model.state_dict().items()},
    }


def bits(tensor: Tensor) -> bytes:
    """The very bytes of a tensor, of any dtype."""
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def new_head(labels: int, width: int = 32, seed: int = 3) -> dict[str, Tensor]:
    """A random ``classifier`` for a tiny BERT."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "classifier.weight": torch.randn(labels, width, generator=generator),
        "classifier.bias": torch.randn(labels, generator=generator),
    }


def theirs_on_disk(
    model: nn.Module, folder: Path, task_type: str | None = "SEQ_CLS", **settings: Any
) -> nn.Module:
    """An adapter of PEFT's with random values, saved by PEFT."""
    config = peft.LoraConfig(task_type=task_type, **settings)
    wrapped = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder)
    return wrapped


def saved(folder: Path | str, method: Method | None = None, labels: int = 3) -> Tensor:
    """Save an adapter with random values; return the logits it gives."""
    model = tiny_model("bert")
    head = {"classifier.weight": torch.ones(labels, 32), "classifier.bias": torch.ones(labels)}
    adapt(model, method or LoRA(("query",), rank=2), head=head_of(model), initial=head)
    randomise(model)
    save_adapter(model, folder)
    return logits(model)


def in_peft(architecture: str, folder: Path, **options: bool) -> nn.Module:
    """A saved adapter on a tiny model, loaded by PEFT."""
    return peft.PeftModel.from_pretrained(tiny_model(architecture), folder, **options).eval()


def through_peft(architecture: str, method: Method, folder: Path) -> tuple[nn.Module, nn.Module]:
    """Save an adapter with random values, load it in PEFT, and read both ours and theirs back.

    What is loaded gives the same logits there, and the very same ones here. Returns our model and
    PEFT's.
    """
    model = tiny_model(architecture)
    adapt(model, method, head=head_of(model))
    randomise(model)
    adapted = logits(model)
    save_adapter(model, folder, base_name="somewhere", task_type="SEQ_CLS")
    theirs = in_peft(architecture, folder)
    torch.testing.assert_close(logits(theirs), adapted, **EXACT)
    assert not torch.allclose(adapted, logits(tiny_model(architecture)), atol=1e-2)
    theirs.save_pretrained(folder / "again")
    for one in (folder, folder / "again"):
        again = tiny_model(architecture)
        load_adapter(again, found := read_adapter(one))
        assert type(found.method) is type(method) and found.notes == ()
        assert torch.equal(logits(again), adapted)
    return model, theirs


def assert_saved_without_peft(architecture: str, method: Method, folder: Path) -> None:
    """An adapter that PEFT has no type for is saved without its configuration, and comes back."""
    model = tiny_model(architecture)
    adapt(model, method, head=head_of(model))
    randomise(model)
    save_adapter(model, folder, task_type="SEQ_CLS")
    assert not (folder / "adapter_config.json").exists()
    again = tiny_model(architecture)
    load_adapter(again, read_adapter(folder))
    assert torch.equal(logits(again), logits(model))


def on_one_base(model: nn.Module, methods: Mapping[str, Method]) -> dict[str, Tensor]:
    """Put adapters with heads of 2, 5, 4 and 3 labels on a model, and switch among them.

    Each gives the very logits that it gave when it came; returns them by name.
    """
    head, outputs = head_of(model), {}
    for labels, (name, method) in zip((2, 5, 4, 3), methods.items(), strict=True):
        adapt(model, method, name=name, head=head, initial=new_head(labels))
        randomise(model, name, seed=labels)
        outputs[name] = logits(model)
        assert outputs[name].shape == (3, labels)
    for name in ("five", "two", "three", "four", "two"):
        activate(model, name)
        assert torch.equal(logits(model), outputs[name])
    return outputs


def gradients_beside_peft(
    architecture: str, method: Method, folder: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of one loss under the same random values: ours, and PEFT's trainable ones.

    Ours by their names; PEFT's by its names, without what stands before every module's.
    """
    model = tiny_model(architecture)
    adapt(model, method, head=head_of(model))
    randomise(model)
    save_adapter(model, folder, task_type="SEQ_CLS")
    theirs = in_peft(architecture, folder, is_trainable=True)
    for each in (model, theirs):
        each(**tiny_inputs(model)).logits.square().sum().backward()
    return {n: t.grad for n, t in adapter_tensors(model, "default").items()}, {
        n.removeprefix("base_model.model."): p.grad
        for n, p in theirs.named_parameters()
        if p.requires_grad
    }
