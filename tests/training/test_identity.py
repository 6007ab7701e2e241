"""What a run's hash tells apart, and what it does not."""

import json
from collections.abc import Callable
from dataclasses import field, make_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltafit.data import load_splits
from deltafit.errors import UsageError
from deltafit.files import read_json
from deltafit.methods import METHODS, LoRA
from deltafit.methods.values import defaults
from deltafit.training import results
from deltafit.training.config import RunConfig
from deltafit.training.folders import begun
from deltafit.training.identity import address, run_content, run_hash
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import train
from tests.tiny_models import tiny_model
from tests.training.tiny_runs import save_model, write_table

FOUND = {"base": {"query": "00ff"}, "tokens": "11", "precision": "float32", "packed": True}


def hash_of(folder: Path, found: dict[str, Any] = FOUND, **changes: Any) -> str:
    """Hash a run on the same texts, kept in a folder of their own."""
    folder.mkdir(exist_ok=True)
    data = write_table(folder / "texts.csv")
    config = RunConfig(str(folder / "model"), DataConfig(data, validation="0.2"), LoRA(rank=2))
    return run_hash(replace(config, **changes), load_splits(data), found)


def test_where_things_lie_is_no_part_of_it(tmp_path: Path) -> None:
    assert hash_of(tmp_path / "here") == hash_of(tmp_path / "there")


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: hash_of(folder, FOUND | {"precision": "bf16"}),
        lambda folder: hash_of(folder, FOUND | {"packed": False}),
        lambda folder: hash_of(folder, FOUND | {"base": {"query": "00fe"}}),
        lambda folder: hash_of(folder, method=LoRA(rank=3)),
        lambda folder: hash_of(folder, settings=TrainingSettings(seed=1)),
        lambda folder: hash_of(folder, settings=TrainingSettings(learning_rate=1e-3)),
    ],
)
def test_what_decides_the_result_is(tmp_path: Path, other: Callable[[Path], str]) -> None:
    assert other(tmp_path) != hash_of(tmp_path)


def test_what_was_left_open_counts_as_it_was_found_and_not_as_it_was_asked_for(
    tmp_path: Path,
) -> None:
    asked = (TrainingSettings(), TrainingSettings(precision="float32", packing="on"))
    assert len({hash_of(tmp_path, settings=settings) for settings in asked}) == 1


def test_texts_count_by_their_content(tmp_path: Path) -> None:
    before = hash_of(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltafit.data.texts.LabelledTexts.content_hash", lambda self: "other texts")
        assert hash_of(tmp_path) != before


def newer(value: Any) -> Any:
    """The same dataclass instance as a version of tomorrow has it, with one setting more."""
    later = make_dataclass("Later", [("added", int, field(default=3))], bases=(type(value),),
                           frozen=True)  # fmt: skip
    return later(**vars(value))


RUNS = [
    RunConfig("model", DataConfig("texts.csv"), LoRA()),
    RunConfig(
        "model", DataConfig("texts.csv", limit=9), LoRA(rank=2, alpha=3),
        HeadConfig("mean"), TrainingSettings(epochs=9, seed=3, learning_rate=1e-2),
    ),
]  # fmt: skip


@pytest.mark.parametrize("config", RUNS)
@pytest.mark.parametrize("part", ["settings", "head", "method", "data"])
def test_a_setting_that_is_added_leaves_every_address_as_it_was(
    tmp_path: Path, config: RunConfig, part: str
) -> None:
    splits = load_splits(write_table(tmp_path / "texts.csv"))
    later = replace(config, **{part: newer(getattr(config, part))})
    other = replace(config, **{part: replace(getattr(later, part), added=4)})

    def hashes(run: RunConfig) -> tuple[str, str]:
        return address(run, "base", {"train": "00"}), run_hash(run, splits, FOUND)

    assert hashes(later) == hashes(config)
    assert hashes(other)[1] != hashes(config)[1]
    # How the texts were cut out of what is no part of an address.
    assert (hashes(other)[0] != hashes(config)[0]) == (part != "data")


def test_the_heads_rate_counts_by_what_it_comes_to() -> None:
    def of(**rates: float) -> str:
        config = replace(RUNS[0], settings=TrainingSettings(**rates))  # type: ignore[arg-type]
        return address(config, "base", {"train": "00"})

    assert of() == of(head_learning_rate=5e-3) != of(head_learning_rate=5e-4)
    probe = replace(RUNS[0], head=HeadConfig("mean", "probe"))
    follows = replace(probe, settings=TrainingSettings(head_learning_rate=5e-4))
    texts = {"train": "00"}
    assert address(probe, "base", texts) == address(follows, "base", texts)


# What addresses leave out. If one of these has to change, so has what is hashed: a run that was
# done with the old default would be taken for one with the new.
KNOWN: dict[Any, dict[str, Any]] = {
    TrainingSettings: {
        **{"epochs": 3, "batch_size": 16, "accumulation": 1, "learning_rate": None},
        **{"head_learning_rate": None, "weight_decay": 0.01, "schedule": "linear", "warmup": 0.06},
        **{"label_smoothing": 0.0, "class_weights": "none", "base_dropout": "configured"},
        **{"base_weights": "float32", "clip": 1.0, "gradient_checkpointing": False},
        **{"precision": "auto", "packing": "auto", "max_length": 256, "evaluate_every": None},
        **{"judge_training": False, "metric": "accuracy", "patience": None, "seed": 0},
    },
    HeadConfig: {"head": "architecture", "head_start": "new", "head_dropout": 0.0},
    LoRA: {"rank": 8, "alpha": 16.0, "dropout": 0.0},
}


def test_defaults_that_addresses_leave_out_stay_as_they_are() -> None:
    for kind, known in KNOWN.items():
        assert known.items() <= defaults(kind).items(), kind
    rates = {name: method.default_learning_rate for name, method in METHODS.items()}
    assert rates["lora"] == 5e-4 and rates["full"] == 5e-5


def test_a_run_of_before_a_setting_was_added_is_gone_on_with(tmp_path: Path) -> None:
    splits = load_splits(write_table(tmp_path / "texts.csv"))
    folder, config = tmp_path / "run", RUNS[1]
    content = json.loads(json.dumps(run_content(config, splits)))
    for part, name in (("settings", "packing"), ("head", "head_dropout"), ("method", "dropout")):
        del content["config"][part][name]
    with begun(folder, content, resume=False):
        (folder / "checkpoint").touch()
    with begun(folder, run_content(config, splits), resume=True):
        assert RunConfig.from_dict(read_json(folder / "run.json")["config"]) == config
    settings = replace(config.settings, packing="off")
    other = run_content(replace(config, settings=settings), splits)
    with (
        pytest.raises(UsageError, match=r"settings\.packing was 'auto' there and is 'off' now"),
        begun(folder, other, resume=True),
    ):
        pass


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(read_json(file) | changes))


def test_how_it_was_executed_is_part_of_it() -> None:
    run: Any = SimpleNamespace(
        examples={}, base_fingerprint="base", classifier=SimpleNamespace(model=tiny_model("bert"))
    )
    course: Any = SimpleNamespace(
        precision="float32", attention_precision=None, packed=True, first_tokens=False
    )
    decided = {"precision": "bf16", "attention_precision": "bf16", "packed": False}
    found = [
        results._found(run, course, joined=1, processes=1),
        results._found(run, course, joined=2, processes=1),
        results._found(run, course, joined=1, processes=2),
        *(
            results._found(
                run, SimpleNamespace(**{**vars(course), key: value}), joined=1, processes=1
            )  # type: ignore[arg-type]
            for key, value in {**decided, "first_tokens": True}.items()
        ),
    ]
    assert len({json.dumps(each, sort_keys=True, default=str) for each in found}) == len(found)


@pytest.mark.slow
def test_a_run_keeps_it_with_its_metrics_and_its_adapter(tmp_path: Path) -> None:
    model, data = save_model(tmp_path / "model"), write_table(tmp_path / "texts.csv")
    settings = TrainingSettings(epochs=1, max_length=16)
    first, second = (
        train(model, data, tmp_path / name, method=LoRA(rank=2), settings=settings)
        for name in ("first", "second")
    )
    assert len(first.metrics["run_hash"]) == 64
    # What was found out on the machine and decides the run can be read there.
    how = ("packed", "first_tokens", "precision", "attention_precision")
    assert [first.metrics[key] for key in how] == [True, True, "float32", None]
    assert first.metrics["states_kept"] is None, "there were none to keep"
    assert first.metrics["run_hash"] == second.metrics["run_hash"]
    facts = read_json(tmp_path / "first" / "adapter" / "deltafit.json")
    assert facts["run_hash"] == first.metrics["run_hash"]

    edit(Path(model) / "config.json", hidden_dropout_prob=0.3)
    third = train(model, data, tmp_path / "third", method=LoRA(rank=2), settings=settings)
    assert third.metrics["run_hash"] != first.metrics["run_hash"]
