"""Gradient checkpointing: the same gradients, over a frozen base too, and nothing left behind."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from deltafit.errors import UsageError
from deltafit.methods import LastBlocks
from deltafit.training.gradients import enable_gradient_checkpointing
from deltafit.training.settings import TrainingSettings
from tests.training.test_loop import assert_same, train
from tests.training.tiny_runs import adapted, loop_on, save_model, tiny_examples

SETTINGS = TrainingSettings(epochs=1, batch_size=8, weight_decay=0.05, warmup=0.3, clip=0.5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize(
    ("architecture", "head"),
    [*product(["bert", "llama", "gpt2"], ["architecture", "mean"]), ("t5", "mean")],
)
def test_gradient_checkpointing_gives_the_same_over_a_frozen_base(
    tmp_path: Path, architecture: str, head: str
) -> None:
    model = save_model(tmp_path, architecture)
    settings = SETTINGS
    plain = train(model, tmp_path / "a", settings, head=head)
    saving = train(model, tmp_path / "b", replace(settings, gradient_checkpointing=True), head=head)
    assert_same(plain, saving, 1e-7)
    moved = [values for name, values in saving.items() if "lora_B" in name]
    assert moved and all(values.count_nonzero() for values in moved)


def test_gradient_checkpointing_is_used_in_training_and_taken_off_after_it(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    original: Callable[..., torch.Tensor] = torch.utils.checkpoint.checkpoint

    def counted(*args: object, **options: object) -> torch.Tensor:
        calls.append(bool(options.get("use_reentrant")))
        return original(*args, **options)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    for module in ("transformers.modeling_utils", "transformers.modeling_layers"):
        monkeypatch.setattr(f"{module}.checkpoint", counted, raising=False)
    classifier = adapted(bert)
    settings = replace(SETTINGS, gradient_checkpointing=True)
    loop_on(classifier, tmp_path, settings).run()
    assert calls == [False] * (3 * 3)  # three layers in three steps, never reentrant
    layers = [m for m in classifier.model.modules() if hasattr(m, "gradient_checkpointing")]
    assert layers and not any(layer.gradient_checkpointing for layer in layers)


def test_checkpointing_computes_no_gradient_below_what_is_trained(
    bert: str, tmp_path: Path
) -> None:
    classifier = adapted(bert, LastBlocks(1))
    reached: list[bool] = []
    layer = classifier.model.get_submodule("bert.encoder.layer.1")
    layer.register_forward_hook(lambda module, inputs, output: reached.append(output.requires_grad))
    settings = replace(SETTINGS, gradient_checkpointing=True)
    loop_on(classifier, tmp_path, settings, validation=tiny_examples(6)).run()
    assert reached and not any(reached)
    hooks = classifier.model.get_input_embeddings()._forward_hooks
    assert not hooks  # nothing of transformers' own is left behind


def test_a_model_that_cannot_checkpoint_says_so(bert: str) -> None:
    model = adapted(bert).model
    model.supports_gradient_checkpointing = False
    with pytest.raises(UsageError, match="does not support"):
        enable_gradient_checkpointing(model)
