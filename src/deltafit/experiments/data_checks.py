"""What the doctor asks of the texts and their labels."""

from collections import Counter
from collections.abc import Iterator

from deltafit.data import LabelledTexts, duplicates_between
from deltafit.data.facts import duplicates_note, rows_alike
from deltafit.experiments.findings import Case, Check, Finding, counted, listed, quoted, rows_of

_SERIOUS = 0.01  # share of a part's rows that stand in training from which figures look better
_UNEVEN, _VERY_UNEVEN = 3, 10  # times as many rows in the largest class as in the smallest
_FEW_ROWS = 10
_NAMED = 5
_IN_TRAINING = "in training"
_DROP = "data.drop_duplicates"


def duplicates(case: Case) -> Iterator[Finding]:
    """Texts to be judged on that stand in training, or where checkpoints are chosen."""
    parts, facts = case.splits.parts(), case.splits.facts
    for name, overlap in facts["duplicates"].items():
        yield from _shared(case, case.splits.train, name, _IN_TRAINING, overlap)
    for name, overlap in facts["duplicates_in_validation"].items():
        place = "in validation, where the checkpoint is chosen"
        yield from _shared(case, parts["validation"], name, place, overlap)


def _shared(
    case: Case, first: LabelledTexts, name: str, place: str, overlap: dict[str, int]
) -> Iterator[Finding]:
    part = case.splits.parts()[name]
    same = duplicates_between(first, part)
    alike = duplicates_between(first, part, alike="folded")
    if not alike:
        return
    if same:
        sentence = duplicates_note(f"{len(part):,} {name} texts", place, overlap)
        if len(alike) > len(same):
            sentence += f" {len(alike) - len(same)} more do but for case and spaces."
    else:
        sentence = (
            f"{len(alike)} of {len(part):,} {name} texts also stand {place} but for case and "
            "spaces."
        )
    loses = "training" if place == _IN_TRAINING else "validation"
    if same and place == _IN_TRAINING:
        sentence += " Figures are given without them, too."
    yield Finding(
        "warning" if len(alike) >= _SERIOUS * len(part) else "note",
        "duplicates",
        sentence,
        f"{case.change(_DROP, 'true')} (which takes them out of {loses})",
        listed([quoted(part, index) for index in alike]),
    )


def contradictions(case: Case) -> Iterator[Finding]:
    """Training texts with several labels: all but one of them are wrong."""
    train = case.splits.train
    alike = rows_alike(train, alike="stripped")
    found = [rows for rows in alike if len({train.labels[row] for row in rows}) > 1]
    if found:
        yield Finding(
            "warning",
            "contradictory labels",
            f"Training has {counted(len(found), 'text')} with more than one label.",
            f"{case.change(_DROP, 'true')} (which leaves such texts out) or correct "
            f"{rows_of(train, [row for rows in found for row in rows])}",
            listed([quoted(train, row) for rows in found for row in rows]),
        )


def copies(case: Case) -> Iterator[Finding]:
    """Training texts that stand there again and again: they count as often."""
    surplus, rows = case.splits.facts["surplus_copies_in_training"], len(case.splits.train)
    if surplus >= _SERIOUS * rows:
        yield Finding(
            "note",
            "copies",
            f"{surplus:,} of {rows:,} training rows ({surplus / rows:.1%}) are copies of others, "
            "which so count several times; a validation part that is cut from such rows shares "
            "texts with training.",
            f"{case.change(_DROP, 'true')} (unless texts are as frequent as that in use)",
        )


def imbalance(case: Case) -> Iterator[Finding]:
    """Classes of very different sizes, unless all rows of the recipe weigh them alike."""
    if all(config.settings.class_weights == "balanced" for config in case.configs):
        return
    counts = _counts(case.splits.train)
    present = {name: count for name, count in counts.items() if count}
    smallest, largest = min(present.values()), max(present.values())
    if largest < _UNEVEN * smallest:
        return
    rare = sorted(present, key=present.__getitem__)[:_NAMED]
    names = ", ".join(f"{name} ({present[name]:,})" for name in rare[: max(1, len(present) - 1)])
    yield Finding(
        "warning" if largest >= _VERY_UNEVEN * smallest else "note",
        "imbalance",
        f"The largest class has {largest:,} training rows, {largest / smallest:.1f} times as many "
        f"as the smallest. The rarest: {names}. Accuracy says little of those; macro F1 counts "
        "them alike, and as the metric chooses the checkpoint so.",
        f"{case.change('settings.class_weights', 'balanced')} or "
        f"{case.change('data.balance', 'true')} (which drops rows)",
    )


def small_classes(case: Case) -> Iterator[Finding]:
    """Classes with so few training rows that they can hardly be learned."""
    train = case.splits.train
    counts = _counts(train)
    few = sorted((count, name) for name, count in counts.items() if 0 < count < _FEW_ROWS)
    if few:
        yield Finding(
            "warning",
            "small classes",
            f"Training has {counted(len(few), 'class', 'es')} with fewer than {_FEW_ROWS} rows.",
            f"Add rows of these classes to {train.source}, or give them another's label there",
            listed([f"{name}: {counted(count, 'row')}" for count, name in few]),
        )


def missing_classes(case: Case) -> Iterator[Finding]:
    """Classes without a row in a part: they cannot be learned there, or not be judged."""
    weighed = any(config.settings.class_weights == "balanced" for config in case.configs)
    says = {
        "train": "can never be predicted",
        "validation": "have no say in which checkpoint is chosen",
        "test": "are not judged, and macro F1 is of the others alone",
    }
    for name, part in case.splits.parts().items():
        absent = [label for label, count in _counts(part).items() if not count]
        if not absent:
            continue
        stops = name == "train" and weighed
        reason = "; balanced class weights cannot be computed" if stops else ""
        yield Finding(
            "error" if stops else "note" if name == "validation" else "warning",
            "missing classes",
            f"The {name} part has no row of {len(absent)} of {len(part.label_names)} classes: such "
            f"{says[name]}{reason}.",
            f"{case.change('settings.class_weights', 'none')} or add rows of them to {part.source}"
            if stops else f"Add rows of these classes to {part.source}",
            listed(absent),
        )  # fmt: skip


def _counts(part: LabelledTexts) -> dict[str, int]:
    counts = Counter(part.labels)
    return {name: counts[label] for label, name in enumerate(part.label_names)}


DATA_CHECKS: tuple[Check, ...] = (
    *(duplicates, contradictions, copies, imbalance, small_classes, missing_classes),
)
