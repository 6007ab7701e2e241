"""A LoRA from a fine-tuned checkpoint, or from a run of any method, proven and certified."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import IA3, DoRA, Full, Head, LastBlocks, LoHa, LoRA, Method, VeRA
from deltafit.prediction.canaries import canary_logits, largest_difference
from deltafit.prediction.extracting import extract
from deltafit.prediction.folder import load_saved
from deltafit.prediction.merging import merge
from tests.prediction.derived import made, saved_on
from tests.tiny_models import tiny_inputs
from tests.training.tiny_runs import LABELS, save_model, write_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("base"))


def test_a_checkpoint_becomes_a_lora(base: str, tmp_path: Path) -> None:
    """What transformers alone would load, from all parameters moved, but for the biases."""
    saved_on(base, tmp_path / "full", Full(), std=0.02)
    merge(tmp_path / "full", tmp_path / "tuned")
    texts = write_table(tmp_path / "texts.csv", 12)
    report = extract(
        tmp_path / "tuned", tmp_path / "out",
        base=base, rank=99, keep_others=True, tolerance=9, data=texts,
    )  # fmt: skip
    found = load_saved(tmp_path / "out")
    assert found.classifier.label_names == LABELS and found.max_length == 16
    full = load_saved(tmp_path / "full")
    before, after = (
        canary_logits(saved.classifier, found.facts["canaries"], 16) for saved in (full, found)
    )
    change = report.certificate.canaries.largest_change
    assert change == pytest.approx(largest_difference(after, before), rel=1e-2)
    assert report.certificate.probe is not None and report.certificate.probe.texts == 12
    # At the full rank the biases are all that is lost.
    assert report.left_out and all(name.endswith(".bias") for name in report.left_out)
    assert report.certificate.energy_lost == pytest.approx(sum(report.left_out.values()), rel=1e-6)
    assert report.whole and all("LayerNorm" in name for name in report.whole)
    kept = made(tmp_path / "out")
    assert kept["left_out"] == report.left_out and kept["whole"] == list(report.whole)
    assert kept["by"] == "extract" and kept["of"] == [str((tmp_path / "tuned").resolve())]
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "out").eval()
    with torch.no_grad():
        inputs = tiny_inputs(plain)
        torch.testing.assert_close(
            theirs(**inputs).logits,
            found.classifier.model(**inputs).logits,
            rtol=1e-5, atol=1e-5,
        )  # fmt: skip


@pytest.mark.parametrize("head", ["architecture", "mean"])
@pytest.mark.parametrize(
    ("method", "rank"),
    [
        (LoRA("all-linear", rank=2), 2),
        (DoRA(rank=2), 99),
        (VeRA(rank=5), 5),
        (IA3(), 99),
        (LastBlocks(1), 99),
    ],
    ids=str,
)
def test_a_run_of_any_method_becomes_a_lora(
    base: str, tmp_path: Path, method: Method, rank: int, head: str
) -> None:
    saved_on(base, tmp_path / "one", method, head=head)
    report = extract(tmp_path / "one", tmp_path / "out", rank=rank, keep_others=True, tolerance=9)
    if not report.left_out:
        assert report.certificate.canaries.largest_change < 1e-4
        assert report.certificate.canaries.flipped == 0
    # (IA)³ scales the biases of keys and values too.
    assert (not report.left_out) == (not isinstance(method, IA3 | LastBlocks))
    assert all(name.endswith(".bias") for name in report.left_out)
    assert made(tmp_path / "out")["rank"] == rank
    one, two = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("one", "out"))
    for name in (name for name in one if ".classifier." in name):
        assert torch.equal(one[name], two[name])


@pytest.mark.parametrize("head", ["architecture", "mean"])
@pytest.mark.parametrize("method", [DoRA("all-linear", rank=2), LoHa(rank=2), Full()], ids=str)
def test_kept_whole_a_run_says_what_it_said(
    base: str, tmp_path: Path, method: Method, head: str
) -> None:
    saved_on(base, tmp_path / "one", method, head=head)
    report = extract(tmp_path / "one", tmp_path / "out", dense=True, tolerance=9)
    assert (not report.left_out) == isinstance(method, DoRA | LoHa)
    if not report.left_out:
        assert report.certificate.canaries.largest_change < 1e-5
        assert report.certificate.energy_lost == report.certificate.canaries.flipped == 0
    else:
        with pytest.raises(DeltafitError, match=r"more than the tolerance of 1e-06.*Nothing was"):
            extract(tmp_path / "one", tmp_path / "again", dense=True, tolerance=1e-6)
        assert not (tmp_path / "again").exists()
    kept = made(tmp_path / "out")
    assert kept["dense"] is True and kept["rank"] is kept["energy"] is None
    assert kept["certificate"] == report.certificate.to_dict()
    before, after = (load_saved(tmp_path / name).classifier for name in ("one", "out"))
    sentences = load_saved(tmp_path / "out").facts["canaries"]
    change = largest_difference(*(canary_logits(one, sentences, 16) for one in (after, before)))
    said = report.certificate.canaries.largest_change
    assert change == pytest.approx(said, rel=1e-2, abs=1e-6)


def test_an_energy_gives_each_matrix_its_rank(base: str, tmp_path: Path) -> None:
    saved_on(base, tmp_path / "one", DoRA("all-linear", rank=2), std=0.2)
    report = extract(tmp_path / "one", tmp_path / "out", energy=0.9, tolerance=9)
    assert all(loss.error**2 <= 0.1 for loss in report.certificate.matrices)
    assert len({loss.rank for loss in report.certificate.matrices}) > 1
    assert 0 < report.certificate.energy_lost <= 0.1


def test_what_is_refused(base: str, tmp_path: Path) -> None:
    saved_on(base, tmp_path / "full", Full(), std=0.1)
    saved_on(base, tmp_path / "head", Head())
    with pytest.raises(DeltafitError, match=r"more than the tolerance of 1e-05.*Nothing was"):
        extract(tmp_path / "full", tmp_path / "out", rank=1, tolerance=1e-5)
    with pytest.raises(DeltafitError, match="No matrix differs"):
        extract(tmp_path / "head", tmp_path / "out", rank=1)
    with pytest.raises(UsageError, match=r"base is missing: .*is a checkpoint"):
        extract(base, tmp_path / "out", rank=1)
    with pytest.raises(DeltafitError, match="is no text classifier"):
        extract(base, tmp_path / "out", base=base, rank=1)
    with pytest.raises(UsageError, match="give one of them"):
        extract(tmp_path / "full", tmp_path / "out")
    with pytest.raises(UsageError, match="dense keeps each ΔW whole"):
        extract(tmp_path / "full", tmp_path / "out", rank=1, dense=True)
    with pytest.raises(UsageError, match="exists already"):
        extract(tmp_path / "full", tmp_path / "head", rank=1)
    merge(tmp_path / "full", tmp_path / "tuned")
    other = save_model(tmp_path / "gpt", "gpt2")
    with pytest.raises(DeltafitError, match="does not come from this base"):
        extract(tmp_path / "tuned", tmp_path / "out", base=other, rank=1)
    with pytest.raises(DeltafitError, match="There is no model at"):
        extract(tmp_path / "nowhere", tmp_path / "out", base=base, rank=1)
    assert not (tmp_path / "out").exists()
