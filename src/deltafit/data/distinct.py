"""Training and validation rows without those that would be counted twice."""

from deltafit.data.facts import duplicates_between, rows_alike
from deltafit.data.texts import LabelledTexts
from deltafit.errors import DeltafitError


def without_duplicates(
    train: LabelledTexts,
    validation: LabelledTexts | None,
    test: LabelledTexts | None,
    notes: list[str],
) -> tuple[LabelledTexts, LabelledTexts | None]:
    """Return training and validation rows of which none is counted twice; test rows all stay.

    Validation loses rows whose text stands in the test part, training those whose text stands in
    either of these; then copies but for the first, and texts with several labels altogether. Texts
    that differ in case and spaces alone are the same.

    Args:
        train: the training part.
        validation: the validation part, if any.
        test: the test part, if any.
        notes: the sentence on what was left out is added to them.

    Raises:
        DeltafitError: nothing is left to train on, or to choose by.
    """
    kept, chosen_by = train, validation
    if validation is not None and test is not None:
        chosen_by = _without(validation, test)
    for other in (chosen_by, test):
        kept = kept if other is None else _without(kept, other)
    kept = _distinct(kept)
    counts = {"training": len(train) - len(kept)}
    if validation is not None and chosen_by is not None:
        counts["validation"] = len(validation) - len(chosen_by)
    if not kept.texts or (chosen_by is not None and not chosen_by.texts):
        raise DeltafitError(
            "Without duplicates nothing is left to train on, or to choose checkpoints by: all of "
            "these texts stand in another part too. Give parts of different rows."
        )
    told = " and ".join(f"{count:,} {name}" for name, count in counts.items())
    notes.append(f"{told} rows were left out as duplicates.")
    return kept, chosen_by


def _without(part: LabelledTexts, other: LabelledTexts) -> LabelledTexts:
    twice = {*duplicates_between(other, part, alike="folded")}
    return part.select([index for index in range(len(part)) if index not in twice])


def _distinct(part: LabelledTexts) -> LabelledTexts:
    alike = rows_alike(part, alike="folded")
    agreeing = (same for same in alike if len({part.labels[index] for index in same}) == 1)
    return part.select([first for first, *_ in agreeing])
