"""Whatever goes wrong is one sentence and an exit code, and leaves nothing half-made."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deltafit.__main__ import main
from tests.cli.commands import Tiny, done, refused
from tests.training.tiny_runs import LABELS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "lora:rank=0.2"], "that is sparse:density=0.2 here"),
        (["--rank", "0.2"], "deltafit: --rank must be a whole number of at least 1"),
        (["--rank", "eight"], "deltafit: --rank takes a number; got 'eight'"),
        (["--method", "lora:rank=eight"], "deltafit: lora:rank takes a number"),
        (["--layers", "last"], "deltafit: --layers takes a number"),
        (["--alpha", "0"], "deltafit: --alpha must be"),
        (["--method", "loar"], "Did you mean 'lora'?"),
        (["--method", "lora:ranks=4"], "Did you mean 'rank'?"),
        (["--method", "head", "--rank", "4"], "'head' has no setting 'rank'"),
        (["--method", "lora:rank=4", "--rank", "8"], "rank is set twice"),
        (["--target-modules", "quarry"], "query"),
        (["--layers", "7"], "7"),
        (["--method", "lora:trained_modules=pool"], "trained_modules names 'pool'"),
        (["--epochs", "0"], "deltafit: --epochs must be a whole number of at least 1"),
        (["--epochs", "x"], "--epochs"),
        (["--lr", "-1"], "deltafit: --lr must be a number above 0; got -1"),
        (["--head-lr", "nan"], "deltafit: --head-lr must be"),
        (["--lr", "fast"], "'fast' is not a number, nor none."),
        (["--patience", "1.5"], "'1.5' is not a whole number, nor none."),
        (["--schedule", "step"], "deltafit: --schedule must be one of linear, cosine, constant"),
        (["--metric", "bleu"], "bleu"),
        (["--head", "max"], "deltafit: --head must be one of"),
        (["--head-dropout", "1"], "deltafit: --head-dropout must be"),
        (["--head-start", "probe"], "cls, mean, last or auto"),
        (["--validation", "1.5"], "validation fraction is 1.5"),
        (["--validation", "0,1"], "validation fraction is 0,1; give a number between 0 and 1"),
        (["--limit", "0"], "deltafit: --limit must be"),
        (["--split-seed", "-1"], "deltafit: --split-seed must be"),
        (["--track", "nothing"], "nothing"),
        (["--colour", "red"], "No such option"),
    ],
)
def test_wrong_usage_is_2(tiny: Tiny, tmp_path: Path, words: list[str], said: str) -> None:
    assert said in refused(2, "train", *tiny.start(tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [["fit"], ["train"], ["evaluate", "run"], ["predict"], ["merge", "run"], ["inspect"]],
)
def test_what_is_missing_is_2(words: list[str]) -> None:
    sentence = refused(2, *words)
    assert "Missing" in sentence or "No such command" in sentence


def test_a_wrong_model_or_file_is_1(tiny: Tiny, tmp_path: Path) -> None:
    for old, new, said in (
        (tiny.model, tmp_path / "no-model", "no-model"),
        (tiny.model, tmp_path, "config.json"),
        (tiny.train, tmp_path / "none.csv", "none.csv"),
        (tiny.test, tmp_path / "none.tsv", "none.tsv"),
    ):
        words = tiny.start(tmp_path / "run")
        words[words.index(old)] = str(new)
        result = refused(1, "train", *words)
        assert said in result and len(result) < 600
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\nw1,bad\nw2,awful\n", "'awful'"),
        ("text,label\nw1,bad\n,good\n", "row 2"),
        ("text,label\n", "no rows"),
        ("review,label\nw1,bad\n", "review"),
    ],
)
def test_data_that_does_not_fit_the_classifier(
    tiny: Tiny, tmp_path: Path, content: str, said: str
) -> None:
    table = tmp_path / "table.csv"
    table.write_text(content)
    words = ["--text-column", "text"] if content.startswith("review") else []
    sentence = refused(1, "evaluate", tiny.run, "--data", table, *words)
    assert said in sentence and "table.csv" in sentence


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_labels(path: Path) -> None:
    content = json.loads(path.read_text())
    content["label_names"] = [*LABELS, "superb"]
    path.write_text(json.dumps(content))


def one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("adapter_model.safetensors", cut_short),
        ("adapter_model.safetensors", one_bit),
        ("adapter_model.safetensors", Path.unlink),
        ("deltafit.json", cut_short),
        ("deltafit.json", other_labels),
        ("deltafit.json", Path.unlink),
        ("canaries.safetensors", cut_short),
        ("canaries.safetensors", one_bit),
        ("canaries.safetensors", Path.unlink),
    ],
)
def test_a_damaged_adapter_is_refused(
    tiny: Tiny, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(tiny.run / "adapter", adapter)
    damage(adapter / file)
    for words in (["verify", adapter], ["predict", adapter, "w1"]):
        sentence = refused(1, *words)
        assert str(adapter) in sentence and len(sentence) < 600


def test_a_folder_that_is_no_run(tiny: Tiny, tmp_path: Path) -> None:
    assert "There is no folder" in refused(1, "predict", tmp_path / "gone", "w1")
    for words in (["predict", tiny.test, "w1"], ["evaluate", tiny.test, "--data", tiny.test]):
        sentence = refused(2, *words)
        assert "test.csv is a file. First comes the folder of a run" in sentence
    assert "no adapter" in refused(1, "verify", tmp_path)
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    shutil.copy(tiny.run / "run.json", unfinished)
    assert "--resume" in refused(1, "evaluate", unfinished, "--data", tiny.test)


def test_a_full_disk(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("deltafit.files.os.fsync", full)
    for words in (
        ["train", *tiny.start(tmp_path / "run"), "--method", "head"],
        ["predict", tiny.run, "w1", "--output", tmp_path / "out.jsonl"],
    ):
        sentence = refused(1, *words)
        assert "Could not write" in sentence and "No space left on device" in sentence
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_disk_that_fills_up_in_training(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, calls = os.fsync, list[int]()

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr("deltafit.files.os.fsync", full)
    words = [*tiny.start(tmp_path / "run"), "--method", "head"]
    sentence = refused(1, "train", *words)
    assert "No space left on device" in sentence and ".part" not in sentence
    assert f"The disk of {tmp_path / 'run'}" in sentence and "is full; free some" in sentence
    assert "Go on with: deltafit " in sentence and sentence.strip().endswith("--resume")
    monkeypatch.undo()
    left = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert left and not any(path.name.endswith(".part") for path in left)
    done("train", *words, "--resume")


def test_an_unwritable_output(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = [*tiny.start(tmp_path / "file" / "run"), "--method", "head"]
    assert "Could not write" in refused(1, "train", *words)
    assert "is a file" in refused(2, "train", *tiny.start(tmp_path / "file"), "--method", "head")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_out_of_memory(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("deltafit.prediction.using.compute_logits_merged", fail)
    assert "smaller --batch-size" in refused(1, "evaluate", tiny.run, "--data", tiny.test)


def test_a_mistake_of_ours_is_no_sentence(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("deltafit.prediction.using.compute_logits_merged", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        refused(1, "evaluate", tiny.run, "--data", tiny.test)


def test_ctrl_c_while_predicting(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deltafit.prediction.using.compute_logits_merged", interrupt)
    assert refused(130, "predict", tiny.run, "w1").strip() == "deltafit: Stopped."


def test_a_full_disk_that_others_meet_says_how_to_go_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:  # as a tracker would that writes its own files
        raise OSError(errno.ENOSPC, "No space left on device", "logs/events")

    monkeypatch.setattr("deltafit.training.train.execute", full)
    sentence = refused(1, "train", *tiny.start(tmp_path / "run"))
    assert "No space left on device (logs/events). Go on with: deltafit " in sentence
    monkeypatch.setattr("deltafit.prediction.using.load_saved", full)
    assert refused(1, "verify", tiny.run).strip().endswith("(logs/events).")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "deltafit: Stopped."),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "refused: No space left on device."),
    ],
)
@pytest.mark.parametrize("words", [["--version"], ["train", "--help"]])
def test_before_a_command_begins_errors_are_sentences_too(
    monkeypatch: pytest.MonkeyPatch, words: list[str], error: BaseException, code: int, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("typer.echo", fail)
    monkeypatch.setattr("typer.core.TyperCommand.format_help", fail)
    assert said in refused(code, *words)


def test_ctrl_c_while_the_command_line_loads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Loading:
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "deltafit.cli", Loading())  # type: ignore[arg-type]  # no module
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130 and capsys.readouterr().err == "deltafit: Stopped.\n"
