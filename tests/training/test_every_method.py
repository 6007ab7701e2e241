"""What holds for a run of every method: what it changes, what it saves, and how it goes on."""

import re
from pathlib import Path

import pytest
import torch

from deltafit.adapters import adapter_tensors, base_parameters, trained_tensors
from deltafit.methods import METHODS as REGISTERED
from deltafit.methods import Head, LayerMethod, LoRA, Method, parse_method
from deltafit.training.interruption import Interrupted
from deltafit.training.settings import TrainingSettings
from tests.training.test_resume import (
    InterruptAt,
    _one_thread,  # noqa: F401  # a fixture
    assert_same_run,
    go,
    inputs,  # noqa: F401  # a fixture
)
from tests.training.tiny_runs import adapted, loop_on, save_model, tiny_examples

TEXTS = (
    "full",
    "head",
    "last-block",
    "lora:rank=2,initialisation=olora",
    "lora:rank=2,initialisation=pissa,dropout=0.2",
    "lora:rank=2,initialisation=orthogonal,learning_rate_ratio=8",
    "lora:rank=2,freeze_a=true",
    "dora:rank=2,dropout=0.2",
    "adalora:rank=2,initial_rank=4,final=0.3,dropout=0.2",
    "loha:rank=2",
    "lokr:rank=2",
    "ia3",
    "vera:rank=16,dropout=0.2",
    "freeze-first:count=2",
    "modules:pattern=attention+layer.2",
    "bitfit",
    "norms",
    "sparse:density=0.1",
    "sparse:density=0.1,mask=magnitude,alpha=2",
    "sparse:density=0.1,mask=gradient",
    "lora:rank=3,initialisation=eva,dropout=0.2",
    "dora:rank=2,initialisation=eva,rho=1",
    "bottleneck:size=4",
    "bottleneck:size=3,variant=pfeiffer,activation=relu,layers=-1",
    "prefix:count=2",
    "prefix:count=2,shift_positions=true",
    "prefix:count=3,layers=-1",
    "prompt:count=3",
)
# What a replacement trains of a BERT besides the head, by parameters' names.
WHOLE = {
    "full": r".*",
    "last-block": r"bert\.encoder\.layer\.2\..*",
    "freeze-first": r"bert\.(encoder\.layer\.2|pooler)\..*",
    "modules": r"bert\.encoder\.layer\.(2|\d\.attention)\..*",
    "bitfit": r".*\.bias",
    "norms": r".*\.LayerNorm\.(weight|bias)",
}
METHODS = tuple(map(parse_method, TEXTS))
SETTINGS = TrainingSettings(epochs=3, batch_size=6, max_length=16)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("bert"))


def test_no_method_is_left_out() -> None:
    # LoRA that starts from what rounding took needs a base that was rounded.
    assert {method.command_line_name for method in METHODS} == set(REGISTERED)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_training_changes_exactly_the_methods_own_tensors(
    bert: str, method: Method, tmp_path: Path
) -> None:
    classifier = adapted(bert, method)
    model = classifier.model
    own, trained = adapter_tensors(model, "default"), trained_tensors(model, "default")
    before = {n: p.detach().clone() for n, p in base_parameters(model).items()}
    started = {n: p.detach().clone() for n, p in own.items()}
    loop_on(classifier, tmp_path, SETTINGS).run()
    # What is trained whole stands in the base's places while the adapter is active.
    changed = {n for n, p in base_parameters(model).items() if not torch.equal(p, before[n])}
    whole = WHOLE.get(method.command_line_name, "")
    assert changed == {n for n in before if re.fullmatch(whole, n)} | set(
        classifier.head_parameters
    )
    assert bool(whole) != isinstance(method, LayerMethod | Head)
    for name, tensor in own.items():
        assert torch.equal(tensor, started[name]) == (name not in trained), name


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_interrupted_and_resumed_it_is_the_same_run(
    inputs: tuple[str, str],  # noqa: F811
    method: Method,
    tmp_path: Path,
) -> None:
    whole = go(inputs, tmp_path / "whole", method=method)
    with pytest.raises(Interrupted):
        go(inputs, tmp_path / "run", method=method, reporter=InterruptAt(3))
    assert_same_run(go(inputs, tmp_path / "run", method=method, resume=True), whole)


@pytest.mark.slow
def test_the_penalty_holds_vectors_near_orthonormal(bert: str, tmp_path: Path) -> None:
    def deviation(method: str) -> float:
        classifier = adapted(bert, parse_method(method))
        settings = TrainingSettings(epochs=12, batch_size=6, max_length=16)
        loop_on(classifier, tmp_path / method[-1], settings, train=tiny_examples(24)).run()
        tensors = adapter_tensors(classifier.model, "default")
        factors = [t.detach() for n, t in tensors.items() if n.endswith("lora_A")]
        return sum(float((f @ f.T - torch.eye(len(f))).norm()) for f in factors)

    assert deviation("adalora:orthogonality=0.5") < 0.8 * deviation("adalora:orthogonality=0")


def test_a_higher_ratio_moves_b_further_and_a_alike(bert: str, tmp_path: Path) -> None:
    def first_step(ratio: float) -> dict[str, torch.Tensor]:
        classifier = adapted(bert, LoRA(rank=2, learning_rate_ratio=ratio))
        settings = TrainingSettings(epochs=1, batch_size=64, max_length=16, schedule="constant")
        loop_on(classifier, tmp_path / str(ratio), settings).run()
        return {
            n: t.detach().clone() for n, t in adapter_tensors(classifier.model, "default").items()
        }

    # Adam's first step is the rate in size wherever there is a gradient.
    one, four = first_step(1), first_step(4)
    for name in one:
        if name.endswith("lora_B"):
            torch.testing.assert_close(four[name], 4 * one[name], rtol=1e-3, atol=1e-6)
        elif name.endswith("lora_A"):
            assert torch.equal(four[name], one[name])


def test_the_best_of_adalora_is_chosen_where_its_ranks_are_settled(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if every evaluation were worse than the one before.
    figures = iter(range(100, 0, -1))
    monkeypatch.setattr(
        "deltafit.training.learner.validate",
        lambda *_: ({"accuracy": next(figures) / 100, "loss": 1.0}, False),
    )
    classifier = adapted(bert, parse_method("adalora:rank=1,initial_rank=4,final=0.5,warmup=0"))
    settings = TrainingSettings(epochs=2, batch_size=4, evaluate_every=1, max_length=16)
    rows = tiny_examples(20)
    course = loop_on(classifier, tmp_path, settings, train=rows, validation=rows).run()
    assert course.best_step == 5  # of 10: the first of those with the final budget
    lambdas = [t for n, t in adapter_tensors(classifier.model, "default").items() if "lora_E" in n]
    assert sum(int((values != 0).sum()) for values in lambdas) <= len(lambdas)
