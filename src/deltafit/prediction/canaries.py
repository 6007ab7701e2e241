"""Sixteen fixed sentences whose logits travel with an adapter, so that it can prove itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from deltafit.errors import DeltafitError
from deltafit.tasks.classification import Classifier
from deltafit.tasks.inference import compute_logits, tokenise_for

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
    # One at a time: what a sentence gives must not depend on how it was padded.
    return compute_logits(classifier, rows, batch_size=1)


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
