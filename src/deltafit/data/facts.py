"""Facts about the parts of a data set: counts, hashes, and texts that stand in it twice."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

from deltafit.data.texts import LabelledTexts

Alike = Literal["verbatim", "stripped", "folded"]
"""When two texts count as one: by every character; but for outer whitespace, which tokenizers drop
or nearly so; or but for case and all whitespace."""


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


_KEYS: dict[Alike, Callable[[str], str]] = {
    "verbatim": str,
    "stripped": str.strip,
    "folded": _folded,
}


def duplicates_between(
    train: LabelledTexts, other: LabelledTexts, *, alike: Alike = "stripped"
) -> tuple[int, ...]:
    """Return the indices of rows in ``other`` whose text also stands in ``train``.

    Args:
        train: the training part.
        other: the part to be measured on.
        alike: when two texts count as one.
    """
    key = _KEYS[alike]
    seen = {key(text) for text in train.texts}
    return tuple(index for index, text in enumerate(other.texts) if key(text) in seen)


def rows_alike(part: LabelledTexts, *, alike: Alike) -> list[list[int]]:
    """Return the indices of rows by their text, in the order in which texts come first.

    Args:
        part: of a data set.
        alike: when two texts count as one.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(part.texts):
        rows[_KEYS[alike](text)].append(index)
    return [*rows.values()]


def overlap(first: LabelledTexts, other: LabelledTexts) -> dict[str, int]:
    """Count the rows of ``other`` whose text also stands in ``first``.

    Returns:
        ``verbatim`` and ``apart_from_outer_whitespace``, of which ``with_another_label`` stand in
        ``first`` with a label that is not theirs.
    """
    labels: dict[str, set[int]] = defaultdict(set)
    for text, label in zip(first.texts, first.labels, strict=True):
        labels[text.strip()].add(label)
    shared = duplicates_between(first, other)
    return {
        "verbatim": len(duplicates_between(first, other, alike="verbatim")),
        "apart_from_outer_whitespace": len(shared),
        "with_another_label": sum(
            labels[other.texts[index].strip()] != {other.labels[index]} for index in shared
        ),
    }


def surplus_copies(texts: Sequence[str]) -> int:
    """Count rows whose text, outer whitespace apart, already stands in an earlier row."""
    return len(texts) - len({text.strip() for text in texts})


def conflicting_texts(labelled: LabelledTexts) -> int:
    """Count the texts, outer whitespace apart, that stand there with more than one label."""
    pairs = {
        (text.strip(), label) for text, label in zip(labelled.texts, labelled.labels, strict=True)
    }
    return len(pairs) - len({text for text, _ in pairs})


def describe(parts: dict[str, LabelledTexts], notes: list[str]) -> dict[str, Any]:
    """Return the counts, hashes and duplicates of the parts, with a sentence for what is odd.

    Args:
        parts: the training part as "train", and others by name.
        notes: sentences to which those found here are added.

    Returns:
        ``label_names``; by part ``counts``, ``class_counts``, ``content_hash`` and ``source``;
        ``duplicates``, for validation and test their `overlap` with training;
        ``duplicates_in_validation``, the test part's with validation;
        ``surplus_copies_in_training`` and ``conflicting_texts_in_training``; and ``notes``.
    """
    train, validation = parts["train"], parts.get("validation")
    duplicates = {name: overlap(train, part) for name, part in parts.items() if name != "train"}
    chosen_on = {}
    if validation is not None and "test" in parts:
        chosen_on = {"test": overlap(validation, parts["test"])}
    conflicts = conflicting_texts(train)
    found = [
        duplicates_note(f"{len(parts[name]):,} {name} texts", place, counts)
        for place, overlaps in (
            ("in training", duplicates),
            ("in validation, where the checkpoint is chosen", chosen_on),
        )
        for name, counts in overlaps.items()
        if counts["apart_from_outer_whitespace"]
    ]
    if conflicts:
        found.append(f"{conflicts} training texts stand there with more than one label.")
    return {
        "label_names": list(train.label_names),
        "counts": {name: len(part) for name, part in parts.items()},
        "class_counts": {name: _class_counts(part) for name, part in parts.items()},
        "content_hash": {name: part.content_hash() for name, part in parts.items()},
        "source": {name: part.source for name, part in parts.items()},
        "duplicates": duplicates,
        "duplicates_in_validation": chosen_on,
        "surplus_copies_in_training": surplus_copies(train.texts),
        "conflicting_texts_in_training": conflicts,
        "notes": notes + found,
    }


def duplicates_note(texts: str, place: str, counts: dict[str, int]) -> str:
    """Return the sentence about an ``overlap`` of ``texts`` with those that stand in ``place``."""
    other = counts["with_another_label"]
    contradiction = f"; {other} with another label" if other else ""
    return (
        f"{counts['apart_from_outer_whitespace']} of {texts} also stand {place} "
        f"({counts['verbatim']} of them to the character{contradiction})."
    )


def _class_counts(part: LabelledTexts) -> dict[str, int]:
    counts = Counter(part.labels)
    return {name: counts[label] for label, name in enumerate(part.label_names)}
