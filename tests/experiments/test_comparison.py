"""``compare``: its rows against figures computed another way, its files, and going on."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from deltafit.errors import DeltafitError, TrainingError, UsageError
from deltafit.experiments.comparison import compare, folder_name
from deltafit.experiments.judgement import Comparison
from deltafit.experiments.report import verdict
from deltafit.experiments.together import paired_over_seeds
from deltafit.files import read_json, read_tensors, write_tensors_atomically
from deltafit.methods import Full, Head, LoRA
from deltafit.training.config import RunConfig
from deltafit.training.progress import Silent
from deltafit.training.run import RunResult, execute
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from deltafit.training.train import load_data, train
from tests.training.tiny_runs import save_model, tables

pytestmark = pytest.mark.slow

SETTINGS = TrainingSettings(epochs=2, batch_size=8, max_length=12, learning_rate=1e-2)
METHODS = ("head", LoRA("all-linear", rank=2))
SEEDS = (3, 1)
BASELINES = [
    "majority class",
    "TF-IDF + linear SVM",
    "frozen features + logistic regression",
]


@pytest.fixture(autouse=True)
def _no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of the time; `compared` is made before this and has them."""
    monkeypatch.setattr("deltafit.experiments.report.save_png", lambda figure, path: path.touch())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), dropout=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return tables(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def compared(
    model: str, data: DataConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comparison]:
    folder = tmp_path_factory.mktemp("compared") / "out"
    yield compare(model, data, folder, methods=METHODS, seeds=SEEDS, settings=SETTINGS)


def run_of(compared: Comparison, name: str, seed: int) -> Path:
    (folder,) = (
        path
        for path in (compared.folder / "runs").iterdir()
        if path.name.startswith(name) and path.name.endswith(f"-seed{seed}")
    )
    return folder


def answers(compared: Comparison, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What the runs of a method said of the test rows ``[seeds, rows]``, and the labels."""
    tensors = [
        read_tensors(run_of(compared, name, seed) / "predictions.safetensors") for seed in SEEDS
    ]
    said = np.stack([stored["test/logits"].numpy().argmax(1) for stored in tensors])
    return said, tensors[0]["test/labels"].numpy()


def by_name(compared: Comparison) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in compared.rows}


def test_rows_are_what_scikit_learn_measures(compared: Comparison) -> None:
    assert [row["name"] for row in compared.rows] == [
        *BASELINES, "head", "lora:target_modules=all-linear,rank=2",
    ]  # fmt: skip
    assert [row["kind"] for row in compared.rows] == ["baseline"] * 3 + ["run"] * 2
    for name in ("head", "lora"):
        said, labels = answers(compared, name)
        row = next(r for r in compared.rows if r["name"].startswith(name))
        assert row["after"] == pytest.approx(np.mean([accuracy_score(labels, s) for s in said]))
        macro = np.mean([f1_score(labels, s, average="macro", zero_division=0) for s in said])
        assert row["macro_f1"] == pytest.approx(macro)
        low, high = row["interval"]
        assert 0 <= low < row["after"] < high <= 1 and row["seeds"] == 2


def test_differences_are_paired_with_the_best(compared: Comparison) -> None:
    best = max(compared.rows, key=lambda row: row["after"])
    assert best["difference"] is None
    assert best["name"] == "TF-IDF + linear SVM" and best["after"] == 1.0  # words decide the label
    for name in ("head", "lora"):
        said, labels = answers(compared, name)
        expected = paired_over_seeds(said == labels, np.ones((1, len(labels)), dtype=bool))
        row = next(r for r in compared.rows if r["name"].startswith(name))
        measured = {**row["difference"], "adjusted_p_value": expected.adjusted_p_value}
        assert measured == pytest.approx(expected.__dict__)
        assert expected.p_value <= row["difference"]["adjusted_p_value"] < 0.01
        assert row["difference"]["difference"] == pytest.approx(row["after"] - 1)


def test_the_majority_is_the_majority(compared: Comparison, data: DataConfig) -> None:
    splits = load_data(data)
    assert splits.test is not None
    most = max(set(splits.train.labels), key=splits.train.labels.count)
    share = np.mean(np.array(splits.test.labels) == most)
    row = by_name(compared)["majority class"]
    assert row["after"] == pytest.approx(share)
    assert row["trainable"] is row["saved_bytes"] is row["before"] is None


def test_frozen_features_say_how_they_were_chosen(compared: Comparison) -> None:
    row = by_name(compared)[BASELINES[2]]
    assert len(row["notes"]) == 1 and row["seconds"] > 0
    assert " pooling and C=" in row["notes"][0]


def test_runs_are_those_of_train(
    compared: Comparison, model: str, data: DataConfig, tmp_path: Path
) -> None:
    """The shared features and the figures before training, measured once, change nothing."""
    for name, method in (("head", Head()), ("lora", LoRA("all-linear", rank=2))):
        for seed in SEEDS:
            alone = train(
                model, data, tmp_path / f"{name}{seed}",
                method=method, settings=replace(SETTINGS, seed=seed),
            )  # fmt: skip
            folder = run_of(compared, name, seed)
            metrics = read_json(folder / "metrics.json")
            for key in ("before", "after", "history", "best_step"):
                assert metrics[key] == alone.metrics[key], (name, seed, key)
            one, other = (
                read_tensors(path / "adapter" / "adapter_model.safetensors")
                for path in (folder, alone.folder)
            )
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)
            assert read_json(folder / "run.json") == read_json(alone.folder / "run.json")


def test_costs_and_before_are_those_of_the_runs(compared: Comparison) -> None:
    for name in ("head", "lora"):
        metrics = [read_json(run_of(compared, name, s) / "metrics.json") for s in SEEDS]
        row = next(r for r in compared.rows if r["name"].startswith(name))
        before = [m["before"]["test"]["accuracy"] for m in metrics]
        assert row["before"] == pytest.approx(np.mean(before))
        costs = [m["costs"] for m in metrics]
        assert row["trainable"] == costs[0]["trainable_parameters"]
        assert row["seconds"] == pytest.approx(np.mean([c["training_seconds"] for c in costs]))
        assert row["peak_memory_bytes"] == max(c["peak_memory_bytes"] for c in costs)
        assert row["saved_bytes"] == costs[0]["saved_bytes"]


def test_a_row_names_the_folder_of_the_seed_that_validation_chose(compared: Comparison) -> None:
    for row in compared.rows:
        if row["kind"] == "baseline":
            assert row["folder"] is None
            continue
        folder = (compared.folder / row["folder"]).resolve()
        assert not Path(row["folder"]).is_absolute()
        chosen = read_json(folder / "metrics.json")["after"]["validation"]["accuracy"]
        name = next(name for name in ("head", "lora") if row["name"].startswith(name))
        runs = [run_of(compared, name, seed) for seed in SEEDS]
        others = [
            read_json(run / "metrics.json")["after"]["validation"]["accuracy"] for run in runs
        ]
        assert folder in [run.resolve() for run in runs]
        assert chosen == max(others)


def test_files_hold_the_same_and_read_back(compared: Comparison) -> None:
    stored = json.loads((compared.folder / "comparison.json").read_text())
    assert stored["rows"] == json.loads(json.dumps(compared.rows))
    assert stored["verdict"] == compared.verdict == verdict(stored["rows"])
    facts = stored["facts"]
    assert facts["judged_on"] == "test" and facts["environment"]["torch"] == torch.__version__
    assert facts["data"]["counts"] == {"train": 36, "validation": 9, "test": 20}
    assert set(facts["precision"].values()) == {"float32"}

    with (compared.folder / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["after"]) for line in lines] == [row["after"] for row in compared.rows]

    report = (compared.folder / "report.md").read_text()
    assert compared.verdict in report and "No adapter beats the cheap baselines" in report
    for row in compared.rows:
        assert row["name"] in report
    for image in (compared.folder / "plots").iterdir():
        assert f"plots/{image.name}" in report
        assert image.read_bytes().startswith(b"\x89PNG")
    assert report.count("![") == len(list((compared.folder / "plots").iterdir())) == 7


class Stop(Silent):
    """Raises Ctrl-C when a run begins."""

    def __init__(self, at: str) -> None:
        self.at, self.said = at, list[str]()

    def say(self, sentence: str) -> None:
        self.said.append(sentence)
        if sentence.startswith(self.at):
            raise KeyboardInterrupt


def test_resuming_keeps_what_is_finished(
    compared: Comparison, model: str, data: DataConfig, tmp_path: Path
) -> None:
    words: dict[str, Any] = {"methods": METHODS, "seeds": SEEDS, "settings": SETTINGS}
    folder = tmp_path / "out"
    stop = Stop("lora:target_modules=all-linear,rank=2, seed 3")
    with pytest.raises(KeyboardInterrupt):
        compare(model, data, folder, **words, reporter=stop)
    finished = sorted((folder / "runs").glob("*/metrics.json"))
    assert [path.parent.name for path in finished] == ["head-seed1", "head-seed3"]
    stamps = [path.stat().st_mtime_ns for path in finished]
    assert not (folder / "report.md").exists()

    with pytest.raises(UsageError, match="exists already"):
        compare(model, data, folder, **words)
    with pytest.raises(UsageError, match=r"settings.batch_size was 8 there and is 4 now"):
        other = replace(SETTINGS, batch_size=4)
        compare(model, data, folder, **words | {"settings": other}, resume=True)

    listening = Stop("never")
    again = compare(model, data, folder, **words, resume=True, reporter=listening)
    assert not any(sentence.startswith("head, ") for sentence in listening.said)
    assert [path.stat().st_mtime_ns for path in finished] == stamps
    for one, other in zip(again.rows, compared.rows, strict=True):
        for key in ("name", "before", "after", "macro_f1", "interval", "difference", "trainable"):
            assert one[key] == other[key], (one["name"], key)

    # All is finished: nothing is trained again, and a lost report is written again.
    (folder / "report.md").unlink()
    assert compare(model, data, folder, **words, resume=True).rows[3:] == again.rows[3:]
    assert again.verdict in (folder / "report.md").read_text()

    # Fewer methods and seeds are another view of the same runs.
    fewer = compare(model, data, folder, **words | {"methods": ["head"], "seeds": [1]}, resume=True)
    assert [row["name"] for row in fewer.rows] == [*BASELINES, "head"]
    assert fewer.rows[-1]["seeds"] == 1
    assert read_json(folder / "run.json")["methods"] == ["head"]
    assert [path.stat().st_mtime_ns for path in finished] == stamps


def test_without_a_test_part_validation_judges_and_says_so(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    alone = replace(data, test_data=None)
    result = compare(model, alone, tmp_path / "out", methods=["head"], settings=SETTINGS)
    (run,) = (row for row in result.rows if row["kind"] == "run")
    note = "judged on the validation rows, which also chose its checkpoint"
    assert note in run["notes"] and result.facts["judged_on"] == "validation"
    assert note in (tmp_path / "out" / "report.md").read_text()


def test_figures_without_rows_that_stand_in_training_have_a_column(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    same = replace(data, test_data=data.data)
    result = compare(model, same, tmp_path / "out", methods=["head"], settings=SETTINGS)
    run = result.rows[-1]
    metrics = read_json(run_of(Comparison(result.folder, [], "", {}), "head", 0) / "metrics.json")
    without = metrics["after"]["test"]["without_duplicates"]
    assert run["after_new_rows"] == pytest.approx(without["accuracy"])
    assert f"| {100 * without['accuracy']:.1f} |" in (result.folder / "report.md").read_text()

    # The baselines too: TF-IDF remembers its training texts best of all.
    splits = load_data(same)
    assert splits.test is not None
    known = set(splits.train.texts)
    new = [index for index, text in enumerate(splits.test.texts) if text not in known]
    assert len(new) == 9
    labels = np.array(splits.test.labels)[new]
    svm = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC(random_state=0)
    ).fit(splits.train.texts, splits.train.labels)
    majority = np.bincount(splits.train.labels).argmax()
    said = {
        "majority class": np.full(len(new), majority),
        "TF-IDF + linear SVM": svm.predict([splits.test.texts[index] for index in new]),
    }
    rows = by_name(result)
    for name, predicted in said.items():
        assert rows[name]["after_new_rows"] == pytest.approx(np.mean(predicted == labels)), name
    assert rows[BASELINES[2]]["after_new_rows"] is not None


def test_a_shared_head_is_trained_by_all(model: str, data: DataConfig, tmp_path: Path) -> None:
    head = HeadConfig("auto", "probe")
    result = compare(
        model, data, tmp_path / "out", methods=["head", "lora"], head=head, settings=SETTINGS
    )
    kinds = {read_json(path)["head"] for path in (tmp_path / "out" / "runs").glob("*/metrics.json")}
    frozen, head_row, lora_row = result.rows[2:]
    assert len(kinds) == 1 and f"{kinds.pop()} pooling" in frozen["notes"][0]
    # All start from the very probe that the baseline is.
    assert head_row["before"] == lora_row["before"] == frozen["after"]


def test_a_method_that_diverges_is_a_row_that_says_so(
    model: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Full, "default_learning_rate", 1e30)
    settings = replace(SETTINGS, learning_rate=None, epochs=1)
    words: dict[str, Any] = {"methods": ["full", "head"], "settings": settings}
    result = compare(model, data, tmp_path / "out", **words)
    full, head = result.rows[3:]
    assert full["after"] is None and full["failure"].startswith("diverged at step")
    assert "Lower --lr" in full["failure"]
    assert head["after"] is not None and head["difference"] is not None
    assert re.search(r"full diverged at step \d+ of 5 and is not judged", result.verdict)
    assert full["failure"] in (tmp_path / "out" / "report.md").read_text()
    assert "diverged" in result._repr_markdown_()

    # Of several seeds, it says which one.
    words["methods"] = ["full"]
    seeds = compare(model, data, tmp_path / "out", **words, seeds=[0, 1], resume=True)
    assert seeds.rows[3]["failure"].startswith("with seed 0 diverged")


def test_a_seed_that_diverges_leaves_the_row_to_the_others(
    model: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(config: RunConfig, *args: Any, **named: Any) -> RunResult:
        if config.settings.seed == 0:
            raise TrainingError("diverged at step 2 of 9: the loss became nan. Lower --lr.")
        return execute(config, *args, **named)

    words: dict[str, Any] = {"methods": ["head"], "settings": SETTINGS}
    with monkeypatch.context() as patched:
        patched.setattr("deltafit.experiments.running.execute", diverging)
        result = compare(model, data, tmp_path / "some", **words, seeds=[0, 1, 3])
    rest = compare(model, data, tmp_path / "rest", **words, seeds=[1, 3])
    row, expected = result.rows[3], rest.rows[3]
    for key in ("after", "before", "interval", "macro_f1", "difference", "seeds", "failure"):
        assert row[key] == expected[key], key
    assert (row["seeds"], row["failed_seeds"], expected["failed_seeds"]) == (2, 1, 0)
    assert row["notes"][0].startswith("with seed 0 diverged at step 2 of 9")
    assert "head failed with 1 of 3 seeds, which its figures leave out." in result.verdict
    assert "failed with" not in rest.verdict
    shown = (tmp_path / "some" / "report.md").read_text()
    assert "head (2 of 3 seeds)" in shown and row["notes"][0] in shown
    assert "Confusion of head, seed 1" in shown


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"methods": ["lora", LoRA()]}, "The method lora is given twice"),
        ({"methods": []}, "at least one method"),
        ({"seeds": [0, 1, 0]}, "The seed 0 is given twice"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [-1]}, "seed must be"),
        ({"methods": ["loar"]}, "no method 'loar'"),
        ({"methods": ["head", LoRA(("qery",))]}, "'qery' matches no module.*query"),
        ({"methods": ["head", "last-block:count=9"]}, "the last 9 of them cannot be trained"),
        ({"methods": [LoRA(("qery",))], "head": HeadConfig("mean")}, "'qery' matches no module"),
    ],
)
def test_what_makes_no_comparison_is_refused(
    model: str, data: DataConfig, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        compare(model, data, tmp_path / "out", settings=SETTINGS, **change)
    assert not (tmp_path / "out").exists()


def test_nothing_to_judge_on_is_refused(model: str, data: DataConfig, tmp_path: Path) -> None:
    alone = replace(data, test_data=None, validation="none")
    with pytest.raises(UsageError, match="nothing to judge on"):
        compare(model, alone, tmp_path / "out", settings=SETTINGS)
    assert not (tmp_path / "out").exists()


def test_methods_that_look_alike_have_folders_of_their_own(data: DataConfig) -> None:
    long = LoRA(r"re:.*query|" + "|".join(f"module{i}" for i in range(60)))
    methods = [LoRA(r"re:.*\.query|x"), LoRA(r"re:.*\.query/x"), LoRA(r"re:.*\.query:x"), long]
    names = {folder_name(RunConfig("model", data, method)) for method in methods}
    assert len(names) == 4
    assert all(len(name) < 255 and re.fullmatch(r"[\w=.+-]+", name, re.ASCII) for name in names)


def test_predictions_of_other_rows_are_found_out(
    model: str, data: DataConfig, tmp_path: Path
) -> None:
    words: dict[str, Any] = {"methods": ["head"], "settings": SETTINGS}
    compare(model, data, tmp_path / "out", **words)
    path = tmp_path / "out" / "runs" / "head-seed0" / "predictions.safetensors"
    tensors = {name: tensor[:-1] for name, tensor in read_tensors(path).items()}
    write_tensors_atomically(path, tensors)
    with pytest.raises(DeltafitError, match="does not fit the data"):
        compare(model, data, tmp_path / "out", **words, resume=True)
