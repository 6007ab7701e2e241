"""``evaluate``, ``predict``, ``inspect``, ``merge``, ``verify`` on a run of the command line."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from deltafit.cli.predict import predict
from deltafit.files import read_json, read_tensors
from tests.cli.commands import Tiny, deltafit, done, refused
from tests.training.tiny_runs import LABELS

TEXTS = ("w2 w9 w30", "w0 w17", "w4")


def predictions(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def rows(path: str) -> tuple[list[str], list[str]]:
    with Path(path).open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    return [row["text"] for row in found], [row["label"] for row in found]


@pytest.fixture(scope="module")
def predicted(tiny: Tiny) -> list[dict[str, Any]]:
    return predictions(done("predict", tiny.run, "--data", tiny.test))


def test_evaluate_gives_one_object(tiny: Tiny, predicted: list[dict[str, Any]]) -> None:
    text = done("evaluate", tiny.run, "--data", tiny.test, "--json")
    assert text.count("\n") == 1
    metrics = json.loads(text)
    _, labels = rows(tiny.test)
    guessed = [prediction["label"] for prediction in predicted]
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, guessed))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, guessed, average="macro"))
    assert metrics["count"] == 20 and metrics["source"] == tiny.test
    trained = read_json(tiny.run / "metrics.json")["after"]["test"]
    for key in ("accuracy", "macro_f1", "weighted_f1", "log_loss", "calibration_error"):
        assert metrics[key] == pytest.approx(trained[key]), key

    table = done("evaluate", tiny.run / "adapter", "--data", tiny.test)
    assert f"accuracy {metrics['accuracy']:.4f}" in table
    for name in LABELS:
        line = next(line for line in table.splitlines() if line.startswith(name))
        assert float(line.split()[3]) == pytest.approx(metrics["per_class"][name]["f1"], abs=6e-4)


def test_predictions_are_those_the_run_was_judged_by(
    tiny: Tiny, predicted: list[dict[str, Any]]
) -> None:
    texts, _ = rows(tiny.test)
    logits = read_tensors(tiny.run / "predictions.safetensors")["test/logits"]
    expected = torch.softmax(logits.double(), 1).numpy()
    assert [prediction["text"] for prediction in predicted] == texts
    for prediction, probabilities in zip(predicted, expected, strict=True):
        assert list(prediction) == ["text", "label", "probability", "probabilities"]
        assert list(prediction["probabilities"]) == list(LABELS)
        given = list(prediction["probabilities"].values())
        np.testing.assert_allclose(given, probabilities, atol=1e-6)
        assert prediction["label"] == LABELS[int(probabilities.argmax())]
        assert prediction["probability"] == max(given)


@pytest.mark.slow
def test_predict_reads_words_files_and_standard_input(tiny: Tiny, tmp_path: Path) -> None:
    by_word = done("predict", tiny.run, *TEXTS)
    assert [prediction["text"] for prediction in predictions(by_word)] == list(TEXTS)
    plain = tmp_path / "texts.txt"
    plain.write_text("\n".join(TEXTS))
    table = tmp_path / "texts.csv"
    table.write_text("id,said\n" + "".join(f"1,{text}\n" for text in TEXTS))
    assert done("predict", tiny.run / "adapter", *TEXTS) == by_word
    assert done("predict", tiny.run, "--data", plain) == by_word
    assert done("predict", tiny.run, "--data", table, "--text-column", "said") == by_word
    # A byte order mark, Windows line ends and empty lines are not text.
    assert done("predict", tiny.run, stdin="\ufeff" + "\r\n\n".join(TEXTS)) == by_word
    assert done("predict", tiny.run, "--batch-tokens", "1", stdin="\n".join(TEXTS)).count("\n") == 3
    assert done("predict", tiny.run, stdin="") == ""


def test_predict_in_bf16(tiny: Tiny) -> None:
    exact = predictions(done("predict", tiny.run, *TEXTS))
    mixed = predictions(done("predict", tiny.run, "--precision", "bf16", *TEXTS))
    differences = [
        abs(a["probability"] - b["probability"]) for a, b in zip(exact, mixed, strict=True)
    ]
    assert 1e-6 < max(differences) < 0.05
    assert "float32 or bf16; got 'fp8'" in refused(
        2, "predict", tiny.run, "--precision", "fp8", "w1"
    )


def test_text_comes_out_as_it_went_in(tiny: Tiny) -> None:
    text = 'naïve “film” 映画 🎬 {"a": 1}'
    line = done("predict", tiny.run, text)
    assert text.replace('"', '\\"') in line and json.loads(line)["text"] == text


def test_what_was_cut_is_said(tiny: Tiny, tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    table.write_text(f"text,label\n{'w7 ' * 13},good\nw1,bad\nw2,bad\nw3,{LABELS[2]}\n")
    cut = "1 text (25.0 %) was cut to 12 tokens.\n"  # what the run was trained with
    evaluated = deltafit("evaluate", tiny.run, "--data", table)
    assert cut in evaluated.stdout and cut not in evaluated.stderr
    assert json.loads(done("evaluate", tiny.run, "--data", table, "--json"))["truncated"] == 1
    predicted = deltafit("predict", tiny.run, "--data", table)
    assert predicted.stderr == cut and len(predictions(predicted.stdout)) == 4
    assert "cut" not in deltafit("predict", tiny.run, *TEXTS).stderr


def test_evaluate_and_predict_show_how_far_they_are(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafit.training.progress._SECONDS_BETWEEN_LINES", 0.0)
    words = ("--data", tiny.test, "--batch-tokens", "80")
    evaluated = deltafit("evaluate", tiny.run, *words).stderr.splitlines()
    told = [line.split()[1] for line in evaluated]
    counts = [place.removesuffix("/20") for place in told]
    assert len(counts) > 1 and counts == sorted(counts, key=int) and counts[-1] == "20"
    assert all(line.startswith("evaluation: ") for line in evaluated)
    assert all(" texts/s " in line for line in evaluated)
    for extra in ((), ("--output", tmp_path / "out.jsonl")):
        lines = deltafit("predict", tiny.run, *words, *extra).stderr.splitlines()
        expected = [["prediction:", count, "texts"] for count in counts]
        assert [line.split()[:3] for line in lines] == expected


class _Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]  # of a terminal, where a StringIO has none

    def isatty(self) -> bool:
        return True


def test_beside_predictions_in_a_terminal_there_is_no_progress(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deltafit.training.progress._SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("sys.stdout", terminal := _Terminal())
    predict(tiny.run, list(TEXTS))
    assert len(predictions(terminal.getvalue())) == 3 and capsys.readouterr().err == ""


def test_predict_writes_a_whole_file_or_none(tiny: Tiny, tmp_path: Path) -> None:
    output = tmp_path / "new" / "labelled.jsonl"
    assert done("predict", tiny.run, *TEXTS, "--output", output) == ""
    whole = output.read_text(encoding="utf-8")
    assert whole == done("predict", tiny.run, *TEXTS)
    table = tmp_path / "texts.csv"
    table.write_text("text\n" + "w1 w2\n" * 1500 + '""\n')  # the empty one is met after writing
    other = output.with_name("other.jsonl")
    sentence = refused(1, "predict", tiny.run, "--data", table, "--output", other)
    assert "1501" in sentence and "empty" in sentence
    # Least of all is the input written over.
    assert "exists already" in refused(2, "predict", tiny.run, "w1", "--output", output)
    assert output.read_text(encoding="utf-8") == whole
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_predict_takes_texts_from_one_place(tiny: Tiny) -> None:
    assert "not both" in refused(2, "predict", tiny.run, "w1", "--data", tiny.test)
    assert "--data" in refused(2, "predict", tiny.run, "w1", "--text-column", "text")
    assert "Text 2 is empty" in refused(1, "predict", tiny.run, "w1", " ")
    assert "Text 1 is not UTF-8" in refused(2, "predict", tiny.run, "w1 \udcff")
    assert "not UTF-8" in refused(2, "predict", tiny.run, stdin=b"w1\n\xff\xfe\n")


def test_inspect_counts_what_train_trains(tiny: Tiny) -> None:
    words = ("--rank", "4", "--target-modules", "query,value", "--layers", "0,1")
    found = json.loads(done("inspect", tiny.model, *words, "--json"))
    # Four matrices of 32 × 32, and the head of the three classes that the configuration has.
    assert found["adapter"]["trainable"] == 4 * 4 * (32 + 32) + 3 * 32 + 3
    text = done("inspect", tiny.model, *words)
    assert "LoRA, rank 4" in text and "r(d+k) = 256 against d·k = 1,024 (4.0× fewer)" in text


def test_inspect_shows_what_an_adapter_changed(tiny: Tiny) -> None:
    found = json.loads(done("inspect", tiny.run, "--json"))
    assert found["facts"]["label_names"] == list(LABELS) and len(found["changes"]) == 6
    assert all(0 < change["share"] < 1 for change in found["changes"])
    text = done("inspect", tiny.run / "adapter")
    for change in found["changes"]:
        line = next(line for line in text.splitlines() if line.startswith(change["name"]))
        assert f"{change['delta_norm']:.4f}" in line
    assert "Stored whole: 2 tensors, 99 values." in text


def test_inspect_shows_how_an_adapter_was_made_and_how_good_it_was(tiny: Tiny) -> None:
    text = done("inspect", tiny.run)
    settings = "rank=2, alpha=16, dropout=0.0, scaling=alpha/r, initialisation=kaiming"
    assert f"lora: {settings}, " in text
    after = read_json(tiny.run / "metrics.json")["after"]
    for part, rows_of in (("validation", 9), ("test", 20)):
        low, high = after[part]["accuracy_interval"]
        accuracy = f"{after[part]['accuracy']:.4f} (95 %: {low:.3f}–{high:.3f}; {rows_of} rows)"
        assert f"{part} accuracy when it was trained: {accuracy}\n" in text


def test_a_rank_that_pays_nothing_is_said(tiny: Tiny) -> None:
    for rank, said in ((12, "1.3× fewer"), (16, "as many"), (32, "more than the matrix itself")):
        text = done("inspect", tiny.model, "--rank", rank)
        assert f"r(d+k) = {64 * rank:,} against d·k = 1,024 ({said})" in text
        assert "Note:" not in text
    text = done("inspect", tiny.model, "--rank", 33)
    assert "Note: no change of query (32×32) can have a rank above 32" in text


def test_inspect_takes_no_flag_that_it_would_pass_over(tiny: Tiny) -> None:
    words = ("--rank", "8", "--target-modules", "query", "--layers", "0")
    sentence = refused(2, "inspect", tiny.run, *words)
    assert "--rank and --target-modules and --layers are for a model" in sentence
    # A default that is typed is asked for as well.
    assert "--batch-size" in refused(2, "inspect", tiny.run / "adapter", "--batch-size", "16")
    assert "--model names the base" in refused(2, "inspect", tiny.model, "--model", tiny.model)
    assert "--rank must be a whole" in refused(2, "inspect", tiny.model, "--rank", "0")


def test_a_merged_checkpoint_predicts_the_same_without_deltafit(tiny: Tiny, tmp_path: Path) -> None:
    text = done("merge", tiny.run, "--output", tmp_path / "plain")
    assert "16 canaries" in text and str(tmp_path / "plain") in text
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    for prediction in predictions(done("predict", tiny.run, *TEXTS)):
        with torch.no_grad():
            logits = model(**tokenizer(prediction["text"], return_tensors="pt")).logits[0]
        expected = torch.softmax(logits, 0).tolist()
        given = [prediction["probabilities"][model.config.id2label[i]] for i in range(3)]
        assert given == pytest.approx(expected, abs=1e-5)
    assert "exists already" in refused(2, "merge", tiny.run, "--output", tmp_path / "plain")


def test_verify_says_what_it_checked(tiny: Tiny) -> None:
    for folder in (tiny.run, tiny.run / "adapter"):
        text = done("verify", folder)
        assert "same fingerprint" in text and "canary logits agree to 0.0e+00" in text


@pytest.mark.slow
def test_a_base_that_has_moved_is_named(tiny: Tiny, tmp_path: Path) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    base = tmp_path / "base"
    base.symlink_to(tiny.model)
    words = tiny.start(run)
    words[words.index(tiny.model)] = str(base)
    done("train", *words, "--method", "head")
    facts = read_json(run / "adapter" / "deltafit.json")
    facts["base"]["name"] = str(tmp_path / "gone")
    (run / "adapter" / "deltafit.json").write_text(json.dumps(facts))
    moved.symlink_to(tiny.model)
    assert "--model" in refused(1, "verify", run)
    done("verify", run, "--model", moved)
    done("predict", run, "w1", "--model", moved)
    done("evaluate", run, "--data", tiny.test, "--model", moved)
    done("inspect", run, "--model", moved)
    done("merge", run, "--output", tmp_path / "plain", "--model", moved)
