"""What is made of adapters is told to be: how far its logits lie from where they should."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltafit.adapters import StoredAdapter, load_adapter, remove_adapter
from deltafit.adapters.low_rank import MatrixLoss
from deltafit.data import load_texts
from deltafit.errors import DeltafitError, UsageError
from deltafit.prediction.canaries import canary_logits, largest_difference
from deltafit.prediction.folder import save_classifier
from deltafit.tasks.classification import Classifier

DEFAULT_TOLERANCE = 0.1
"""A tenth of the largest logit, or of 1 where all are smaller."""


@dataclass(frozen=True)
class Agreement:
    """How far two sets of logits lie apart.

    Attributes:
        texts: how many texts.
        largest_change: of a logit, relative where logits are above 1.
        flipped: predictions that are others.
    """

    texts: int
    largest_change: float
    flipped: int


@dataclass(frozen=True)
class Certificate:
    """What a merge, a cut to a rank or another conversion changed.

    Attributes:
        canaries: on the sentences that travel with the adapter.
        probe: on the texts that were given; None where none were.
        energy_lost: share of ‖ΔW‖², all matrices together, that was lost; its root is the relative
            error in the Frobenius norm.
        matrices: what each matrix kept and lost; none of a merge, which cuts nothing.
    """

    canaries: Agreement
    probe: Agreement | None
    energy_lost: float
    matrices: tuple[MatrixLoss, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as JSON values."""
        matrices = [{**asdict(loss), "relative_error": loss.error} for loss in self.matrices]
        return {**asdict(self), "matrices": matrices}


@dataclass(frozen=True)
class Logits:
    """What a classifier says of the texts that certificates are about.

    Attributes:
        canaries: ``[sentences, labels]``.
        probe: ``[texts, labels]``; None where no texts were given.
    """

    canaries: np.ndarray
    probe: np.ndarray | None


def probe_texts(data: str | Path | None, text_column: str | None) -> tuple[str, ...]:
    """Return the texts of a table or file; none where none is given.

    Raises:
        DeltafitError: the data cannot be read, or a text is empty.
        UsageError: a column is named and no data.
    """
    if data is None:
        if text_column is not None:
            raise UsageError("text_column is a column of data, which is not given.")
        return ()
    return load_texts(data, text_column=text_column)[0]


def look(
    classifier: Classifier, sentences: Sequence[str], texts: Sequence[str], max_length: int
) -> Logits:
    """Return the logits of the sentences and of the texts, each from a pass of its own."""
    return Logits(
        canary_logits(classifier, sentences, max_length),
        canary_logits(classifier, texts, max_length) if texts else None,
    )


def look_with(
    classifier: Classifier,
    stored: StoredAdapter,
    sentences: Sequence[str],
    texts: Sequence[str],
    max_length: int,
) -> Logits:
    """Return ``look`` with an adapter on the classifier's base, which is taken off again."""
    load_adapter(classifier.model, stored)
    classifier.model.eval()
    seen = look(classifier, sentences, texts, max_length)
    remove_adapter(classifier.model, "default")
    return seen


def agreement(actual: np.ndarray, expected: np.ndarray) -> Agreement:
    """Compare two sets of logits, ``[texts, labels]`` each."""
    flipped = int((actual.argmax(1) != expected.argmax(1)).sum())
    return Agreement(len(actual), largest_difference(actual, expected), flipped)


def certify(
    actual: Logits,
    expected: Logits,
    losses: Sequence[MatrixLoss],
    lost: float,
    *,
    tolerance: float,
    advice: str = "Keep a larger rank or share of the energy, or allow it with --tolerance.",
) -> Certificate:
    """Return the certificate of what says ``actual`` in place of ``expected``.

    Args:
        actual: its logits.
        expected: what they should be.
        losses: what each matrix lost.
        lost: share of the energy that was lost.
        tolerance: the largest change of a logit, relative where logits are above 1.
        advice: what can be done about a larger one.

    Raises:
        DeltafitError: a logit changes by more than ``tolerance``.
    """
    probe = None
    if actual.probe is not None and expected.probe is not None:
        probe = agreement(actual.probe, expected.probe)
    found = Certificate(agreement(actual.canaries, expected.canaries), probe, lost, tuple(losses))
    for what, seen in (("canary sentences", found.canaries), ("texts given", found.probe)):
        # Also true for NaN.
        if seen is not None and not seen.largest_change <= tolerance:
            # Below that it is rounding.
            energy = f", and {100 * lost:.2g} % of the energy ‖ΔW‖² is lost" if lost > 1e-6 else ""
            raise DeltafitError(
                f"On the {seen.texts} {what} a logit would change by {seen.largest_change:.2g} "
                f"(relative where logits are above 1), more than the tolerance of {tolerance:g}; "
                f"{seen.flipped} of the predictions would flip{energy}. "
                f"Nothing was written. {advice}"
            )
    return found


def check_tolerance(tolerance: float) -> None:
    """Raise a UsageError unless a tolerance is a number of at least 0."""
    if not tolerance >= 0:  # NaN too
        raise UsageError(f"tolerance must be a number of at least 0; got {tolerance!r}.")


def save_certified(
    classifier: Classifier,
    stored: StoredAdapter,
    output: Path,
    *,
    base_fingerprint: dict[str, Any],
    max_length: int,
    made: dict[str, Any],
) -> None:
    """Put an adapter on the classifier's base and write its folder.

    What calls this lets go of the classifier and then proves the folder with ``prove_saved``, which
    loads another.

    Args:
        classifier: with no adapter on it.
        stored: the adapter.
        output: the new folder.
        base_fingerprint: see ``save_classifier``.
        max_length: tokens a text is cut to.
        made: what it was made of and how, with its certificate, as JSON values.

    Raises:
        DeltafitError: the disk refuses, or PEFT's format has no place for what it stores whole.
    """
    load_adapter(classifier.model, stored)
    classifier.model.eval()
    save_classifier(
        classifier,
        output,
        base_fingerprint=base_fingerprint,
        max_length=max_length,
        facts={"method": stored.method.to_dict(), "made": made},
    )
