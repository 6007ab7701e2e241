"""A store: what tells runs apart in it, and that each is done once, whatever happens."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from deltafit.data import ModelSource, Splits
from deltafit.errors import DeltafitError, TrainingError
from deltafit.experiments.baselines import Scored, score_baselines
from deltafit.experiments.store import Store
from deltafit.files import write_json_atomically
from deltafit.methods import LoRA
from deltafit.training.config import RunConfig
from deltafit.training.features import FrozenFeatures
from deltafit.training.identity import model_hash
from deltafit.training.progress import Silent
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import load_data


@pytest.fixture(scope="module")
def splits(data: DataConfig) -> Splits:
    return load_data(data)


@pytest.fixture
def store(tmp_path: Path, model: str, splits: Splits) -> Store:
    return Store(tmp_path / "store", model, splits)


@pytest.fixture
def config(model: str, data: DataConfig) -> RunConfig:
    return RunConfig(model, data, LoRA(rank=2))


def place(folder: Path, model: str, data: DataConfig, **changes: Any) -> str:
    """The name of a run's folder."""
    config = RunConfig(model, data, LoRA(rank=2))
    return Store(folder, model, load_data(data)).folder(replace(config, **changes)).name


def test_where_model_and_texts_lie_is_no_part_of_a_runs_place(
    tmp_path: Path, model: str, data: DataConfig
) -> None:
    here = place(tmp_path, model, data)
    moved, renamed = tmp_path / "moved", tmp_path / "renamed.csv"
    shutil.copytree(model, moved)
    shutil.copy(data.data, renamed)
    (moved / "README.md").write_text("A model.")
    assert place(tmp_path, str(moved), replace(data, data=str(renamed))) == here
    assert len(here) == 16 and int(here, 16)


def test_what_decides_a_run_is(tmp_path: Path, model: str, data: DataConfig) -> None:
    row = tmp_path / "row.csv"
    row.write_text(Path(data.data).read_text().replace("w30", "w31", 1))
    other = tmp_path / "other"
    shutil.copytree(model, other)
    configuration = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(configuration | {"hidden_dropout_prob": 0.3}))
    places = [
        place(tmp_path, model, data),
        place(tmp_path, str(other), data),
        place(tmp_path, model, replace(data, data=str(row))),
        place(tmp_path, model, replace(data, split_seed=1)),
        place(tmp_path, model, replace(data, limit=30)),
        place(tmp_path, model, replace(data, test_data=None)),
        place(tmp_path, model, data, method=LoRA(rank=4)),
        place(tmp_path, model, data, method=LoRA(rank=2, alpha=4)),
        place(tmp_path, model, data, head=HeadConfig("mean")),
        place(tmp_path, model, data, settings=TrainingSettings(seed=1)),
        place(tmp_path, model, data, settings=TrainingSettings(learning_rate=1e-3)),
        place(tmp_path, model, data, settings=TrainingSettings(precision="float32")),
    ]
    assert len(set(places)) == len(places)


def hub_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that gives ``someone/model`` to a cache in the folder; returns what was fetched."""
    cache, fetched = folder / "hub", []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def fetch(source: ModelSource) -> None:
        if source.location != "someone/model":
            raise DeltafitError("The hub has no such model.")
        fetched.append(source.location)
        kept = cache / "models--someone--model"
        (kept / "snapshots" / "c0ffee").mkdir(parents=True, exist_ok=True)
        (kept / "snapshots" / "c0ffee" / "config.json").write_text("{}")
        (kept / "refs").mkdir(exist_ok=True)
        (kept / "refs" / "main").write_text("c0ffee")

    monkeypatch.setattr("deltafit.training.identity.load_config", fetch)
    return fetched


def test_a_model_of_the_hub_is_told_apart_by_its_commit_before_and_after_it_is_fetched(
    tmp_path: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = hub_with(tmp_path, monkeypatch)
    assert not (tmp_path / "hub").exists(), "nothing is cached before the first call"
    first, second = (place(tmp_path, "someone/model", data) for _ in range(2))
    assert first == second and fetched
    assert model_hash("someone/model") == "someone/model@c0ffee"


def test_no_run_of_a_model_that_is_not_to_be_had_has_a_place(
    tmp_path: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_with(tmp_path, monkeypatch)
    with pytest.raises(DeltafitError, match="no such model"):
        place(tmp_path, "nobody/model", data)
    monkeypatch.setattr("deltafit.training.identity.load_config", lambda _: None)
    with pytest.raises(DeltafitError, match="does not say which commit of nobody/model"):
        place(tmp_path, "nobody/model", data)


def test_a_gguf_file_is_a_model_by_itself(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    assert model_hash(str(tmp_path / "a.gguf")) != model_hash(str(tmp_path / "b.gguf"))


def test_only_one_process_has_a_run_and_what_it_leaves_is_found(
    store: Store, config: RunConfig, model: str, splits: Splits
) -> None:
    other = Store(store.root, model, splits)  # as another process has it
    with store.begun(config, wait=False) as ours:
        assert ours and (store.folder(config) / "run.json").is_file()
        with other.begun(config, wait=False) as theirs:
            assert not theirs
        write_json_atomically(store.folder(config) / "metrics.json", {"costs": {}})
    assert other.outcome(config) == {"costs": {}}
    with FileLock(next((store.root / "locks").iterdir())), other.begun(config, wait=True) as theirs:
        assert theirs, "a finished run takes no lock"


def test_a_run_that_failed_is_kept_as_such(store: Store, config: RunConfig) -> None:
    with store.begun(config, wait=False):
        store.failed(config, TrainingError("diverged at step 3 of 9. Lower --lr."))
    outcome = store.outcome(config)
    assert isinstance(outcome, TrainingError) and outcome.what.startswith("diverged at step 3")


def test_an_error_leaves_the_run_to_others(store: Store, config: RunConfig) -> None:
    for error in (KeyboardInterrupt, DeltafitError):
        with pytest.raises(error), store.begun(config, wait=False):
            raise error
    assert store.outcome(config) is None
    with store.begun(config, wait=False) as ours:
        assert ours


def test_what_a_killed_process_left_half_written_goes(store: Store, config: RunConfig) -> None:
    folder = store.folder(config)
    (folder / ".adapter.x.part").mkdir(parents=True)
    (folder / ".run.json.x.part").touch()
    with store.begun(config, wait=False):
        assert [path.name for path in folder.iterdir()] == ["run.json"]
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "x").touch()
        (folder / ".metrics.json.x.part").touch()
        (folder / ".adapter.x.old").mkdir()
    with store.begun(config, wait=False):
        assert {path.name for path in folder.iterdir()} == {"run.json", "checkpoints"}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", '{"costs": '), ("metrics.json", "[]"), ("metrics.json", "{}"),
        ("run.json", "{"), ("run.json", "[]"), ("failure.json", "{"), ("failure.json", "{}"),
        ("failure.json", "[]"),
    ],
)  # fmt: skip
def test_damage_is_a_sentence_that_says_what_to_delete(
    store: Store, config: RunConfig, file: str, content: str
) -> None:
    with store.begun(config, wait=False):
        (store.folder(config) / file).write_text(content)
    with (
        pytest.raises(DeltafitError, match=f"Delete {store.folder(config)}, and it is done again"),
        store.begun(config, wait=False),
    ):
        pass
    shutil.rmtree(store.folder(config))
    with store.begun(config, wait=False) as ours:
        assert ours and store.outcome(config) is None


def test_a_store_is_a_folder(tmp_path: Path, model: str, splits: Splits) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeltafitError, match="is a file; --output takes a folder"):
        Store(tmp_path / "file", model, splits)


def test_baselines_are_scored_once(store: Store, model: str, splits: Splits) -> None:
    calls: list[str] = []

    def score() -> list[Scored]:
        calls.append("scored")
        features = FrozenFeatures(model, splits, 12, Silent())
        return score_baselines(splits, "test", features, 0, Silent())

    first, again = (store.baselines("test", 12, 0, score) for _ in range(2))
    assert calls == ["scored"]
    for one, other in zip(first, again, strict=True):
        assert (one.name, one.notes, one.seconds) == (other.name, other.notes, other.seconds)
        assert one.scores.dtype == other.scores.dtype and (one.scores == other.scores).all()
    store.baselines("test", 16, 0, score)
    assert calls == ["scored", "scored"]
    for path in (store.root / "baselines").iterdir():
        (path / "scores.safetensors").write_bytes(b"x")
    with pytest.raises(DeltafitError, match=r"damaged or cut short.* Delete .*baselines"):
        store.baselines("test", 12, 0, score)
