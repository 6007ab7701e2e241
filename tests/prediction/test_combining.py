"""Combined adapters' folders: the sum of the ΔW and the mean of the heads, proven and certified."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from deltafit.adapters import layer_state, model_adapters
from deltafit.adapters.combination import Combination
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import DoRA, LoRA
from deltafit.prediction.canaries import canary_logits
from deltafit.prediction.combining import combine
from deltafit.prediction.folder import load_saved
from tests.prediction.derived import made, saved_on
from tests.tiny_models import tiny_inputs
from tests.training.tiny_runs import LABELS, save_model

pytestmark = pytest.mark.slow

TWO = (LoRA(("query", "value"), rank=3), LoRA(("query", "word_embeddings"), rank=2, alpha=3))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def folders(base: str, tmp_path: Path) -> list[Path]:
    for number, method in enumerate(TWO):
        saved_on(base, tmp_path / str(number), method, seed=number, max_length=9 + number)
    return [tmp_path / "0", tmp_path / "1"]


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    model = load_saved(folder).classifier.model
    return {
        name: layer_state(model.get_submodule(name)).deltas("default")["weight"].detach()
        for name in model_adapters(model).adapters["default"].targets
    }


def test_linear_is_the_sum_and_the_head_the_mean(folders: list[Path], tmp_path: Path) -> None:
    weights = (0.75, 0.5)
    report = combine(folders, tmp_path / "sum", combination=Combination(weights=weights))
    one, other, found = (deltas(folder) for folder in (*folders, tmp_path / "sum"))
    assert set(found) == set(one) | set(other)
    for name, delta in found.items():
        parts = [w * d[name] for w, d in zip(weights, (one, other), strict=True) if name in d]
        torch.testing.assert_close(delta, sum(parts), rtol=1e-5, atol=1e-6)
    files = [load_file(f / "adapter_model.safetensors") for f in (*folders, tmp_path / "sum")]
    for name in (name for name in files[2] if ".classifier." in name):
        mean = 0.6 * files[0][name] + 0.4 * files[1][name]
        torch.testing.assert_close(files[2][name], mean)
    assert report.certificate.canaries.largest_change == 0 and report.certificate.energy_lost == 0
    kept = made(tmp_path / "sum")
    assert kept["weights"] == list(weights) and kept["way"] == "linear"
    assert kept["head"] == "average" and len(kept["of"]) == len(kept["from_each"]) == 2
    saved = load_saved(tmp_path / "sum")
    assert saved.max_length == 10
    logits = canary_logits(saved.classifier, saved.facts["canaries"], 10)
    for folder, seen in zip(folders, report.from_each, strict=True):
        single = load_saved(folder)
        own = canary_logits(single.classifier, single.facts["canaries"], single.max_length)
        assert seen.flipped == (own.argmax(1) != logits.argmax(1)).sum()


def test_one_adapter_of_weight_1_is_itself(folders: list[Path], tmp_path: Path) -> None:
    for number, combination in enumerate((Combination(), Combination("svd", rank=3))):
        out = tmp_path / f"out{number}"
        report = combine(folders[:1], out, combination=combination, tolerance=0)
        assert report.from_each[0].largest_change == 0
        one, same = (load_file(f / "adapter_model.safetensors") for f in (folders[0], out))
        assert one.keys() == same.keys() and all(torch.equal(one[n], same[n]) for n in one)


@pytest.mark.parametrize(
    "combination",
    [
        Combination("svd", rank=2),
        Combination("svd", energy=0.9),
        Combination("ties", density=0.3),
        Combination("dare", density=0.7, rank=5, seed=3),
    ],
    ids=str,
)
def test_peft_loads_every_combination(
    base: str, folders: list[Path], tmp_path: Path, combination: Combination
) -> None:
    report = combine(folders, tmp_path / "out", combination=combination, tolerance=99)
    assert 0 < report.certificate.energy_lost < 1
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "out").eval()
    ours = load_saved(tmp_path / "out").classifier.model
    with torch.no_grad():
        inputs = tiny_inputs(plain)
        torch.testing.assert_close(
            theirs(**inputs).logits, ours(**inputs).logits, rtol=1e-5, atol=1e-5
        )


def test_ones_head_is_taken(folders: list[Path], tmp_path: Path) -> None:
    combine(folders, tmp_path / "out", head=folders[1])
    files = [load_file(f / "adapter_model.safetensors") for f in (folders[1], tmp_path / "out")]
    heads = [name for name in files[0] if ".classifier." in name]
    assert heads and all(torch.equal(files[0][name], files[1][name]) for name in heads)
    assert made(tmp_path / "out")["head"] == str(folders[1].resolve())
    with pytest.raises(UsageError, match="head must be average or one of the folders"):
        combine(folders, tmp_path / "other", head=tmp_path / "out")


def test_all_that_disagrees_is_said_at_once(base: str, folders: list[Path], tmp_path: Path) -> None:
    saved_on(base, tmp_path / "labels", labels=(*LABELS[1:], LABELS[0]))
    saved_on(base, tmp_path / "mean", head="mean")
    saved_on(save_model(tmp_path / "gpt", "gpt2"), tmp_path / "elsewhere")
    saved_on(base, tmp_path / "fewer", labels=("new", *LABELS[1:]))
    names = [tmp_path / name for name in ("labels", "fewer", "mean", "elsewhere")]
    with pytest.raises(DeltafitError) as error:
        combine([*folders, *names], tmp_path / "out")
    for said in (
        "labels has the labels in another order (good, mixed, bad)",
        f"fewer has other labels (only there: new; only in {folders[0]}: bad)",
        "mean has a head of another kind (mean)",
        "elsewhere was made on another base",
    ):
        assert said in str(error.value)
    # Its tensors have other names, which does not make it another base.
    assert "mean was made on another base" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_every_adapter_is_proven(folders: list[Path], tmp_path: Path) -> None:
    path = folders[1] / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-400] + bytes(400))
    with pytest.raises(DeltafitError, match="does not give the logits the adapter was saved with"):
        combine(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_refused(base: str, folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DeltafitError, match=r"more than the tolerance of 1e-06.*Nothing was"):
        combine(folders, tmp_path / "out", combination=Combination("svd", rank=1), tolerance=1e-6)
    with pytest.raises(UsageError, match="weights must be one for each adapter; got 1 for 2"):
        combine(folders, tmp_path / "out", combination=Combination(weights=(1.0,)))
    with pytest.raises(UsageError, match="exists already"):
        combine(folders, folders[0])
    with pytest.raises(UsageError, match="at least one"):
        combine([], tmp_path / "out")
    saved_on(base, tmp_path / "dora", DoRA(rank=2))
    with pytest.raises(DeltafitError, match="dora holds an adapter of the method dora"):
        combine([*folders, tmp_path / "dora"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
