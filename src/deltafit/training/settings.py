"""What can be set about a run: frozen dataclasses, checked when made, saved with every run.

The command line takes its flags, their defaults and their help from here.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from deltafit.errors import UsageError

Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["auto", "float32", "bf16", "fp16"]
Packing = Literal["auto", "on", "off"]
BaseDropout = Literal["configured", "off"]
BaseWeights = Literal["float32", "int8", "nf4"]
ClassWeights = Literal["none", "balanced"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
HeadChoice = Literal["architecture", "cls", "mean", "last", "auto"]
HeadStart = Literal["new", "probe"]


_FLAGS = {"learning_rate": "--lr", "head_learning_rate": "--head-lr"}


def flag_name(setting: str) -> str:
    """Return the command line's flag of a setting, which is its name but for those of the rates."""
    return _FLAGS.get(setting, "--" + setting.replace("_", "-"))


@dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of one run, the method's own apart.

    Attributes:
        epochs: passes over the training rows.
        batch_size: rows of a batch; no forward pass holds more.
        accumulation: batches in one optimiser step, each in passes of its own: less memory, and
            more time. A step's result does not depend on how its rows are cut into passes.
        learning_rate: the highest rate; None takes the method's default.
        head_learning_rate: the same for the head; None takes 5e-3 for a new head, or
            ``learning_rate`` where that is higher, the method is head, or the head starts from a
            probe or comes with the checkpoint.
        weight_decay: AdamW's, on matrices; biases and norms are left out.
        schedule: of the rate after the warm-up; linear and cosine end at zero.
        warmup: share of all steps in which the rate rises from near zero.
        label_smoothing: share of the target spread over all classes.
        class_weights: ``"balanced"`` weighs a class by the inverse of its frequency.
        base_dropout: of the pretrained model in training: as its configuration says, or off. The
            head's and an adapter's own dropout are not meant.
        base_weights: how the linear layers of the base's blocks are stored: float32, or rounded to
            int8 or nf4 (4 bits), for less memory and slower steps, with methods that leave them
            frozen (lora and its like, head). Takes the extra "quantised".
        clip: largest norm of the gradient; None for no clipping.
        gradient_checkpointing: recompute activations in the backward pass: less memory, slower.
        precision: auto, float32, bf16 or fp16 (CUDA only). On a CPU bf16 is for the products with
            frozen weights (and for attention, where it is measured to be faster so), and auto
            measures whether they are faster; elsewhere, and in full fine-tuning, bf16 and fp16
            are mixed precision, and auto is float32.
        packing: run training without padding: auto does on a CPU (no GPU was measured), on does on
            any device, and both only where one batch shows that the model gives the same so.
        max_length: tokens a text is cut to.
        evaluate_every: optimiser steps between evaluations; None evaluates after each epoch.
        judge_training: judge the training rows too, before and after training.
        metric: which validation figure picks the best checkpoint.
        patience: stop after so many evaluations without a better figure; None never stops early.
        seed: of the order of rows, of starting values and of dropout.

    Raises:
        UsageError: a value is out of its range.
    """

    epochs: int = 3
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    weight_decay: float = 0.01
    schedule: Schedule = "linear"
    warmup: float = 0.06
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    base_dropout: BaseDropout = "configured"
    base_weights: BaseWeights = "float32"
    clip: float | None = 1.0
    gradient_checkpointing: bool = False
    precision: Precision = "auto"
    packing: Packing = "auto"
    max_length: int = 256
    evaluate_every: int | None = None
    judge_training: bool = False
    metric: str = "accuracy"
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "max_length"):
            _check_whole(name, getattr(self, name), 1)
        for name in ("evaluate_every", "patience"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), 1)
        _check_whole("seed", self.seed, 0)
        for name in ("learning_rate", "head_learning_rate", "clip"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), "above 0", lambda value: value > 0)
        _check_number("weight_decay", self.weight_decay, "at least 0", lambda value: value >= 0)
        for name in ("warmup", "label_smoothing"):
            _check_share(name, getattr(self, name))
        hints = get_type_hints(type(self))
        for name in (
            "schedule", "precision", "packing", "class_weights", "base_dropout", "base_weights",
        ):  # fmt: skip
            choices = get_args(hints[name])
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}."
                )
        # scikit-learn is heavy, and these settings are also the command line's flags.
        from deltafit.tasks.metrics import find_metric

        find_metric(self.metric)

    @property
    def rows_per_step(self) -> int:
        """How many rows an optimiser step takes."""
        return self.batch_size * self.accumulation


@dataclass(frozen=True)
class DataConfig:
    """Where the texts come from and how they are split; see ``deltafit.data.load_splits``.

    Attributes:
        data: a .csv, .tsv, .jsonl or .parquet file, a folder with train and test files, one with a
            folder of .txt files for each label, or one of imdb, rotten_tomatoes, sms_spam,
            banking77.
        test_data: the rows to judge on; without it, the data's own test part if it has one.
        validation: share of the training rows to choose checkpoints on, a file, or none.
        text_column: the column of texts, where it is not found by itself.
        label_column: the column of labels, where it is not found by itself.
        balance: downsample every class of the training rows to the smallest.
        limit: train on a stratified sample of so many rows.
        split_seed: of the cuts, the sample and the balancing.
        drop_duplicates: leave out training rows whose text stands in validation or test too, stood
            before or has several labels, and validation rows whose text stands in test.

    Raises:
        UsageError: a number is out of its range.
    """

    data: str
    test_data: str | None = None
    validation: str = "0.1"
    text_column: str | None = None
    label_column: str | None = None
    balance: bool = False
    limit: int | None = None
    split_seed: int = 0
    drop_duplicates: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None:
            _check_whole("limit", self.limit, 1)
        _check_whole("split_seed", self.split_seed, 0)


@dataclass(frozen=True)
class HeadConfig:
    """Which head is trained, and from where it starts.

    Attributes:
        head: the architecture's own, a pooling (cls, mean, last), or auto: the pooling whose
            probe does best on the validation rows.
        head_start: new, or probe: logistic regression on the frozen features.
        head_dropout: probability of dropping a pooled feature in training.

    Raises:
        UsageError: a choice is unknown, or the architecture's own head is to start from a probe.
    """

    head: HeadChoice = "architecture"
    head_start: HeadStart = "new"
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("head", self.head, get_args(HeadChoice)),
            ("head_start", self.head_start, get_args(HeadStart)),
        ):
            if value not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
        _check_share("head_dropout", self.head_dropout)
        if self.head == "architecture" and (self.head_start == "probe" or self.head_dropout):
            raise UsageError(
                "The architecture's own head has layers of its own, so it can neither start from a "
                "linear probe nor take another dropout. Choose a head of cls, mean, last or auto."
            )


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least}; got {value!r}.")


def _check_share(name: str, value: Any) -> None:
    _check_number(name, value, "at least 0 and below 1", lambda value: 0 <= value < 1)


def _check_number(name: str, value: Any, wanted: str, fits: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not fits(value):
        raise UsageError(f"{name} must be a number {wanted}; got {value!r}.")
