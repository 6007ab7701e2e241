"""Tokens and logits of a classifier for many texts."""

from pathlib import Path

import pytest

from deltafit.errors import DeltafitError
from deltafit.tasks.inference import tokenise_for
from tests.tiny_models import VOCABULARY
from tests.training.tiny_runs import adapted, save_model, tiny_tokenizer


@pytest.mark.parametrize("head", ["architecture", "mean"])
def test_a_token_that_the_model_has_no_embedding_of_is_one_sentence(
    tmp_path: Path, head: str
) -> None:
    model = save_model(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["added"])
    tokenizer.save_pretrained(tmp_path)
    classifier = adapted(model, head=head)
    assert tokenise_for(classifier, ["w1 w2"], 8).input_ids == [[5, 6]]
    with pytest.raises(DeltafitError, match=rf"'w1 added' the token {VOCABULARY}, but .* 64 tok"):
        tokenise_for(classifier, ["w1 w2", "w1 added"], 8)
