"""What several adapters of one base changed, each as if it were looked into alone."""

from pathlib import Path

import pytest

from deltafit.adapters import merged
from deltafit.methods import DoRA, Full, Head, LastBlocks, LoRA, Prefix
from deltafit.prediction.folder import load_saved
from deltafit.prediction.inspecting import changes_of_runs, inspect
from tests.prediction.derived import saved_on
from tests.training.tiny_runs import adapted, save_model

METHODS = {
    **{"lora": LoRA(rank=2), "full": Full(), "dora": DoRA(rank=1), "last": LastBlocks(1)},
    **{"head": Head(), "prefix": Prefix()},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("inspecting")
    base = save_model(folder / "base")
    for seed, (name, method) in enumerate(METHODS.items()):
        saved_on(base, folder / name, method, seed=seed)
    return base, {name: folder / name for name in METHODS}


def test_each_adapter_changed_what_it_changed_alone(runs: tuple[str, dict[str, Path]]) -> None:
    base, folders = runs
    found = changes_of_runs(folders)
    assert list(found) == list(METHODS)
    for name in ("lora", "dora"):
        assert found[name] == inspect(folders[name]).changes  # type: ignore[union-attr]
    assert found["head"] == found["prefix"] == ()  # nothing of the base moved
    plain = dict(adapted(base, Head()).model.named_parameters())
    for name in ("full", "last", "lora", "dora"):
        network = load_saved(folders[name]).classifier.model
        with merged(network):
            tuned = {n: p.detach().clone() for n, p in network.named_parameters()}
        for change in found[name]:
            delta = tuned[f"{change.name}.weight"] - plain[f"{change.name}.weight"]
            assert change.delta_norm == pytest.approx(float(delta.norm()), rel=1e-3)
    blocks = {change.name.split("layer.")[1][0] for change in found["last"]}
    assert blocks == {"2"} and len(found["full"]) > len(found["last"]) >= 6


def test_adapters_of_other_heads_are_put_on_their_own_base(
    runs: tuple[str, dict[str, Path]], tmp_path: Path
) -> None:
    base, folders = runs
    saved_on(base, tmp_path / "pooled", LoRA(rank=2), head="mean")
    found = changes_of_runs(
        {"one": folders["lora"], "pooled": tmp_path / "pooled", "again": folders["lora"]}
    )
    assert found["one"] == found["again"] != found["pooled"]
    assert found["pooled"] == inspect(tmp_path / "pooled").changes  # type: ignore[union-attr]


def test_no_adapters_need_no_base() -> None:
    assert changes_of_runs({}) == {}
