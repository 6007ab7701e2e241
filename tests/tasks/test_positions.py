"""The longest text a model takes, against running it."""

from pathlib import Path

import pytest
import torch

from deltafit.data import resolve_model
from deltafit.tasks.classification import HeadSettings, load_classifier
from deltafit.tasks.inference import compute_logits
from deltafit.tasks.positions import usable_length
from tests.tiny_models import ARCHITECTURES
from tests.training.tiny_runs import LABELS, save_model

ABSOLUTE = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "gpt2", "opt")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_longest_text_runs_and_a_longer_one_would_not(
    tmp_path: Path, architecture: str
) -> None:
    model = save_model(tmp_path, architecture)
    classifier = load_classifier(resolve_model(model), LABELS, HeadSettings(), seed=0)
    assert usable_length(classifier.model, 7) == 7
    longest = usable_length(classifier.model, 1000)
    assert (longest < 1000) == (architecture in ABSOLUTE)
    row = [5] * min(longest, 100)
    assert torch.isfinite(torch.from_numpy(compute_logits(classifier, [row]))).all()
    if architecture in ABSOLUTE:
        with pytest.raises((IndexError, RuntimeError)):
            compute_logits(classifier, [[5] * (longest + 1)])
