"""A truncated adapter's folder: proven, certified, loaded by PEFT; or not there at all."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import DoRA, Head, LoRA
from deltafit.prediction.canaries import canary_logits, largest_difference
from deltafit.prediction.folder import load_saved
from deltafit.prediction.truncating import rank_errors, truncate
from tests.prediction.derived import made, saved_on
from tests.tiny_models import tiny_inputs
from tests.training.tiny_runs import save_model, write_table

pytestmark = pytest.mark.slow

METHOD = LoRA("all-linear", rank=6, rank_pattern=(("query", 2),))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("base"))


def test_the_certificate_is_true(base: str, tmp_path: Path) -> None:
    saved_on(base, tmp_path / "one", METHOD)
    texts = write_table(tmp_path / "texts.csv", 12)
    foretold = rank_errors(tmp_path / "one")
    report = truncate(tmp_path / "one", tmp_path / "two", rank=3, data=texts, tolerance=9)
    one, two = load_saved(tmp_path / "one"), load_saved(tmp_path / "two")
    before, after = (
        canary_logits(saved.classifier, saved.facts["canaries"], saved.max_length)
        for saved in (one, two)
    )
    found = report.certificate
    assert found.canaries.texts == 16 and found.canaries.largest_change > 0
    assert found.canaries.largest_change == pytest.approx(
        largest_difference(after, before), rel=1e-3
    )
    assert found.canaries.flipped == (after.argmax(1) != before.argmax(1)).sum()
    assert found.probe is not None and found.probe.texts == 12
    assert found.energy_lost == pytest.approx(foretold.overall[3] ** 2, rel=1e-6)
    ranks = {loss.name: loss.rank for loss in found.matrices}
    assert {2, 3} == set(ranks.values())
    for key in ("label_names", "head", "max_length", "canaries"):
        assert one.facts[key] == two.facts[key]
    kept = made(tmp_path / "two")
    assert kept["by"] == "truncate" and kept["rank"] == 3
    assert kept["of"] == [str((tmp_path / "one").resolve())]
    assert kept["certificate"]["canaries"] == vars(found.canaries)
    assert kept["certificate"]["energy_lost"] == found.energy_lost
    assert len(kept["certificate"]["matrices"]) == len(ranks)


def test_peft_loads_it_and_the_head_is_the_same(base: str, tmp_path: Path) -> None:
    saved_on(base, tmp_path / "one", METHOD)
    truncate(tmp_path / "one", tmp_path / "two", energy=0.8, tolerance=9)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "two").eval()
    ours = load_saved(tmp_path / "two").classifier.model
    with torch.no_grad():
        inputs = tiny_inputs(plain)
        torch.testing.assert_close(
            theirs(**inputs).logits, ours(**inputs).logits, rtol=1e-5, atol=1e-5
        )
    one, two = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("one", "two"))
    heads = [name for name in one if "classifier" in name]
    assert heads and all(torch.equal(one[name], two[name]) for name in heads)


@pytest.mark.parametrize("head", ["architecture", "mean"])
def test_at_the_full_rank_nothing_changes(base: str, tmp_path: Path, head: str) -> None:
    saved_on(base, tmp_path / "one", METHOD, head=head)
    report = truncate(tmp_path / "one", tmp_path / "two", rank=6, tolerance=0)
    assert report.certificate.canaries.largest_change == 0
    assert report.certificate.energy_lost == 0 and report.certificate.probe is None
    stored = [load_file(tmp_path / n / "canaries.safetensors")["logits"] for n in ("one", "two")]
    np.testing.assert_array_equal(*stored)


def test_above_the_tolerance_nothing_is_left_behind(base: str, tmp_path: Path) -> None:
    saved_on(base, tmp_path / "one", METHOD, std=0.5)
    with pytest.raises(DeltafitError, match=r"a logit would change by .* Nothing was written"):
        truncate(tmp_path / "one", tmp_path / "two", rank=1, tolerance=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]
    texts = tmp_path / "texts.txt"
    texts.write_text("w5 w9 w11\nw40 w41\n")
    wide = truncate(tmp_path / "one", tmp_path / "two", rank=1, tolerance=99, data=texts)
    assert wide.certificate.probe is not None
    assert wide.certificate.probe.largest_change > 0


def test_what_cannot_be_truncated(base: str, tmp_path: Path) -> None:
    saved_on(base, tmp_path / "dora", DoRA(rank=2))
    saved_on(base, tmp_path / "head", Head())
    for name in ("dora", "head"):
        with pytest.raises(DeltafitError, match=f"holds an adapter of the method {name}"):
            truncate(tmp_path / name, tmp_path / "out", rank=1)
    with pytest.raises(UsageError, match="exists already"):
        truncate(tmp_path / "dora", tmp_path / "head", rank=1)
    with pytest.raises(UsageError, match="give one of them"):
        truncate(tmp_path / "dora", tmp_path / "out")
    with pytest.raises(UsageError, match="tolerance must be"):
        truncate(tmp_path / "dora", tmp_path / "out", rank=1, tolerance=float("nan"))
    with pytest.raises(UsageError, match="text_column is a column of data"):
        truncate(tmp_path / "dora", tmp_path / "out", rank=1, text_column="said")
    assert not (tmp_path / "out").exists()
