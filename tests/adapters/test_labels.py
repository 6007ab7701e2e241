"""A head with other labels, and what a transformers model says of them in its loss and file."""

from pathlib import Path

import torch
from torch.nn import functional

from deltafit.adapters import activate, adapt, disabled, merge_and_unload, remove_adapter
from deltafit.methods import Head, LoRA
from tests.adapters.adapted import head_of, logits, new_head, randomise
from tests.tiny_models import tiny_inputs, tiny_model

NAMES = {0: "bad", 1: "so-so", 2: "good"}


def test_label_names_and_the_models_own_loss_go_with_the_head() -> None:
    model = tiny_model("bert", num_labels=3)
    model.config.id2label, model.config.label2id = NAMES, {n: i for i, n in NAMES.items()}
    adapt(model, LoRA(), name="five", head=head_of(model), initial=new_head(5))
    labels = torch.tensor([0, 4, 1])
    loss = model(**tiny_inputs(model), labels=labels).loss
    torch.testing.assert_close(loss, functional.cross_entropy(logits(model), labels))
    model.config.id2label = {i: f"star {i}" for i in range(5)}
    adapt(model, Head(), name="same", head=head_of(model))
    assert model.config.id2label == NAMES and model.num_labels == 3
    activate(model, "five")  # with the names that it was given
    assert model.config.id2label[4] == "star 4" and model.num_labels == 5
    with disabled(model):
        assert model.config.id2label == NAMES and model.config.label2id["good"] == 2
        model(**tiny_inputs(model), labels=torch.tensor([0, 2, 1]))
    assert model.config.num_labels == model.num_labels == 5
    remove_adapter(model, "five")
    assert model.config.id2label == NAMES and model.num_labels == 3


def test_a_head_with_other_labels_merged_for_good_reloads(tmp_path: Path) -> None:
    model = tiny_model("bert", num_labels=3)
    adapt(model, LoRA(), head=head_of(model), initial=new_head(5))
    randomise(model)
    merge_and_unload(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(model))
    assert again.config.num_labels == 5
