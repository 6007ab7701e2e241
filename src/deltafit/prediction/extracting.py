"""``extract``: an adapter from what a fine-tuned model changed in its base."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltafit.adapters import merge_and_unload, quantisation_of
from deltafit.adapters.extraction import extracted
from deltafit.adapters.low_rank import RankChoice
from deltafit.adapters.merging import refuse_insertion
from deltafit.data import resolve_model
from deltafit.errors import DeltafitError, UsageError
from deltafit.files import refuse_existing
from deltafit.prediction.canaries import readable_sentences
from deltafit.prediction.certificates import (
    DEFAULT_TOLERANCE,
    Certificate,
    Logits,
    certify,
    check_tolerance,
    look,
    look_with,
    probe_texts,
    save_certified,
)
from deltafit.prediction.fingerprint import fingerprint
from deltafit.prediction.folder import load_saved, prove_saved
from deltafit.prediction.location import is_run_or_adapter
from deltafit.tasks.classification import Classifier, HeadSettings, load_classifier
from deltafit.tasks.loading import load_config
from deltafit.tasks.positions import usable_length

_UNLIMITED = 1_000_000  # transformers writes 10³⁰ where a tokenizer knows of no limit
_USUAL_LENGTH = 256


@dataclass(frozen=True)
class ExtractReport:
    """An extracted adapter.

    Attributes:
        folder: the adapter's.
        certificate: how far it lies from the fine-tuned model. Its ``energy_lost`` counts what was
            left out too.
        whole: parameters beside the head that are stored whole.
        left_out: parameters that changed and that the adapter does not hold, with their share of
            the energy of all changes.
    """

    folder: Path
    certificate: Certificate
    whole: tuple[str, ...]
    left_out: dict[str, float]


@dataclass(frozen=True)
class _Tuned:
    """A fine-tuned model, plain, with what it says and how it reads."""

    classifier: Classifier
    base: Classifier
    seen: Logits
    sentences: list[str]
    max_length: int


def extract(
    tuned: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    dense: bool = False,
    keep_others: bool = False,
    max_length: int | None = None,
    data: str | Path | None = None,
    text_column: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> ExtractReport:
    """Make an adapter of what a fine-tuned classifier changed in its base.

    Each matrix gets the nearest ΔW of its rank, as LoRA, or with ``dense`` all of its ΔW, as a
    sparse update of every entry (8 bytes each on disk); the head is stored whole. What else changed
    (norms, biases) is left to the base and reported, or stored whole where that can be.

    Args:
        tuned: a transformers checkpoint of a text classifier; or a run's folder or its ``adapter``
            folder, of any method, so that full fine-tuning and DoRA become LoRA.
        output: the new adapter's folder; refused if it exists.
        base: the model that a checkpoint was fine-tuned from; of a run, where its base is, if not
            where it was found when training.
        rank: of every matrix, at most its smaller side.
        energy: share of each ‖ΔW‖² to keep, in place of ``rank``.
        dense: keep each ΔW whole, in place of both.
        keep_others: store modules that changed and hold no matrix, such as norms, whole. Biases of
            adapted layers are left out all the same.
        max_length: tokens a text is cut to; None for what the run, or the checkpoint's tokenizer,
            says.
        data: texts to compare the predictions on beside the canary sentences.
        text_column: the column of texts, where it is not to be found by itself.
        tolerance: the largest change of a logit, relative where logits are above 1.

    Raises:
        DeltafitError: a model cannot be loaded, the two do not belong together, no matrix changed,
            or a logit changes by more than ``tolerance``; nothing is left behind.
        UsageError: ``output`` exists, a base is missing, not just one of ``rank``, ``energy`` and
            ``dense`` is given, or a value is out of its range.
    """
    choice, output = _choice(rank, energy, dense), Path(output)
    check_tolerance(tolerance)
    if max_length is not None and max_length < 1:
        raise UsageError(f"max_length must be at least 1; got {max_length}.")
    check_tuned(tuned, base)
    refuse_existing(output)
    texts = probe_texts(data, text_column)
    made = {
        "by": "extract",
        "of": [str(Path(tuned).resolve()) if Path(tuned).exists() else str(tuned)],
        **{"rank": rank, "energy": energy, "dense": dense, "tolerance": tolerance},
    }
    report = _written(
        _loaded(tuned, base, max_length, texts), output, choice, keep_others, texts, tolerance, made
    )
    prove_saved(output)
    return report


def _choice(rank: int | None, energy: float | None, dense: bool) -> RankChoice | None:
    """Return how each ΔW is cut; None where it is kept whole."""
    if not dense:
        return RankChoice(rank, energy)
    if (rank, energy) != (None, None):
        raise UsageError("dense keeps each ΔW whole, and rank and energy cut it: give one of them.")
    return None


def check_tuned(tuned: str | Path, base: str | None) -> None:
    """Refuse a checkpoint without a base, and models that are not there.

    Raises:
        DeltafitError: there is no such model.
        UsageError: a checkpoint's base is not named.
    """
    if is_run_or_adapter(tuned):
        return
    resolve_model(str(tuned))
    if base is None:
        raise UsageError(
            f"base is missing: {tuned} is a checkpoint, which does not say what it was fine-tuned "
            "from."
        )
    resolve_model(base)


def _loaded(
    tuned: str | Path, base: str | None, max_length: int | None, texts: tuple[str, ...]
) -> _Tuned:
    """Load a fine-tuned model and its base, both plain."""
    if not is_run_or_adapter(tuned):
        assert base is not None
        return _checkpoint(str(tuned), base, max_length, texts)
    saved = load_saved(tuned, model=base)
    classifier = saved.classifier
    refuse_insertion(classifier.model)
    if quantisation_of(classifier.model) is not None:
        raise DeltafitError(
            f"{tuned} was trained on base weights in few bits, so what it changed is not a change "
            "of the base as it is on disk. deltafit merge adds it to that one; extract from the "
            "checkpoint."
        )
    length, sentences = max_length or saved.max_length, saved.facts["canaries"]
    seen = look(classifier, sentences, texts, length)
    merge_and_unload(classifier.model)
    plain = load_classifier(classifier.source, classifier.label_names, classifier.head, seed=0)
    return _Tuned(classifier, plain, seen, sentences, length)


def _checkpoint(tuned: str, base: str, max_length: int | None, texts: tuple[str, ...]) -> _Tuned:
    source = resolve_model(tuned)
    config = load_config(source)
    if not any("Classification" in name for name in getattr(config, "architectures", None) or ()):
        raise DeltafitError(
            f"{tuned} is no text classifier (its config.json names "
            f"{getattr(config, 'architectures', None)}), so it has no head that could be kept."
        )
    names = [name for _, name in sorted(config.id2label.items())]
    classifier = load_classifier(source, names, HeadSettings(), seed=0)
    plain = load_classifier(resolve_model(base), names, HeadSettings(), seed=0)
    known = int(getattr(classifier.tokenizer, "model_max_length", _UNLIMITED))
    wanted = max_length or (known if known < _UNLIMITED else _USUAL_LENGTH)
    length = usable_length(classifier.model, wanted)
    sentences = readable_sentences(plain.tokenizer)
    return _Tuned(classifier, plain, look(classifier, sentences, texts, length), sentences, length)


def _written(
    loaded: _Tuned,
    output: Path,
    choice: RankChoice | None,
    keep_others: bool,
    texts: tuple[str, ...],
    tolerance: float,
    made: dict[str, Any],
) -> ExtractReport:
    """Write the extracted adapter; the models are let go of on return."""
    plain, head = loaded.base, loaded.base.head_parameters
    found = extracted(
        plain.model, loaded.classifier.model, choice, head=head, keep_others=keep_others
    )
    tuned = loaded.classifier.model
    stored = found.stored({n: tuned.get_parameter(n).detach().cpu().clone() for n in head})
    actual = look_with(plain, stored, loaded.sentences, texts, loaded.max_length)
    certificate = certify(actual, loaded.seen, found.losses, found.energy_lost, tolerance=tolerance)
    total = sum(loss.energy for loss in found.losses) + sum(found.left_out.values())
    left_out = {name: energy / total for name, energy in found.left_out.items()}
    made |= {
        "whole": list(found.whole),
        "left_out": left_out,
        "certificate": certificate.to_dict(),
    }
    save_certified(
        plain,
        stored,
        output,
        base_fingerprint=fingerprint(plain.model, head),
        max_length=loaded.max_length,
        made=made,
    )
    return ExtractReport(output, certificate, tuple(found.whole), left_out)
