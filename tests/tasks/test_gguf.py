import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from deltafit.data import resolve_model
from deltafit.tasks import gguf
from deltafit.tasks.gguf import as_checkpoint
from deltafit.tasks.loading import load_encoder, load_tokenizer


@pytest.mark.slow
def test_a_gguf_file_is_unpacked_once_to_the_very_same_model(smollm2_path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    source = resolve_model(smollm2_path)
    tokenizer, decoder = load_tokenizer(source)
    assert decoder

    def refuse(*arguments, **settings):
        raise AssertionError("the GGUF file was read again")

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "AutoModel", refuse)
        ours = load_encoder(source, tokenizer)
    options = {"gguf_file": source.gguf_file}
    theirs = AutoModel.from_pretrained(source.location, dtype=torch.float32, **options)
    expected = dict(theirs.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in ours.named_parameters())
    assert len(expected) == len(dict(ours.named_parameters()))
    text = "A text, with Ünïcode and 12 numbers."
    direct = AutoTokenizer.from_pretrained(source.location, **options)
    assert tokenizer(text)["input_ids"] == direct(text)["input_ids"]


def test_an_ordinary_checkpoint_is_loaded_where_it_is(minilm_path):
    source = resolve_model(minilm_path)
    assert as_checkpoint(source) == source
