"""``merge``: a saved adapter and its base as one plain checkpoint that loads without deltafit."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from deltafit.adapters import merge_and_unload, quantisation_of
from deltafit.adapters.quantised import Quantisation
from deltafit.errors import DeltafitError
from deltafit.files import (
    refuse_existing,
    write_folder_atomically,
    write_json_atomically,
    write_tensors_atomically,
)
from deltafit.prediction.canaries import TOLERANCE, canary_logits, largest_difference
from deltafit.prediction.folder import load_saved, load_unquantised
from deltafit.tasks.classification import Classifier
from deltafit.tasks.pooling import PooledClassifier

HEAD_FILE = "head.safetensors"


@dataclass(frozen=True)
class MergeReport:
    """What merging changed, on the canary sentences.

    Attributes:
        folder: the checkpoint.
        largest_change: the largest change of a logit, relative where logits are above 1.
        flipped: predictions that changed, of 16.
        head_apart: whether the head is a file of its own, since transformers has no such class.
        quantised: how the base weights were stored in training, if not in float32. The adapter was
            then merged into the float32 ones, and what changed is chiefly their rounding.
    """

    folder: Path
    largest_change: float
    flipped: int
    head_apart: bool
    quantised: Quantisation | None


def merge(folder: str | Path, output: str | Path, *, model: str | None = None) -> MergeReport:
    """Add a saved adapter to its base and write a plain transformers checkpoint.

    With the architecture's own head the checkpoint loads with
    ``AutoModelForSequenceClassification`` and predicts the same, longer texts too where the
    tokenizer is called with ``truncation=True``. A pooled head has no class in transformers: the
    checkpoint is the encoder alone (``AutoModel``), and ``head.safetensors`` and ``head.json``
    beside it say how to read logits off it.

    An adapter that was trained on a quantised base is merged into the base in float32: rounding the
    sum again would lose what is small in Δ. The checkpoint then predicts otherwise than the adapter
    does on its own base; the report says by how much.

    Args:
        folder: a run's folder or its ``adapter`` folder.
        output: the new folder; refused if it exists.
        model: where to find the base, if not where it was found when training.

    Raises:
        DeltafitError: the folder cannot be loaded or proven, or merging changes its predictions.
        UsageError: ``output`` exists.
    """
    output = Path(output)
    refuse_existing(output)
    saved = load_saved(folder, model=model)
    classifier = saved.classifier
    sentences, max_length = saved.facts["canaries"], saved.max_length
    proven = before = canary_logits(classifier, sentences, max_length)
    quantised = quantisation_of(classifier.model)
    if quantised is not None:
        del saved, classifier  # the memory of a model, before the next is loaded
        classifier = load_unquantised(folder, model=model)
        before = canary_logits(classifier, sentences, max_length)
    merge_and_unload(classifier.model)
    after = canary_logits(classifier, sentences, max_length)
    change = largest_difference(after, before)
    flipped = int((before.argmax(1) != after.argmax(1)).sum())
    if not change <= TOLERANCE or flipped:
        raise DeltafitError(
            f"Merging {folder} would change its predictions: a canary's logit moves by "
            f"{change:.2g} and {flipped} of {len(before)} predictions flip. Nothing was written."
        )
    _write(classifier, output, max_length)
    return MergeReport(
        output,
        largest_difference(after, proven),
        int((proven.argmax(1) != after.argmax(1)).sum()),
        isinstance(classifier.model, PooledClassifier),
        quantised,
    )


def _write(classifier: Classifier, output: Path, max_length: int) -> None:
    """Write a merged classifier as a plain checkpoint."""
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
