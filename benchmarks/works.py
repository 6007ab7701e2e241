"""What the speed benchmark runs: each work once by deltafit and once by a rival, in a process each.

    python benchmarks/works.py WORK SIDE DATA THREADS

prints one JSON object; `benchmarks/speed.py` calls it. Timing begins after the warm-up steps and
ends with the last step; what deltafit computes ahead of its first step is added to its time. Real
tokens are counted, as the sides may meet other rows.
"""

import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 5  # steps left out
HELD_OUT = 300  # rows to judge on


@dataclass(frozen=True)
class Work:
    """One row of the benchmark.

    Attributes:
        model: a catalogue name, or ``bert-base`` for random weights in that shape.
        data: folder under the data path, or a catalogue name.
        method: as deltafit's command line has it; "predict" classifies ``steps`` texts instead.
        batch_size: examples in a step; of a prediction, the rival's.
        max_length: tokens a text is cut to.
        steps: how many are run.
        rows: training rows; None for all.
        bar: times the rival's speed that are to be reached on a machine with bf16 units.
    """

    model: str
    data: str
    method: str
    batch_size: int
    max_length: int
    steps: int
    bar: float
    rows: int | None = None


_QV, _ALL = "lora:target_modules=query,value", "lora:target_modules=all-linear"
WORKS = {
    "MiniLM, SMS, LoRA q+v": Work("minilm", "sms_spam", _QV, 8, 128, 50, 6),
    "MiniLM, Banking77, LoRA all": Work("minilm", "banking77", _ALL, 32, 128, 20, 6),
    "MiniLM, IMDb 256, LoRA q+v": Work("minilm", "imdb", _QV, 16, 256, 9, 3.5, 400),
    "BERT-base, SMS, LoRA q+v": Work("bert-base", "sms_spam", _QV, 16, 128, 9, 5),
    "SmolLM2, SMS, LoRA all": Work("smollm2", "sms_spam", _ALL, 8, 128, 9, 4),
    "head only, 20 epochs": Work("minilm", "sms_spam", "head", 8, 128, 400, 30, 200),
    "last block, 20 epochs": Work("minilm", "sms_spam", "last-block", 8, 128, 400, 6, 200),
    "full fine-tuning": Work("minilm", "sms_spam", "full", 8, 128, 40, 2.5),
    "prediction, Banking77": Work("minilm", "banking77", "predict", 32, 128, 1500, 6),
}
SIDES = ("deltafit", "PEFT", "PEFT, grouped")


def main() -> None:
    """Run one side of one work and print what it took."""
    name, side, data, threads = sys.argv[1:]
    import torch

    torch.set_num_threads(int(threads))
    print(json.dumps(run(WORKS[name], side, Path(data))))


def run(work: Work, side: str, data: Path) -> dict[str, Any]:
    """Return times, losses, accuracy on held-out rows and memory of one side of a work."""
    # All that either side imports, so that neither's floor holds more code than the other's.
    import peft
    import transformers

    import deltafit.training.train

    del peft, transformers, deltafit
    from deltafit.data import load_splits

    folder = data / work.data
    place = str(folder / "train.csv") if folder.is_dir() else work.data
    splits = load_splits(place, validation=f"{0.2}", limit=work.rows)
    assert splits.validation is not None
    if work.method == "predict":
        return predict(work, side, splits)
    with tempfile.TemporaryDirectory() as temporary:
        model = bert_base(Path(temporary)) if work.model == "bert-base" else work.model
        floor = memory()
        train = ours if side == "deltafit" else rival
        result = train(work, side, model, splits, Path(temporary))
    moments = result.pop("moments")
    ahead = result.pop("ahead", 0.0)
    return {
        **result,
        "seconds": moments[-1] - moments[WARM_UP - 1] + ahead,
        "memory_above_floor": result["peak"] - floor,
    }


def ours(work: Work, side: str, model: str, splits: Any, folder: Path) -> dict[str, Any]:
    """Train with deltafit's loop, as its commands do."""
    from accelerate import Accelerator

    from deltafit.adapters import adapt
    from deltafit.data import epoch_order, resolve_model
    from deltafit.methods import Full, parse_method
    from deltafit.tasks.classification import HeadSettings, load_classifier
    from deltafit.tasks.inference import compute_logits, tokenise_for
    from deltafit.training.course import Examples
    from deltafit.training.loop import TrainingLoop
    from deltafit.training.progress import Silent
    from deltafit.training.settings import TrainingSettings

    moments: list[float] = []
    losses: list[float] = []

    class Clock(Silent):
        began = 0.0

        def start(self, what: str, total: int, done: int) -> None:
            if what == "training":
                self.began = time.perf_counter()

        def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
            if loss is not None:  # of a training step
                moments.append(time.perf_counter())
                losses.append(loss)

    clock, method = Clock(), parse_method(work.method)
    classifier = load_classifier(
        resolve_model(model), splits.train.label_names, HeadSettings(), seed=0
    )
    adapt(
        classifier.model, method,
        head=classifier.head_parameters, keep_base=not isinstance(method, Full),
    )  # fmt: skip
    parts = {
        name: Examples(tokenise_for(classifier, part.texts, work.max_length).input_ids, part.labels)
        for name, part in splits.parts().items()
    }
    train, held_out = parts["train"], parts["validation"]
    per_epoch = -(-len(train) // work.batch_size)
    settings = TrainingSettings(
        epochs=-(-work.steps // per_epoch), batch_size=work.batch_size, max_length=work.max_length,
        learning_rate=5e-4 if work.method.startswith("lora") else 5e-5,
        weight_decay=0.0, warmup=0.0,
    )  # fmt: skip
    loop = TrainingLoop(
        classifier, train, None, settings,
        learning_rate=settings.learning_rate or 0.0,
        folder=folder / "checkpoints", reporter=clock, accelerator=Accelerator(),
    )  # fmt: skip
    # The rival stops there too, in the middle of an epoch: its schedule is as long.
    loop.total_steps = work.steps
    began = time.perf_counter()
    course = loop.run()
    peak = memory()
    logits = compute_logits(classifier, held_out.rows[:HELD_OUT])
    order = [
        row for epoch in range(settings.epochs) for row in epoch_order(len(train), 0, epoch)
    ]  # an epoch's last batch may be small: rows are counted, not batches
    seen = order[WARM_UP * work.batch_size : work.steps * work.batch_size]
    return {
        "tokens": sum(len(train.rows[row]) for row in seen),
        "moments": moments,
        "ahead": clock.began - began,
        "losses": losses,
        "accuracy": float((logits.argmax(1) == np.array(held_out.labels[:HELD_OUT])).mean()),
        "peak": peak,
        "precision": course.precision,
    }


def rival(work: Work, side: str, model: str, splits: Any, folder: Path) -> dict[str, Any]:
    """Train with PEFT and transformers' Trainer, as people run them: their defaults."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    from deltafit.data import resolve_model, tokenise

    set_seed(0)
    location = resolve_model(model).location
    tokenizer = AutoTokenizer.from_pretrained(location)
    network = AutoModelForSequenceClassification.from_pretrained(
        location, num_labels=len(splits.train.label_names), dtype=torch.float32
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.config.pad_token_id = tokenizer.pad_token_id
    network = restricted(network, work.method)
    moments: list[float] = []

    tokens: list[int] = []

    class Counting(DataCollatorWithPadding):  # type: ignore[misc]  # transformers' class is untyped
        def __call__(self, features: Any) -> Any:
            tokens.append(sum(len(row["input_ids"]) for row in features))
            return super().__call__(features)

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers' class is untyped
        def on_step_end(self, *_: Any, **__: Any) -> None:
            moments.append(time.perf_counter())

    def rows(part: Any, count: int | None = None) -> list[dict[str, Any]]:
        ids = tokenise(tokenizer, part.texts[:count], work.max_length).input_ids
        pairs = zip(ids, part.labels[:count], strict=True)
        return [{"input_ids": i, "labels": y} for i, y in pairs]

    grouped = side.endswith("grouped")
    arguments = TrainingArguments(
        str(folder / "trainer"), max_steps=work.steps, report_to=[], save_strategy="no",
        per_device_train_batch_size=work.batch_size, per_device_eval_batch_size=32,
        learning_rate=5e-4 if work.method.startswith("lora") else 5e-5,
        logging_steps=1, seed=0, use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        train_sampling_strategy="group_by_length" if grouped else "random",
    )  # fmt: skip
    trainer = Trainer(
        network, arguments, train_dataset=rows(splits.train),
        data_collator=Counting(tokenizer), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    peak = memory()
    labels = np.array(splits.validation.labels[:HELD_OUT])
    logits = trainer.predict(rows(splits.validation, HELD_OUT)).predictions
    return {
        "tokens": sum(tokens[WARM_UP : work.steps]),
        "moments": moments,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "accuracy": float((logits.argmax(1) == labels).mean()),
        "peak": peak,
        "precision": "float32",
    }


def predict(work: Work, side: str, splits: Any) -> dict[str, Any]:
    """Classify texts with an adapter of one step, by deltafit or by transformers' pipeline."""
    import torch
    from transformers import pipeline

    import deltafit
    from deltafit.prediction.folder import load_saved

    part = splits.validation
    texts = list(part.texts[: work.steps])
    labels = [part.label_names[label] for label in part.labels[: work.steps]]
    with tempfile.TemporaryDirectory() as temporary:
        run, merged = Path(temporary, "run"), Path(temporary, "merged")
        deltafit.train(
            work.model,
            deltafit.DataConfig(splits.train.source, validation="none", limit=200),
            run,
            settings=deltafit.TrainingSettings(epochs=1),
        )
        deltafit.merge(run, merged)
        floor = memory()
        if side == "deltafit":
            saved = load_saved(run)
            list(deltafit.predict(saved, texts[: work.batch_size]))
            began = time.perf_counter()
            said = [prediction.label for prediction in deltafit.predict(saved, texts)]
        else:
            classify = pipeline(
                "text-classification", str(merged), device="cpu", dtype=torch.float32
            )
            classify(texts[: work.batch_size], batch_size=work.batch_size)
            began = time.perf_counter()
            said = [answer["label"] for answer in classify(texts, batch_size=work.batch_size)]
        seconds = time.perf_counter() - began
    right = float(np.mean([one == other for one, other in zip(said, labels, strict=True)]))
    return {
        "seconds": seconds, "tokens": 1, "losses": [], "accuracy": right, "precision": "float32",
        "memory_above_floor": memory() - floor,
    }  # fmt: skip


def restricted(network: Any, method: str) -> Any:
    """Return the network with everything frozen but what the method trains, by PEFT or by hand."""
    if method.startswith("lora"):
        from peft import LoraConfig, get_peft_model

        targets = method.partition("=")[2]
        return get_peft_model(
            network,
            LoraConfig(
                task_type="SEQ_CLS", r=8, lora_alpha=16,
                target_modules=(
                    ["query", "key", "value", "dense", "q_proj", "k_proj", "v_proj", "o_proj",
                     "gate_proj", "up_proj", "down_proj"]
                    if targets == "all-linear" else targets.split(",")
                ),
                exclude_modules=".*pooler.*",
            ),
        )  # fmt: skip
    if method != "full":
        for name, parameter in network.named_parameters():
            above = name.startswith("classifier") or "pooler" in name
            parameter.requires_grad = above or (method == "last-block" and ".layer.5." in name)
    return network


def bert_base(folder: Path) -> str:
    """Write a model with random weights in the shape of BERT-base, and MiniLM's tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from deltafit.data import resolve_model

    target = folder / "bert-base"
    BertForSequenceClassification(BertConfig()).save_pretrained(target)
    AutoTokenizer.from_pretrained(resolve_model("minilm").location).save_pretrained(target)
    return str(target)


def memory() -> int:
    """Return the process's largest resident memory so far, in bytes."""
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
