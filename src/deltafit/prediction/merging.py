"""``merge``: a saved adapter and its base as one plain checkpoint that loads without deltafit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from deltafit.adapters import merge_and_unload, model_adapters, quantisation_of
from deltafit.adapters.merging import lost_to_rounding, refuse_insertion
from deltafit.adapters.quantised import Quantisation
from deltafit.errors import DeltafitError
from deltafit.files import (
    refuse_existing,
    write_folder_atomically,
    write_json_atomically,
    write_tensors_atomically,
)
from deltafit.prediction.canaries import TOLERANCE, canary_logits
from deltafit.prediction.certificates import (
    DEFAULT_TOLERANCE,
    Certificate,
    agreement,
    certify,
    check_tolerance,
    look,
    probe_texts,
)
from deltafit.prediction.folder import load_saved, load_unquantised
from deltafit.prediction.location import adapter_folder
from deltafit.tasks.classification import Classifier
from deltafit.tasks.pooling import PooledClassifier

HEAD_FILE = "head.safetensors"
CERTIFICATE_FILE = "certificate.json"


@dataclass(frozen=True)
class MergeReport:
    """A merged checkpoint.

    Attributes:
        folder: the checkpoint's.
        certificate: how far it lies from the adapter on the base that it was trained on.
        head_apart: whether the head is a file of its own, since transformers has no such class.
        quantised: how the base weights were stored in training, if they were not merged into as
            they were stored then. The adapter was merged into those in float32, and what changed is
            chiefly their rounding.
    """

    folder: Path
    certificate: Certificate
    head_apart: bool
    quantised: Quantisation | None


def merge(
    folder: str | Path,
    output: str | Path,
    *,
    data: str | Path | None = None,
    text_column: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    model: str | None = None,
) -> MergeReport:
    """Add a saved adapter to its base and write a plain transformers checkpoint.

    With the architecture's own head the checkpoint loads with
    ``AutoModelForSequenceClassification``; longer texts are cut alike where the tokenizer is called
    with ``truncation=True``. A pooled head has no class in transformers: the checkpoint is then the
    encoder alone (see ``config.json``); ``head.safetensors`` and ``head.json`` say how to go on.

    An adapter that was trained on a quantised base is merged into the base in float32: rounding the
    sum again would lose what is small in Δ. The checkpoint then predicts otherwise than the adapter
    does on its own; ``certificate.json`` says by how much. LoftQ's goes into the rounded weights.

    Args:
        folder: a run's folder or its ``adapter`` folder.
        output: the new folder; refused if it exists.
        data: texts to compare the predictions on beside the canary sentences.
        text_column: the column of texts, where it is not to be found by itself.
        tolerance: the largest change of a logit, relative where logits are above 1.
        model: where to find the base, if not where it was found when training.

    Raises:
        DeltafitError: the folder cannot be loaded or proven, a logit changes by more than
            ``tolerance``, or the sum itself, on one base, changes predictions; nothing is written.
        UsageError: ``output`` exists, or a value is out of its range.
    """
    output = Path(output)
    check_tolerance(tolerance)
    refuse_existing(output)
    texts = probe_texts(data, text_column)
    saved = load_saved(folder, model=model)
    classifier = saved.classifier
    refuse_insertion(classifier.model)
    sentences, max_length = saved.facts["canaries"], saved.max_length
    proven = look(classifier, sentences, texts, max_length)
    before, stored_in = proven.canaries, quantisation_of(classifier.model)
    quantised = None if _makes_up(classifier) else stored_in
    if quantised is not None:
        del saved, classifier  # the memory of a model, before the next is loaded
        classifier = load_unquantised(folder, model=model)
        before = canary_logits(classifier, sentences, max_length)
    lost = lost_to_rounding(classifier.model)
    merge_and_unload(classifier.model)
    after = look(classifier, sentences, texts, max_length)
    _check_sum(folder, after.canaries, before)
    found = certify(after, proven, (), lost, tolerance=tolerance, advice=_advice(quantised))
    place = str(adapter_folder(folder).resolve())
    made = {
        **{"by": "merge", "of": [place], "base_weights_in_training": stored_in or "float32"},
        **{"tolerance": tolerance, "certificate": found.to_dict()},
    }
    _write(classifier, output, max_length, made)
    return MergeReport(output, found, isinstance(classifier.model, PooledClassifier), quantised)


def _makes_up(classifier: Classifier) -> bool:
    """Return whether the adapter makes up for the base's rounding; then it belongs to that base."""
    return model_adapters(classifier.model).adapters["default"].corrects is not None


def _check_sum(folder: str | Path, after: np.ndarray, before: np.ndarray) -> None:
    """Refuse a sum that is not what the adapter computes on the same base: a fault, no rounding."""
    found = agreement(after, before)
    if not found.largest_change <= TOLERANCE or found.flipped:
        raise DeltafitError(
            f"Merging {folder} would change its predictions: a canary's logit moves by "
            f"{found.largest_change:.2g} and {found.flipped} of {found.texts} predictions flip. "
            "Nothing was written."
        )


def _advice(quantised: Quantisation | None) -> str:
    if quantised is None:
        return "Allow it with --tolerance."
    return (
        f"The adapter was trained on base weights in {quantised}, and is merged into those in "
        "float32. Allow it with --tolerance, and evaluate the checkpoint before you rely on it."
    )


def _write(classifier: Classifier, output: Path, max_length: int, made: dict[str, Any]) -> None:
    """Write a merged classifier as a plain checkpoint, and how it was made beside it."""
    pooled = isinstance(classifier.model, PooledClassifier)
    plain = classifier.model.get_submodule("encoder") if pooled else classifier.model
    assert isinstance(plain, PreTrainedModel)
    names = classifier.label_names
    plain.config.id2label = dict(enumerate(names))
    plain.config.label2id = {name: index for index, name in enumerate(names)}
    # Where to cut is part of what was trained, and transformers asks the tokenizer for it.
    classifier.tokenizer.model_max_length = max_length
    with write_folder_atomically(output) as temporary:
        plain.save_pretrained(temporary)
        classifier.tokenizer.save_pretrained(temporary)
        write_json_atomically(temporary / CERTIFICATE_FILE, made)
        if pooled:
            _write_head(classifier.model, temporary, names, max_length)


def _write_head(
    model: torch.nn.Module, folder: Path, names: tuple[str, ...], max_length: int
) -> None:
    assert isinstance(model, PooledClassifier)
    head = {f"classifier.{name}": p for name, p in model.classifier.named_parameters()}
    write_tensors_atomically(folder / HEAD_FILE, head)
    description = {
        "pooling": model.pooling,
        "label_names": list(names),
        "max_length": max_length,
        "logits": "pool(last_hidden_state) @ classifier.weight.T + classifier.bias",
    }
    write_json_atomically(folder / "head.json", description)
