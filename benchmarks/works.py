"""What the speed benchmark measures: its works, and who does each of them."""

from dataclasses import dataclass

WARM_UP = 5  # training steps left out
HELD_OUT = 300  # rows to judge on

OURS = "deltafit"
WITHOUT_DROPOUT = "deltafit, base dropout off"
FLOAT32 = "deltafit, float32"
BF16 = "deltafit, bf16"
TRAINER = "Trainer"
GROUPED = "Trainer, grouped"
REDUCED = "Trainer, bf16, grouped"
LORALIB = "loralib"
IN_TURN = "deltafit, in turn"
PIPELINE = "pipeline"
ADAPTER_NAMES = "PEFT, adapter_names"
"""transformers' Trainer with its defaults in float32, with PEFT where the method is LoRA; the same
with batches of like length; that in bf16, where the machine has units for it; microsoft's loralib
in a plain loop; transformers' pipeline on the merged model; PEFT with the name of an adapter for
every row; deltafit's own runs of a sweep, one after another; deltafit with `--base-dropout off`;
with `--precision float32` where it would train in bf16; and predicting with `--precision bf16`."""


@dataclass(frozen=True)
class Work:
    """One row of the benchmark.

    Attributes:
        model: a catalogue name, a path, or ``bert-base`` for random weights in that shape.
        data: folder under the data path, or a catalogue name.
        method: as deltafit's command line has it; "predict" classifies ``steps`` texts instead, and
            "mixed" runs ``steps`` batches in which every row has an adapter of its own; "sweep" is
            sixteen runs of LoRA.
        batch_size: examples in a step.
        max_length: tokens a text is cut to.
        steps: how many are run.
        rows: training rows; None for all.
        bar: times the rival's speed that are to be reached on a machine with bf16 units.
        stretch: what would be better still.
        loralib: whether loralib's layers fit: a BERT with LoRA on its linear layers.
    """

    model: str
    data: str
    method: str
    batch_size: int
    max_length: int
    steps: int
    bar: float
    stretch: float
    rows: int | None = None
    loralib: bool = False

    def sides(self, *, bf16: bool) -> tuple[str, ...]:
        """Return who does it: deltafit, the rival the bar is about, and further ones.

        Args:
            bf16: whether the machine has units for it.
        """
        if self.method == "predict":
            return OURS, PIPELINE, *(BF16,) * bf16
        if self.method == "mixed":
            return OURS, ADAPTER_NAMES
        if self.method == "sweep":
            return OURS, TRAINER, IN_TURN, *(FLOAT32,) * bf16
        further = (REDUCED,) * bf16 + (LORALIB,) * self.loralib
        if self.method not in ("full", "last-block", "head"):  # no frozen products in their steps
            further += (FLOAT32,) * bf16
        if self.method.startswith("lora"):
            further += (WITHOUT_DROPOUT,)
        return OURS, TRAINER, GROUPED, *further

    @property
    def learning_rate(self) -> float:
        """The highest rate, the same for every side."""
        return 5e-4 if self.method.startswith(("lora", "sweep")) else 5e-5


_QV, _ALL = "lora:target_modules=query,value", "lora:target_modules=all-linear"
WORKS = {
    "MiniLM, SMS, LoRA q+v": Work("minilm", "sms_spam", _QV, 8, 128, 50, 6, 10, loralib=True),
    "MiniLM, Banking77, LoRA all": Work(
        "minilm", "banking77", _ALL, 32, 128, 20, 6, 10, loralib=True
    ),
    "MiniLM, IMDb 256, LoRA q+v": Work(
        "minilm", "imdb", _QV, 16, 256, 13, 3.5, 5, 400, loralib=True
    ),
    "BERT-base, SMS, LoRA q+v": Work("bert-base", "sms_spam", _QV, 16, 128, 15, 5, 8, loralib=True),
    "SmolLM2, SMS, LoRA all": Work("smollm2", "sms_spam", _ALL, 8, 128, 11, 4, 8),
    "head only, 20 epochs": Work("minilm", "sms_spam", "head", 8, 128, 400, 30, 60, 200),
    "last block, 20 epochs": Work("minilm", "sms_spam", "last-block", 8, 128, 400, 6, 12, 200),
    "full fine-tuning": Work("minilm", "sms_spam", "full", 8, 128, 40, 2.5, 4),
    "sweep of 16 runs, MiniLM, SMS": Work("minilm", "sms_spam", "sweep", 8, 128, 20, 8, 15),
    "prediction, Banking77, merged": Work("minilm", "banking77", "predict", 32, 128, 1500, 6, 12),
    "32 adapters in a batch, Banking77": Work("minilm", "banking77", "mixed", 32, 128, 10, 5, 10),
}
MEMORY_BAR = 0.6  # of the rival's memory above the imports
