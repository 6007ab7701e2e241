"""Facts about the parts of a data set: counts, hashes, and texts that stand in it twice."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from deltafit.data.texts import LabelledTexts


def duplicates_between(
    train: LabelledTexts, other: LabelledTexts, *, verbatim: bool = False
) -> tuple[int, ...]:
    """Return the indices of rows in ``other`` whose text also stands in ``train``.

    Args:
        train: the training part.
        other: the part to be measured on.
        verbatim: every character must be equal; otherwise outer whitespace, which tokenizers
            drop or nearly so, is ignored.
    """

    def key(text: str) -> str:
        return text if verbatim else text.strip()

    seen = {key(text) for text in train.texts}
    return tuple(index for index, text in enumerate(other.texts) if key(text) in seen)


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
        ``duplicates``, for validation and test the number of rows whose text stands in training
        (``verbatim``, and ``apart_from_outer_whitespace``); ``surplus_copies_in_training`` and
        ``conflicting_texts_in_training``; and ``notes``.
    """
    train = parts["train"]
    duplicates = {
        name: {
            "verbatim": len(duplicates_between(train, part, verbatim=True)),
            "apart_from_outer_whitespace": len(duplicates_between(train, part)),
        }
        for name, part in parts.items()
        if name != "train"
    }
    conflicts = conflicting_texts(train)
    found = [
        f"{counts['apart_from_outer_whitespace']} of {len(parts[name]):,} {name} texts also stand "
        f"in training ({counts['verbatim']} of them to the character)."
        for name, counts in duplicates.items()
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
        "surplus_copies_in_training": surplus_copies(train.texts),
        "conflicting_texts_in_training": conflicts,
        "notes": notes + found,
    }


def _class_counts(part: LabelledTexts) -> dict[str, int]:
    counts = Counter(part.labels)
    return {name: counts[label] for label, name in enumerate(part.label_names)}
