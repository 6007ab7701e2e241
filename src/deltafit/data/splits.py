"""Training, validation and test parts: as given, or cut, and the facts of how."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltafit.data.distinct import without_duplicates
from deltafit.data.facts import describe, duplicates_between
from deltafit.data.labels import LabelSet
from deltafit.data.reader import Reader
from deltafit.data.sampling import balanced_indices, check_seed, stratified_cut, stratified_sample
from deltafit.data.sources import check_path, find_data
from deltafit.data.tables import format_of
from deltafit.data.texts import LabelledTexts
from deltafit.errors import DeltafitError, UsageError

# The test part of a catalogue name that has none of its own. Its seed is fixed and not the run's,
# so that runs with different seeds are measured on the same rows.
TEST_FRACTION = 0.2
_TEST_SEED = 0


@dataclass(frozen=True)
class Splits:
    """The parts of a data set.

    Attributes:
        train: the rows to train on.
        validation: the rows to choose settings and checkpoints on, if any.
        test: the rows to measure on, if any.
        facts: JSON-able; what was read, found, cut and counted (keys in `load_splits`).
    """

    train: LabelledTexts
    validation: LabelledTexts | None
    test: LabelledTexts | None
    facts: dict[str, Any]

    def parts(self) -> dict[str, LabelledTexts]:
        """Return the parts there are, training first, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    def content_hashes(self) -> dict[str, str]:
        """Return the hash of each part's content by its name."""
        return {name: part.content_hash() for name, part in self.parts().items()}

    def duplicates(self, name: str) -> tuple[int, ...]:
        """Return the indices of a part's rows whose text stands in the training part too.

        Test rows that stand in validation only are not among them: no label of theirs was learned,
        they only helped to choose a checkpoint. ``facts`` counts them.
        """
        return () if name == "train" else duplicates_between(self.train, self.parts()[name])


def load_splits(
    data: str | Path,
    *,
    test_data: str | Path | None = None,
    validation: str | Path | float = "0.1",
    text_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    balance: bool = False,
    limit: int | None = None,
    drop_duplicates: bool = False,
) -> Splits:
    """Load and check the parts of a data set.

    The order of work: read the training rows; give or cut the test part; balance; limit; give or
    cut the validation part; drop duplicates. So balancing and the limit touch only rows that
    training or a validation part cut from it may use; a test part keeps its natural shares.

    Args:
        data: a .csv, .tsv, .jsonl or .parquet file, a folder with train / validation / test
            files, or a catalogue name (imdb, rotten_tomatoes, sms_spam, banking77).
        test_data: the test part; it replaces the data's own. Without either, a file or folder
            has no test part, and a catalogue name has a stratified 20 % cut off, the same rows
            for every seed.
        validation: a fraction to cut off the training rows (stratified, by seed) where the data
            has no validation part of its own (with one, it is used, and a note says so); a path;
            or "none", to train on all training rows.
        text_column: the column of texts, where it is not to be found by itself.
        label_column: the same for labels.
        seed: cuts, balancing and the limit follow it.
        balance: downsample every class of the training rows to the smallest.
        limit: train on a stratified subsample of at most so many rows.
        drop_duplicates: see `without_duplicates`.

    Returns:
        the parts. ``facts`` has ``data``, ``origin``, ``location``, ``columns``, ``seed``,
        ``single_row_classes``; ``train``, ``validation``, ``test``, sentences on how each came
        about; and what `facts.describe` adds, with ``notes`` that the person should see.

    Raises:
        DeltafitError: anything wrong with the data; the sentence says file, row and column.
        UsageError: an option makes no sense.
    """
    check_seed(seed)
    how_validation = _parse_validation(validation)
    source = find_data(data)
    reader = Reader(source, text_column, label_column)
    facts: dict[str, Any] = {
        **{"data": source.name, "origin": source.origin, "location": source.location},
        **{"seed": seed, "single_row_classes": []},
    }
    train = reader.read(source, "train")
    train, test = _test_part(reader, train, test_data, facts)
    train = _reduced(train, balance, limit, seed, facts)
    train, valid = _validation_part(reader, train, how_validation, seed, facts)
    if drop_duplicates:
        train, valid = without_duplicates(train, valid, test, reader.notes)
    splits = Splits(train, valid, test, facts)
    facts |= {"columns": vars(reader.columns), **describe(splits.parts(), reader.notes)}
    return splits


def check_paths(data: str, test_data: str | None, validation: str) -> None:
    """Check what `load_splits` is asked to read, as far as that goes without reading any of it.

    Raises:
        DeltafitError: there is nothing at one of the paths.
        UsageError: the validation part is neither a fraction nor a file.
    """
    for path in (data, test_data, _parse_validation(validation)):
        if isinstance(path, str | Path):
            check_path(path)


def _parse_validation(validation: str | Path | float) -> float | Path | None:
    if isinstance(validation, Path):
        return validation
    if isinstance(validation, str) and validation.casefold() == "none":
        return None
    try:
        fraction = float(validation)
    except ValueError:
        path = Path(str(validation))
        if path.expanduser().exists() or format_of(path) is not None:
            return path
        fraction = math.nan
    if not 0 < fraction < 1:
        raise UsageError(
            f"The validation fraction is {validation}; give a number between 0 and 1 such as 0.1, "
            "a file, or 'none' to train on all rows."
        )
    return fraction


def _given(reader: Reader, path: str | Path, part: str) -> LabelledTexts:
    """Read a part given by path; of a folder or catalogue name, that part."""
    found = find_data(path)
    if found.origin == "file":
        return reader.read(found, "train")
    if part not in found.parts:
        raise DeltafitError(f"{found.location} has no {part} part. Give a file.")
    return reader.read(found, part)


def _test_part(
    reader: Reader, train: LabelledTexts, given: str | Path | None, facts: dict[str, Any]
) -> tuple[LabelledTexts, LabelledTexts | None]:
    if given is not None:
        facts["test"] = f"given: {given}"
        return train, _given(reader, given, "test")
    if "test" in reader.source.parts:
        test = reader.read(reader.source, "test")
        facts["test"] = f"the data's own part: {test.source}"
        return train, test
    if not reader.source.in_catalogue:
        facts["test"] = "none given"
        return train, None
    train, test = _cut_test(train)
    facts["test"] = (
        f"cut: {reader.source.name} ({reader.source.origin}) has no test part, so a stratified "
        f"{TEST_FRACTION:.0%} of its rows was cut off ({len(test):,} rows, the same for every "
        "seed; other test rows than in published results)"
    )
    reader.notes.append(f"Test part {facts['test']}.")
    return train, test


def _cut_test(train: LabelledTexts) -> tuple[LabelledTexts, LabelledTexts]:
    cut = stratified_cut(train.labels, TEST_FRACTION, _TEST_SEED, train.source)
    return train.select(cut.kept), train.select(cut.cut)


def _reduced(
    train: LabelledTexts, balance: bool, limit: int | None, seed: int, facts: dict[str, Any]
) -> LabelledTexts:
    steps = [f"{len(train):,} rows"]
    if balance:
        train = train.select(balanced_indices(train.labels, seed))
        steps.append(f"balanced by downsampling to {len(train):,} (seed {seed})")
    if limit is not None:
        train = train.select(stratified_sample(train.labels, limit, seed))
        steps.append(f"limited to a stratified {len(train):,} (seed {seed})")
    facts["train"] = ", ".join(steps)
    return train


def _validation_part(
    reader: Reader,
    train: LabelledTexts,
    how: float | Path | None,
    seed: int,
    facts: dict[str, Any],
) -> tuple[LabelledTexts, LabelledTexts | None]:
    own = "validation" in reader.source.parts
    if how is None:
        facts["validation"] = "none: training uses all training rows"
        if own:
            facts["validation"] += "; the data's own validation part is not used"
        return train, None
    if isinstance(how, Path):
        facts["validation"] = f"given: {how}"
        return train, _given(reader, how, "validation")
    if own:
        valid = reader.read(reader.source, "validation")
        facts["validation"] = f"the data's own part: {valid.source}"
        # Said always: a fraction that was asked for cannot be told from the default.
        reader.notes.append(
            f"Validation is {facts['validation']}; no fraction ({how:g}) is cut off training."
        )
        return train, valid
    cut = stratified_cut(train.labels, how, seed, train.source)
    facts["validation"] = (
        f"cut: a stratified {how:.3g} of the {len(train):,} training rows ({len(cut.cut):,} rows, "
        f"seed {seed})"
    )
    single = [train.label_names[label] for label in cut.single_row_classes]
    if single:
        facts["single_row_classes"] = single
        reader.notes.append(
            f"{len(single)} classes have a single training row, which stays in training: "
            f"{', '.join(single[:8])}{', …' if len(single) > 8 else ''}. Validation cannot "
            "measure them."
        )
    return train.select(cut.kept), train.select(cut.cut)


def load_labelled(
    data: str | Path,
    label_names: Sequence[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
) -> LabelledTexts:
    """Load rows to evaluate a finished classifier on, its classes given.

    Of a folder or catalogue name the test part is taken: its own, or, for a catalogue name
    without one, the rows that `load_splits` cuts off.

    Raises:
        DeltafitError: as in `load_splits`; a label outside ``label_names`` is one not seen in
            training.
    """
    source = find_data(data)
    known = LabelSet(tuple(label_names), folded=set(label_names) <= {"false", "true"})
    reader = Reader(source, text_column, label_column, classes=known)
    if source.in_catalogue and "test" not in source.parts:
        part = _cut_test(reader.read(source, "train"))[1]
    else:
        part = _given(reader, data, "test")
    return replace(part, notes=tuple(reader.notes))
