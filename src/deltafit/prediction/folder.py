"""The adapter folder: what deltafit keeps beside the tensors, and how it is read back and proven.

``deltafit.json`` holds label names, head, base fingerprint, data hash, metrics and versions;
``canaries.safetensors`` the logits of sixteen fixed sentences, and digests of what decides a
prediction.
"""

import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from deltafit.adapters import (
    QUANTISED,
    StoredAdapter,
    load_adapter,
    model_adapters,
    quantisation_of,
    quantise,
    read_adapter,
    save_adapter,
)
from deltafit.data import ModelSource, resolve_model
from deltafit.errors import DeltafitError
from deltafit.files import read_json, write_folder_atomically, write_json_atomically
from deltafit.prediction.canaries import (
    canary_logits,
    check_canaries,
    read_canaries,
    readable_sentences,
    write_canaries,
)
from deltafit.prediction.fingerprint import check_fingerprint, fingerprint
from deltafit.prediction.location import FACTS_FILE, adapter_folder
from deltafit.tasks.classification import Classifier, HeadKind, HeadSettings, load_classifier

FORMAT = 1
AS_LOADED = "float32"  # base weights that are not quantised


@dataclass(frozen=True)
class SavedClassifier:
    """A classifier read back from disk and checked.

    Attributes:
        classifier: ready to predict.
        max_length: tokens a text is cut to.
        facts: the content of ``deltafit.json``.
        notes: sentences for the person about what was not understood.
        canary_difference: the largest difference from the stored canary logits; see
            ``largest_difference``.
    """

    classifier: Classifier
    max_length: int
    facts: dict[str, Any]
    notes: tuple[str, ...]
    canary_difference: float


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    packages = ("deltafit", "torch", "transformers", "accelerate", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def save_classifier(
    classifier: Classifier,
    folder: Path,
    *,
    base_fingerprint: dict[str, Any],
    max_length: int,
    facts: dict[str, Any],
) -> None:
    """Write the active adapter with all it needs to be used and to prove itself.

    Args:
        classifier: with its adapter active.
        folder: appears whole or not at all.
        base_fingerprint: of the base, taken before it was quantised or adapted.
        max_length: tokens a text is cut to.
        facts: metrics, data hash and other facts of its making, as JSON values.
    """
    sentences = readable_sentences(classifier.tokenizer)
    logits = canary_logits(classifier, sentences, max_length)
    architecture_head = classifier.head.kind == "architecture"
    active = model_adapters(classifier.model).active
    assert active is not None
    quantisation = quantisation_of(classifier.model)
    content = {
        "format": FORMAT,
        "label_names": list(classifier.label_names),
        "head": asdict(classifier.head),
        "head_parameters": list(classifier.head_parameters),
        "max_length": max_length,
        "base": {
            "name": _lasting_name(classifier.source),
            "hub_id": classifier.source.hub_id,
            "tensors": base_fingerprint,
            "weights": quantisation or AS_LOADED,
        },
        "canaries": sentences,
        "versions": versions()
        | ({"bitsandbytes": version("bitsandbytes")} if quantisation is not None else {}),
        **facts,
    }
    with write_folder_atomically(folder) as temporary:
        save_adapter(
            classifier.model,
            temporary,
            active,
            base_name=classifier.source.hub_id or str(Path(classifier.source.location).resolve()),
            task_type="SEQ_CLS" if architecture_head else None,
        )
        write_canaries(temporary, logits, content)
        write_json_atomically(temporary / FACTS_FILE, content)


def prove_saved(folder: Path) -> None:
    """Prove that a folder just written gives back the model that was trained; remove it if not.

    It is loaded as ``predict`` will load it: the files are whole and belong together, the base is
    found again by its name and is the one that was trained on, every tensor finds its place, and
    the canaries get the logits that the model in memory gave them when it was saved. That takes a
    second model's memory; free the first before where that matters.

    Raises:
        DeltafitError: it cannot be loaded, or is another model.
    """
    try:
        load_saved(folder)
    except DeltafitError as error:
        shutil.rmtree(folder)
        raise DeltafitError(
            f"The adapter was saved to {folder} but does not come back as it was trained, so it "
            f"was not kept. {error}"
        ) from error


def _lasting_name(source: ModelSource) -> str:
    """Return what finds a base again, whatever the working directory is by then."""
    if source.hub_id is not None:
        return source.name
    return str(Path(source.location).resolve() / (source.gguf_file or ""))


def load_saved(path: str | Path, *, model: str | None = None) -> SavedClassifier:
    """Load a saved classifier onto its base, and prove that it is the one that was saved.

    Args:
        path: a run's folder or its ``adapter`` folder.
        model: where to find the base, if not where it was found when training.

    Raises:
        DeltafitError: a file is missing or damaged, the base is another one, or the canaries
            give other logits.
    """
    folder = adapter_folder(path)
    facts = read_facts(folder)
    expected = read_canaries(folder, facts)
    weights = facts["base"].get("weights", AS_LOADED)
    classifier, notes = _assembled(folder, facts, model, weights)
    max_length: int = facts["max_length"]
    difference = check_canaries(classifier, facts["canaries"], expected, max_length, str(folder))
    return SavedClassifier(classifier, max_length, facts, notes, difference)


def load_unquantised(path: str | Path, *, model: str | None = None) -> Classifier:
    """Load a saved classifier onto its base in float32, whatever the base was trained in.

    Where that was quantised, it predicts otherwise than it was trained to, and its canaries prove
    nothing; the base's fingerprint is checked all the same. For the arguments and what is raised
    see ``load_saved``.
    """
    folder = adapter_folder(path)
    return _assembled(folder, read_facts(folder), model, AS_LOADED)[0]


def _assembled(
    folder: Path, facts: dict[str, Any], model: str | None, weights: str
) -> tuple[Classifier, tuple[str, ...]]:
    """Return the base with the adapter on it, and notes on what was not understood.

    Args:
        folder: the adapter's.
        facts: the content of ``deltafit.json``.
        model: see ``load_saved``.
        weights: how the base's are stored.
    """
    stored = read_adapter(folder)
    classifier = load_base(folder, facts, model)
    head = tuple(facts["head_parameters"])
    check_fingerprint(
        facts["base"]["tensors"],
        fingerprint(classifier.model, head),
        where=str(folder),
        base=classifier.source.name,
    )
    _check_head(folder, stored, head)
    if weights in QUANTISED:
        quantise(classifier.model, weights)
    load_adapter(classifier.model, stored)
    classifier.model.eval()
    return classifier, stored.notes


def load_base(folder: Path, facts: dict[str, Any], model: str | None) -> Classifier:
    """Load the base of an adapter with a new head, by what ``read_facts`` returned."""
    try:
        return load_classifier(
            resolve_model(model or facts["base"]["name"]),
            facts["label_names"],
            HeadSettings(facts["head"]["kind"], facts["head"]["dropout"]),
            seed=0,
        )
    except DeltafitError as error:
        if model is not None:
            raise
        raise DeltafitError(
            f"The base model of {folder} could not be loaded. {error} If it has moved, name its "
            "place with --model."
        ) from error


def _check_head(folder: Path, stored: StoredAdapter, head: tuple[str, ...]) -> None:
    missing = [name for name in head if name not in stored.replaced]
    if missing:
        raise DeltafitError(
            f"{folder} lacks the trained head ({missing[0]!r}); without it every prediction would "
            "be random. Restore the folder or train again."
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict) and {"shape", "sample"} <= entry.keys() for entry in value.values()
    )


_WEIGHTS = (AS_LOADED, *QUANTISED)
# What loading reads of deltafit.json: the place, what must stand there, and whether it does.
_NEEDED: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("label_names", "a list of different names", lambda v: _are_texts(v) and len(set(v)) == len(v)),
    ("head.kind", f"one of {', '.join(get_args(HeadKind))}", lambda v: v in get_args(HeadKind)),
    ("head.dropout", "a number from 0 to 1", lambda v: type(v) in (int, float) and 0 <= v <= 1),
    ("head_parameters", "a list of names", _are_texts),
    ("max_length", "a whole number above 0", lambda v: type(v) is int and v > 0),
    ("base.name", "a name or a path", _is_text),
    ("base.tensors", "shape and sample of each tensor", _are_tensors),
    ("base.weights", f"one of {', '.join(_WEIGHTS)}", lambda v: v is None or v in _WEIGHTS),
    ("canaries", "a list of sentences", _are_texts),
)


def read_facts(folder: Path) -> dict[str, Any]:
    """Read ``deltafit.json``.

    Raises:
        DeltafitError: it is missing, damaged, of another format, or does not hold what loading
            needs; the sentence names every such place.
    """
    path = folder / FACTS_FILE
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise DeltafitError(f"{path} holds no JSON object; the file is damaged.")
    if facts.get("format") != FORMAT:
        raise DeltafitError(
            f"{path} has format {facts.get('format')}; this version reads format {FORMAT}. Use the "
            f"version of deltafit that wrote it ({_at(facts, 'versions.deltafit')})."
        )
    faults = [
        f"{key!r} must be {what}, and is {'missing' if value is None else repr(value)[:60]}"
        for key, what, is_right in _NEEDED
        if not is_right(value := _at(facts, key))
    ]
    if faults:
        raise DeltafitError(f"{path} is damaged: {'; '.join(faults)}. Restore a copy.")
    result: dict[str, Any] = facts
    return result


def _at(content: Any, key: str) -> Any:
    """Return what stands at a dotted key; None where nothing does."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
