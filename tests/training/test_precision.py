"""Which precision a run gets, that it is kept, and that bf16 learns as float32 does."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from deltafit.engine import attention, frozen, frozen_products
from deltafit.engine.frozen import ReducedProduct
from deltafit.engine.precision import AttentionShape
from deltafit.files import read_json
from deltafit.methods import BitFit, Full, Head, LastBlocks, LoRA, Method, Prefix
from deltafit.training import precision
from deltafit.training.accelerator import mixed_precision_of
from deltafit.training.interruption import Interrupted
from deltafit.training.precision import planned_precision
from deltafit.training.progress import Silent
from deltafit.training.run import RunResult
from deltafit.training.settings import DataConfig, TrainingSettings
from deltafit.training.train import train
from tests.training.test_loop import EIGHT
from tests.training.test_resume import InterruptAt, assert_same_run
from tests.training.tiny_runs import adapted, loop_on, save_model, write_table

SETTINGS = TrainingSettings(
    epochs=2, batch_size=7, learning_rate=1e-2, evaluate_every=2, max_length=16
)


@pytest.fixture(autouse=True)
def _no_precision_of_another_test() -> Iterator[None]:
    """Accelerate keeps a process's first one for all Accelerators that are made bare."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("bert"), dropout=True)


class Probe:
    """Says this in the measurement's place, and keeps what it was asked about."""

    def __init__(self, says: str) -> None:
        self.says, self.asked = says, []  # type: ignore[var-annotated]  # lists of shapes
        self.shapes: list[AttentionShape] = []

    def __call__(self, shapes: Any) -> str:
        self.asked.append(sorted(set(shapes)))
        return self.says

    def attention(self, shape: AttentionShape) -> str:
        self.shapes.append(shape)
        return self.says


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """bf16 is the faster one, for tiny models too."""
    found = Probe("bf16")
    monkeypatch.setattr(precision, "probe_precision", found)
    monkeypatch.setattr(precision, "probe_attention", found.attention)
    monkeypatch.setattr(precision, "_WORTH", 1)
    return found


def go(model: str, folder: Path, asked: str = "auto", **options: Any) -> RunResult:
    data = DataConfig(write_table(folder.parent / "texts.csv"), validation="0.12")
    settings = replace(options.pop("settings", SETTINGS), precision=asked)
    method = options.pop("method", LoRA(rank=2))
    return train(model, data, folder, method=method, settings=settings, **options)


def test_the_probe_decides_on_the_widths_of_the_blocks(bert: str, probe: Probe) -> None:
    model = adapted(bert).model
    for said in ("bf16", "float32"):
        probe.says = said
        assert planned_precision(model, "auto") == said
    assert probe.asked == [[(32, 32), (32, 48), (48, 32)]] * 2
    assert planned_precision(model, "float32") == planned_precision(model, "fp16") == "float32"
    probe.says = "float32"
    assert planned_precision(model, "bf16") == "bf16"
    assert len(probe.asked) == 2


def test_where_nothing_frozen_multiplies_nothing_is_measured(
    bert: str, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = adapted(bert, Full()).model
    lora = adapted(bert).model
    blocks = tuple(lora.get_submodule(f"bert.encoder.layer.{index}") for index in range(3))
    for asked in ("auto", "bf16"):
        assert planned_precision(full, asked) == "float32"  # type: ignore[arg-type]  # literals
        assert planned_precision(lora, asked, blocks) == "float32"  # type: ignore[arg-type]
    monkeypatch.setattr(precision, "_WORTH", 10**6)
    assert planned_precision(lora, "auto") == "float32"  # a tiny model
    assert not probe.asked


@pytest.mark.parametrize(
    ("asked", "method", "gpu", "mixed"),
    [
        ("auto", LoRA(), False, "no"), ("auto", Full(), True, "no"),
        ("float32", Full(), False, "no"), ("bf16", LoRA(), False, "no"),
        ("bf16", Full(), False, "bf16"), ("bf16", LoRA(), True, "bf16"),
        ("fp16", LoRA(), True, "fp16"), ("fp16", LoRA(), False, "fp16"),
    ],
)  # fmt: skip
def test_mixed_precision_is_for_gpus_and_full_fine_tuning(
    monkeypatch: pytest.MonkeyPatch, asked: Any, method: Method, gpu: bool, mixed: str
) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: gpu)
    assert mixed_precision_of(asked, method) == mixed


def classes_in_training(monkeypatch: pytest.MonkeyPatch) -> set[tuple[bool, bool]]:
    """Of every product of frozen layers: whether in bf16, and whether in training mode."""
    seen: set[tuple[bool, bool]] = set()
    forward = torch.nn.Linear.forward
    right = frozen.reduced_product

    def reduced(*args: Any) -> torch.Tensor:
        seen.add((True, True))
        return right(*args)

    def plain(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self, ReducedProduct):
            seen.add((False, self.training))
        return forward(self, x)

    monkeypatch.setattr(frozen, "reduced_product", reduced)
    monkeypatch.setattr(torch.nn.Linear, "forward", plain)
    return seen


@pytest.mark.slow
def test_it_trains_in_bf16_and_evaluates_in_float32(
    bert: str, tmp_path: Path, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, attended = classes_in_training(monkeypatch), set()
    right = attention.explicit_attention

    def explicit(*args: Any, products: torch.dtype | None, **options: Any) -> torch.Tensor:
        attended.add(products)
        return right(*args, products=products, **options)

    monkeypatch.setattr(attention, "explicit_attention", explicit)
    result = go(bert, tmp_path / "run")
    assert seen == {(True, True), (False, False)}
    # The check of bf16 attention computes in float32 too; evaluation by another kernel.
    assert attended == {None, torch.bfloat16}
    assert result.metrics["precision"] == "bf16" and probe.asked
    assert result.metrics["attention_precision"] == "bf16"
    assert read_json(tmp_path / "run" / "run.json")["config"]["settings"]["precision"] == "auto"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "method", "decided"),
    [
        ("float32", LoRA(rank=2), "float32"), ("bf16", LoRA(rank=2), "bf16"),
        ("auto", Full(), "float32"), ("bf16", Full(), "bf16"),
        ("auto", Head(), "float32"), ("bf16", LastBlocks(1), "float32"),
    ],
)  # fmt: skip
def test_the_decision_is_in_the_metrics(
    bert: str, tmp_path: Path, probe: Probe, asked: str, method: Method, decided: str
) -> None:
    listener = Listener()
    settings = replace(SETTINGS, epochs=1)
    result = go(
        bert, tmp_path / "run", asked, method=method, settings=settings, reporter=listener
    )  # fmt: skip
    assert result.metrics["precision"] == decided and not probe.asked
    nothing = any("No frozen product with" in sentence for sentence in listener.said)
    assert nothing == (asked == "bf16" and method == LastBlocks(1))


class Listener(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_it_began(bert: str, tmp_path: Path, probe: Probe) -> None:
    whole = go(bert, tmp_path / "whole")
    with pytest.raises(Interrupted):
        go(bert, tmp_path / "run", reporter=InterruptAt(5))
    probe.says, measured = "float32", len(probe.asked)  # as another machine would
    resumed = go(bert, tmp_path / "run", resume=True)
    assert len(probe.asked) == measured
    assert resumed.metrics["precision"] == resumed.metrics["attention_precision"] == "bf16"
    assert resumed.metrics["run_hash"] == whole.metrics["run_hash"]
    assert_same_run(resumed, whole)
    assert resumed.metrics["expected_memory"]["weights"] > 0


@pytest.mark.slow
def test_bf16_learns_as_float32_does(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    losses = {}
    for asked in ("float32", "bf16"):
        classifier = adapted(model, LoRA("all-linear", rank=4))
        settings = replace(EIGHT, epochs=9, precision=asked)
        loop = loop_on(classifier, tmp_path / asked, settings)
        course = loop.run()
        assert course.precision == asked
        # A, B, the head, Adam's moments and the base's own weights.
        moments = [t for state in loop.optimiser.optimizer.state.values() for t in state.values()]
        assert len(moments) == 3 * len(loop.trainable)  # two, and the number of steps
        for tensor in (*loop.trainable.values(), *moments, *classifier.model.parameters()):
            assert tensor.dtype == torch.float32
        losses[asked] = [entry["train_loss"] for entry in course.history]
    assert losses["float32"] != losses["bf16"]
    assert losses["float32"][-1] < 0.3 * losses["float32"][0]
    assert losses["bf16"] == pytest.approx(losses["float32"], abs=0.03)


@pytest.mark.parametrize("method", [LoRA(rank=2), LoRA(rank=2, layers=(2,)), BitFit(), Prefix()])
def test_attention_is_asked_about_whatever_is_adapted(
    bert: str, tmp_path: Path, probe: Probe, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    products = frozen_products(adapted(bert).model)
    monkeypatch.setattr(precision, "_WORTH", sum(m.weight.numel() for m in products) // 3)
    loop = loop_on(adapted(bert, method), tmp_path / "run", replace(EIGHT, precision="bf16"))
    course = loop.run()
    assert course.precision == course.attention_precision == "bf16"
    (shape,) = probe.shapes
    lengths = [len(row) for row in loop.train.rows]
    assert min(lengths) <= shape.length < 2 * max(lengths)


@pytest.mark.parametrize("case", ["no base dropout", "padded", "begun without", "it drops nothing"])
def test_where_attention_stays_in_float32(
    bert: str, tmp_path: Path, probe: Probe, case: str
) -> None:
    settings = replace(EIGHT, precision="bf16")
    if case == "no base dropout":
        settings = replace(settings, base_dropout="off")
    if case == "padded":
        settings = replace(settings, packing="off")
    model = save_model(tmp_path / "model") if case == "it drops nothing" else bert
    loop = loop_on(adapted(model), tmp_path / "run", settings)
    if case == "begun without":
        loop.course.step, loop.course.precision = 1, "bf16"
    course = loop.run()
    assert (course.precision, course.attention_precision) == ("bf16", "float32")
    assert not probe.shapes


@pytest.mark.slow
def test_attention_in_bf16_learns_as_in_float32(
    tmp_path: Path, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, losses = save_model(tmp_path / "model", dropout=True), {}
    for said in ("float32", "bf16"):
        monkeypatch.setattr(precision, "probe_attention", lambda shape, said=said: said)
        settings = replace(EIGHT, epochs=9, precision="bf16")
        loop = loop_on(adapted(model, LoRA("all-linear", rank=4)), tmp_path / said, settings)
        course = loop.run()
        assert course.attention_precision == said
        losses[said] = [entry["train_loss"] for entry in course.history]
    assert losses["float32"] != losses["bf16"]
    assert losses["float32"][-1] < 0.75 * losses["float32"][0]
    assert losses["bf16"] == pytest.approx(losses["float32"], abs=0.05)


def test_products_that_are_wrong_are_not_used(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = frozen._multiply
    monkeypatch.setattr(frozen, "_multiply", lambda x, matrix: -right(x, matrix))
    loop = loop_on(adapted(bert), tmp_path / "run", replace(EIGHT, precision="bf16"))
    loop.reporter = listener = Listener()
    wrong = loop.run()
    assert wrong.precision == "float32"
    assert any(
        "other states or gradients than in float32" in sentence for sentence in listener.said
    )
    monkeypatch.undo()
    plain = loop_on(adapted(bert), tmp_path / "plain", replace(EIGHT, precision="float32")).run()
    assert asdict(wrong)["history"] == asdict(plain)["history"]


@pytest.mark.parametrize(("votes", "agreed"), [(3.0, "bf16"), (2.0, "float32")])
def test_processes_that_measured_otherwise_agree(votes: float, agreed: str) -> None:
    accelerator: Any = SimpleNamespace(
        device="cpu", num_processes=3, reduce=lambda vote, how: torch.tensor(votes)
    )
    assert precision._agreed("bf16", accelerator) == agreed
