"""What travels with an adapter so that it can prove itself.

The logits of sixteen fixed sentences, and, for what may change without moving them, a seal.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltafit.adapters.saving import CONFIG_FILE
from deltafit.errors import DeltafitError
from deltafit.files import (
    read_tensor_metadata,
    read_tensors,
    sha256_of_file,
    write_tensors_atomically,
)
from deltafit.prediction.location import FACTS_FILE
from deltafit.tasks.classification import Classifier
from deltafit.tasks.inference import compute_logits_alone, tokenise_for

CANARIES_FILE = "canaries.safetensors"
_SEAL = "deltafit"
# The facts that decide a prediction; where the base lies may change.
_DECIDING = ("label_names", "head", "head_parameters", "max_length", "canaries")

# Written for this purpose and never training texts: different lengths, topics and alphabets.
SENTENCES = (
    "The train leaves at seven.",
    "I have been waiting for three weeks and nobody answers the phone.",
    "What a wonderful evening that was!",
    "Two plus two is four.",
    "The film begins slowly, but the last half hour makes up for everything that came before it.",
    "Please send the invoice to the address below.",
    "no",
    "WIN A FREE HOLIDAY NOW!!! Reply YES to claim your prize",
    "Wo ist der nächste Bahnhof?",
    "La biblioteca cierra a las nueve de la noche.",
    "今日は天気がいいですね。",
    "My card was charged twice for the same purchase, and I would like the second one refunded.",
    "def add(a, b): return a + b",
    "She said that he said that they had never said it.",
    "🙂 ok, see you there 👍",
    "It is neither good nor bad, neither long nor short, neither old nor new; it simply is what it "
    "is, and anyone who asks for more will have to look for it in another place altogether.",
)

# The same weights on another processor or torch differ in the last bits of each product, which
# grows with depth; a wrong head or base differs by whole units.
TOLERANCE = 1e-3


def readable_sentences(tokenizer: Any) -> list[str]:
    """Return the sentences, without those that a tokenizer of few characters drops whole."""
    return [text for text in SENTENCES if tokenizer(text)["input_ids"]]


def canary_logits(classifier: Classifier, sentences: Sequence[str], max_length: int) -> np.ndarray:
    """Return the classifier's float32 logits of the sentences, ``[sentences, labels]``."""
    rows = tokenise_for(classifier, sentences, max_length).input_ids
    return compute_logits_alone(classifier, rows)


def largest_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of two sets of logits, relative to their size where above 1."""
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(actual - expected).max()) / scale


def check_canaries(
    classifier: Classifier,
    sentences: Sequence[str],
    expected: np.ndarray,
    max_length: int,
    where: str,
) -> float:
    """Return the largest difference from the stored logits.

    Raises:
        DeltafitError: it is above ``TOLERANCE``.
    """
    actual = canary_logits(classifier, sentences, max_length)
    difference = largest_difference(actual, expected)
    # Also false for NaN.
    if not difference <= TOLERANCE:
        worst = int(np.abs(actual - expected).max(axis=1).argmax())
        raise DeltafitError(
            f"{where}: the loaded model does not give the logits the adapter was saved with: on "
            f"{sentences[worst]!r} it gives {np.round(actual[worst], 3).tolist()[:4]} and not "
            f"{np.round(expected[worst], 3).tolist()[:4]}. The adapter, its base or the library "
            "has changed since. Load the base it was made on, or train it again."
        )
    return difference


def write_canaries(folder: Path, logits: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Write the canaries' logits and the seal, when all other files stand in the folder.

    Args:
        folder: the adapter's.
        logits: ``[sentences, labels]``.
        facts: what ``deltafit.json`` will hold.
    """
    write_tensors_atomically(
        folder / CANARIES_FILE,
        {"logits": torch.from_numpy(logits)},
        {_SEAL: json.dumps(_seal(folder, facts))},
    )


def read_canaries(folder: Path, facts: Mapping[str, Any]) -> np.ndarray:
    """Return the stored logits, ``[sentences, labels]``, if the folder is still as it was sealed.

    The seal tells of damage and of changes by hand or by other tools. It is no signature: whoever
    changes the folder on purpose can seal it again.

    Raises:
        DeltafitError: the file is missing or damaged, or a fact or PEFT's configuration is another
            than when the adapter was saved; the sentence names each.
    """
    path = folder / CANARIES_FILE
    logits = read_tensors(path).get("logits")
    _check_seal(folder, facts)
    shape = (len(facts["canaries"]), len(facts["label_names"]))
    if logits is None or logits.shape != shape:
        found = "no logits" if logits is None else f"logits of shape {list(logits.shape)}"
        raise DeltafitError(
            f"{path} holds {found}; {FACTS_FILE} beside it has {shape[0]} sentences and {shape[1]} "
            "labels. The files do not belong together."
        )
    expected: np.ndarray = logits.float().numpy()
    return expected


def _seal(folder: Path, facts: Mapping[str, Any]) -> dict[str, str | None]:
    """Return SHA-256 digests of the deciding facts and of PEFT's configuration (None: no file)."""
    deciding = {key: facts[key] for key in _DECIDING} | {"base.tensors": facts["base"]["tensors"]}
    # Folders from before bases could be quantised do not have it.
    deciding |= {f"base.{key}": facts["base"][key] for key in ("weights",) if key in facts["base"]}
    digests: dict[str, str | None] = {
        key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        for key, value in deciding.items()
    }
    config = folder / CONFIG_FILE
    return digests | {CONFIG_FILE: sha256_of_file(config) if config.exists() else None}


def _check_seal(folder: Path, facts: Mapping[str, Any]) -> None:
    path = folder / CANARIES_FILE
    try:
        sealed = dict(json.loads(read_tensor_metadata(path)[_SEAL]))
    except (KeyError, TypeError, ValueError) as error:
        raise DeltafitError(
            f"{path} lacks the digests of what it was saved with, so the adapter cannot be proven; "
            "restore a copy."
        ) from error
    now = _seal(folder, facts)
    changed = [key for key in {**now, **sealed} if sealed.get(key, "") != now.get(key, "")]
    names = ", ".join(repr(key) for key in changed if key != CONFIG_FILE)
    problems = []
    if names:
        problems.append(
            f"{folder / FACTS_FILE}: {names} changed since the adapter was saved, so its "
            "predictions may be others."
        )
    if CONFIG_FILE in changed:
        problems.append(
            f"{folder / CONFIG_FILE} is not what was saved with the adapter, so PEFT may compute "
            "something else; if another tool rewrote it, the adapter can no longer be proven."
        )
    if problems:
        raise DeltafitError(" ".join([*problems, "Restore the folder or train again."]))
