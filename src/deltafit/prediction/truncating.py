"""``truncate``: a saved LoRA adapter cut to a smaller rank, and what every rank would lose."""

from dataclasses import dataclass
from pathlib import Path

from deltafit.adapters import read_adapter, remove_adapter
from deltafit.adapters.low_rank import RankChoice, energy_lost
from deltafit.adapters.truncation import RankErrors, truncated
from deltafit.adapters.truncation import rank_errors as errors_of_stored
from deltafit.files import refuse_existing
from deltafit.prediction.certificates import (
    DEFAULT_TOLERANCE,
    Certificate,
    certify,
    check_tolerance,
    look,
    look_with,
    probe_texts,
    save_certified,
)
from deltafit.prediction.folder import load_saved, prove_saved
from deltafit.prediction.location import adapter_folder


@dataclass(frozen=True)
class TruncateReport:
    """A truncated adapter: its folder, and how far it lies from the one it was made of."""

    folder: Path
    certificate: Certificate


def rank_errors(folder: str | Path) -> RankErrors:
    """Return what cutting a saved adapter to each rank would lose; its base is not loaded.

    Raises:
        DeltafitError: the folder cannot be read, or the adapter is of another method than LoRA.
    """
    place = adapter_folder(folder)
    return errors_of_stored(read_adapter(place), str(place))


def truncate(
    folder: str | Path,
    output: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    data: str | Path | None = None,
    text_column: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    model: str | None = None,
) -> TruncateReport:
    """Cut a saved LoRA adapter to a smaller rank: of each ΔW, the nearest matrix of that rank.

    The head and all else that is stored whole stay. A matrix whose rank is small enough already
    stays bit for bit.

    Args:
        folder: a run's folder or its ``adapter`` folder.
        output: the new adapter's folder; refused if it exists.
        rank: of every matrix.
        energy: share of each ‖ΔW‖² to keep, in place of ``rank``: each matrix gets the smallest
            rank that does.
        data: texts to compare the predictions on beside the canary sentences.
        text_column: the column of texts, where it is not to be found by itself.
        tolerance: the largest change of a logit, relative where logits are above 1.
        model: where to find the base, if not where it was found when training.

    Raises:
        DeltafitError: the folder cannot be loaded or proven, the adapter is of another method than
            LoRA, or a logit changes by more than ``tolerance``; nothing is left behind.
        UsageError: ``output`` exists, not just one of ``rank`` and ``energy`` is given, or a value
            is out of its range.
    """
    choice, output = RankChoice(rank, energy), Path(output)
    check_tolerance(tolerance)
    refuse_existing(output)
    texts = probe_texts(data, text_column)
    certificate = _written(adapter_folder(folder), output, choice, texts, tolerance, model)
    prove_saved(output)
    return TruncateReport(output, certificate)


def _written(
    folder: Path,
    output: Path,
    choice: RankChoice,
    texts: tuple[str, ...],
    tolerance: float,
    model: str | None,
) -> Certificate:
    """Write the truncated adapter; the model is let go of on return."""
    # Refused before a model is loaded, if it is no LoRA.
    result, losses = truncated(read_adapter(folder), choice, str(folder))
    saved = load_saved(folder, model=model)
    classifier, facts, max_length = saved.classifier, saved.facts, saved.max_length
    expected = look(classifier, facts["canaries"], texts, max_length)
    remove_adapter(classifier.model, "default")
    actual = look_with(classifier, result, facts["canaries"], texts, max_length)
    found = certify(actual, expected, losses, energy_lost(losses), tolerance=tolerance)
    made = {
        "by": "truncate",
        "of": [str(folder.resolve())],
        "rank": choice.rank,
        "energy": choice.energy,
        "tolerance": tolerance,
        "certificate": found.to_dict(),
    }
    save_certified(
        classifier,
        result,
        output,
        base_fingerprint=facts["base"]["tensors"],
        max_length=max_length,
        made=made,
    )
    return found
