"""What runs must have in common to be trained jointly."""

from collections.abc import Sequence

from deltafit.errors import UsageError
from deltafit.training.course import Course
from deltafit.training.settings import TrainingSettings

# What the shared passes have in common.
SHARED = (
    "batch_size", "accumulation", "max_length", "gradient_checkpointing", "precision",
    "packing", "base_dropout", "base_weights",
    "judge_training",  # the untouched model is judged once for all
)  # fmt: skip


def check_shared(settings: list[TrainingSettings]) -> None:
    """Raise a UsageError unless runs with these settings can share passes; it says why not."""
    if len(settings) < 2:
        raise UsageError("There is nothing to train jointly: it takes at least two runs.")
    for name in SHARED:
        values = [getattr(each, name) for each in settings]
        if any(value != values[0] for value in values):
            raise UsageError(
                f"Runs that are trained jointly share {name}; it is "
                f"{' and '.join(map(str, dict.fromkeys(values)))}. Give all the same."
            )
    if settings[0].precision == "fp16":
        raise UsageError(
            "Runs cannot be trained jointly in fp16, whose scale of the loss is one run's own. Use "
            "bf16 or float32, or train them one after another."
        )


def decided_for_all(courses: Sequence[Course]) -> Course:
    """Return a course that holds what was decided for the passes of runs when they were begun.

    Raises:
        UsageError: they were begun differently, and each goes on only as it began.
    """
    shared = Course()
    for name, words in (
        ("kept", "keeping the states of frozen layers"),
        ("packed", "running packed"),
        ("first_tokens", "running the last block for first tokens alone"),
        ("precision", "the precision"),
        ("attention_precision", "the precision of attention"),
    ):
        values = {getattr(course, name) for course in courses} - {None}
        if len(values) > 1:
            raise UsageError(
                f"The runs were begun with different decisions on {words}, and each goes on only "
                "as it began. Resume them one after another, without --jointly."
            )
        setattr(shared, name, next(iter(values), None))
    return shared
