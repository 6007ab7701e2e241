"""``ranks``: a variant is what truncating and evaluating would give, and what is said is true."""

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from deltafit.adapters import StoredAdapter, load_adapter, read_adapter, remove_adapter
from deltafit.data import load_labelled
from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.rank_advice import about_parts, rank_verdict
from deltafit.experiments.rank_judging import Judge, parts_of, titles_of, tried_ranks, wearing
from deltafit.experiments.rank_report import report_as_dict
from deltafit.experiments.rank_rows import (
    Dispensable,
    PartRow,
    RankRow,
    compared_parts,
    compared_ranks,
    measured,
    smallest_rank,
)
from deltafit.experiments.ranks import ranks
from deltafit.methods import IA3, AdaLoRA, Full, LoRA, Method, Prompt
from deltafit.prediction.folder import load_saved
from deltafit.prediction.merged import compute_logits_merged
from deltafit.prediction.truncating import truncate
from deltafit.prediction.using import evaluate
from tests.prediction.derived import saved_on
from tests.prediction.test_quantised import saved
from tests.training.tiny_runs import LABELS, save_model, write_table

METHOD = LoRA("all-linear", rank=6, rank_pattern=(("query", 2),))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "run"
    saved_on(base, folder, METHOD, std=0.3)
    return folder


def judge_of(folder: Path, data: str, stored: StoredAdapter | None = None) -> Judge:
    saved = load_saved(folder)
    part = load_labelled(data, LABELS)
    return Judge(saved, stored or read_adapter(folder), part, str(folder), 2048)


def logits_of(folder: Path, judge: Judge) -> np.ndarray:
    """What the adapter in a folder says of the judge's rows, as ``evaluate`` computes it."""
    return compute_logits_merged(load_saved(folder).classifier, judge.tokens.input_ids)


def silent(_: int) -> None:
    pass


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 420])  # few tokens run unmerged and many merged
def test_every_rank_is_truncate_and_evaluate(adapter: Path, tmp_path: Path, count: int) -> None:
    data = write_table(tmp_path / "test.csv", count, seed=5)
    judge = judge_of(adapter, data)
    for rank in (1, 3, 6):
        truncate(adapter, tmp_path / str(rank), rank=rank, tolerance=99)
        found = judge.logits_of(judge.cut(rank)[0], silent)
        np.testing.assert_array_equal(found, logits_of(tmp_path / str(rank), judge))
    np.testing.assert_array_equal(found, logits_of(adapter, judge))
    found = judge.ranks(_Silent())
    assert [row.rank for row in found] == [0, 1, 2, 3, 4, 5, 6]
    for row, folder in ((found[1], tmp_path / "1"), (found[6], adapter)):
        expected = evaluate(folder, data)
        assert row.measured.accuracy == expected["accuracy"]
        assert row.measured.interval == expected["accuracy_interval"]
        assert row.measured.macro_f1 == expected["macro_f1"]
    assert found[6].measured.changed == 0 and found[6].energy_kept == 1
    assert 0 < found[1].energy_kept < found[2].energy_kept < 1 and found[0].energy_kept == 0


@pytest.mark.slow
def test_sizes_are_those_of_the_files(adapter: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "test.csv", 12)
    found = judge_of(adapter, data).ranks(_Silent())
    truncate(adapter, tmp_path / "cut", rank=3, tolerance=99)
    for row, folder in ((found[3], tmp_path / "cut"), (found[6], adapter)):
        tensors = read_adapter(folder).tensors.values()
        assert row.parameters == sum(tensor.numel() for tensor in tensors)
        assert row.stored_bytes == 4 * row.parameters
    stored = read_adapter(adapter)
    assert found[0].parameters == sum(stored.tensors[name].numel() for name in stored.replaced)


def test_rank_0_is_the_base_with_the_trained_head(base: str, adapter: Path, tmp_path: Path) -> None:
    judge = judge_of(adapter, write_table(tmp_path / "test.csv", 9))
    stored, tokenizer = read_adapter(adapter), AutoTokenizer.from_pretrained(base)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()
    head = {name: stored.tensors[name] for name in stored.replaced}
    assert not plain.load_state_dict(head, strict=False).unexpected_keys
    with torch.no_grad():
        expected = [
            plain(**tokenizer(text, return_tensors="pt")).logits[0].numpy()
            for text in judge.part.texts
        ]
    found = judge.logits_of(judge.cut(0)[0], silent)
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-5)


def planted(folder: Path, rank: int, full: int) -> StoredAdapter:
    """The adapter with a Δ of a rank in each module, its factors of ``full`` columns."""
    stored, generator = read_adapter(folder), torch.Generator().manual_seed(0)
    tensors = dict(stored.tensors)
    for name in [n.removesuffix(".lora_A") for n in stored.tensors if n.endswith(".lora_A")]:
        left, right = tensors[f"{name}.lora_B"][:, :rank], tensors[f"{name}.lora_A"][:rank]
        mixing = torch.randn(rank, full, generator=generator, dtype=torch.float64)
        tensors[f"{name}.lora_B"] = (left.double() @ mixing).float()
        tensors[f"{name}.lora_A"] = (torch.linalg.pinv(mixing) @ right.double()).float()
    return replace(stored, tensors=tensors)


def test_a_planted_rank_is_named(base: str, tmp_path: Path) -> None:
    saved_on(base, tmp_path / "run", LoRA("all-linear", rank=8, alpha=8), std=0.4)
    stored = planted(tmp_path / "run", 2, 8)
    plain = judge_of(tmp_path / "run", write_table(tmp_path / "any.csv", 240), stored)
    predicted = plain.logits_of(stored, silent).argmax(1)
    with (tmp_path / "test.csv").open("w", newline="", encoding="utf-8") as file:
        rows = zip(plain.part.texts, predicted, strict=True)
        csv.writer(file).writerows([("text", "label"), *((t, LABELS[p]) for t, p in rows)])
    judge = judge_of(tmp_path / "run", str(tmp_path / "test.csv"), stored)
    found = judge.ranks(_Silent())
    assert [row.standing for row in found] == ["worse"] * 2 + ["within noise"] * 6 + ["best"]
    assert smallest_rank(found).rank == 2 and found[2].measured.changed == 0
    assert found[2].energy_kept == pytest.approx(1, abs=1e-9)


class _Silent:
    """Counts what it is told."""

    done = 0

    def start(self, what: str, total: int | None, done: int) -> None:
        self.total = total

    def step(self, done: int, loss: float | None, examples_per_second: float | None) -> None:
        self.done = done

    def say(self, sentence: str) -> None:
        raise AssertionError(sentence)


def hits(count: int, wrong: int, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels 0 of so many rows, and logits that get ``wrong`` of them wrong from ``start`` on."""
    labels = np.zeros(count, dtype=np.int64)
    logits = np.tile([1.0, 0.0], (count, 1))
    logits[start : start + wrong] = [0.0, 1.0]
    return labels, logits


def rank_row(rank: int, wrong: int, start: int = 0, count: int = 300) -> RankRow:
    labels, logits = hits(count, wrong, start)
    _, whole = hits(count, 12)
    size = 100 * (rank + 1)
    return RankRow(rank, size, 4 * size, 1.0, measured(logits, whole, labels, ("a", "b")))


def test_the_rule_by_hand() -> None:
    # All wrong rows are among the best's and more, so that differences are as clear as can be.
    rows = compared_ranks([rank_row(r, wrong) for r, wrong in ((0, 90), (1, 16), (2, 15), (4, 12))])
    assert [row.standing for row in rows] == ["worse", "within noise", "within noise", "best"]
    assert smallest_rank(rows).rank == 1
    # 6 rows of 300 lost and none won: p = 2/64, by itself a difference, not among three.
    rows = compared_ranks([rank_row(r, wrong) for r, wrong in ((0, 18), (1, 18), (2, 18), (4, 12))])
    assert [row.standing for row in rows] == ["undecided", "undecided", "undecided", "best"]
    # Corrected for six pairs, of three ranks that got the very same rows: not 6 times 2/64.
    assert all(0.03 < row.p_value < 6 / 32 for row in rows if row.p_value is not None)
    assert [row.p_value is None for row in rows] == [False, False, False, True]
    assert smallest_rank(rows).rank == 4
    # Of equals the largest is the best, and a rank above is none the better for a lucky row.
    rows = compared_ranks([rank_row(r, wrong) for r, wrong in ((1, 11), (2, 12), (4, 12))])
    assert [row.standing for row in rows] == ["best", "within noise", "within noise"]
    said = rank_verdict(Path("runs/a"), rows, 0.0, None)
    assert "Rank 1's lead over the whole adapter, rank 4, is no more than the best of 3" in said


def test_what_is_said_of_ranks() -> None:
    rows = compared_ranks([rank_row(r, wrong) for r, wrong in ((0, 90), (1, 15), (4, 12))])
    said = rank_verdict(Path("runs/a"), rows, 0.0312, None)
    assert said.startswith(
        "Rank 1 is the smallest within noise of the best, rank 4: 95.0 % against 96.0 % on 300 "
        "rows (−1.0 ["
    )
    assert "2.5 times smaller than rank 4 (800 B and 2.0 kB)" in said
    assert "On 300 rows a true loss of up to 2.3 points is not ruled out" in said
    assert said.endswith("deltafit truncate runs/a --rank 1 --output runs/a-rank1")
    # What truncate would refuse by its tolerance is allowed, with the figure that it takes.
    said = rank_verdict(Path("runs/a b"), rows, 0.1234, "base")
    assert said.endswith(
        "deltafit truncate 'runs/a b' --rank 1 --output 'runs/a b-rank1' --tolerance 0.13 "
        "--model base"
    )
    none = compared_ranks([rank_row(0, 13), rank_row(1, 12)])
    said = rank_verdict(Path("runs/a"), none, 0.0, None)
    assert "Even rank 0, the base with the trained head, is within noise" in said
    assert "do not show that ΔW adds anything" in said and "truncate" not in said
    better = compared_ranks([rank_row(0, 3), rank_row(1, 12)])
    said = rank_verdict(Path("runs/a"), better, 0.0, None)
    assert said.startswith("Rank 0, the base with the trained head, is the best (99.0 % on 300")
    assert "Rank 0's lead over the whole adapter, rank 1, is beyond noise (+3.0 [" in said
    half = compared_ranks([rank_row(0, 90), rank_row(1, 3), rank_row(2, 12)])
    said = rank_verdict(Path("runs/a"), half, 0.0, None)
    assert "no smaller one is within noise of it; it is 1.5 times smaller than rank 2." in said
    assert "--rank 1" in said
    only = compared_ranks([rank_row(0, 90), rank_row(1, 12)])
    said = rank_verdict(Path("runs/a"), only, 0.0, None)
    assert said == (
        "Rank 1 is the best (96.0 % on 300 rows), and no smaller one is within noise of it: keep "
        "it."
    )


def test_parts_are_judged_as_a_family_and_sorted() -> None:
    def part(kind: str, name: str, wrong: int) -> PartRow:
        figures = rank_row(1, wrong).measured
        return PartRow(kind, name, name, (name,), 0.25, figures, figures)  # type: ignore[arg-type]

    rows = [part("block", "0", 12), part("block", "1", 40), part("matrix type", "query", 18)]
    found = compared_parts(rows)
    assert [(row.name, row.standing) for row in found] == [
        ("1", "worse"), ("0", "within noise"), ("query", "undecided"),
    ]  # fmt: skip
    assert compared_parts([part("block", "0", 5)])[0].standing == "better"


def test_what_is_said_of_parts() -> None:
    def part(name: str, wrong: int) -> PartRow:
        figures = rank_row(1, wrong).measured
        return PartRow("block", name, f"block {name}", (name,), 0.25, figures, figures)

    names = ("10", "9", "1", "0")
    rows = compared_parts([part(n, w) for n, w in zip(names, (12, 12, 13, 40), strict=True)])
    found = Dispensable(tuple(reversed(rows[1:])), rank_row(1, 13).measured)
    said = about_parts([rows], [found], rank_row(0, 90))
    assert said.startswith(
        "Most needed of the 4 blocks is block 0: without its ΔW accuracy changes by −9.3 ["
    )
    assert "The ΔW of block 1, block 9 and block 10 can be left out together within noise" in said
    assert said.endswith("75 % of ‖ΔW‖²: a next run can do so with --layers 0.")
    calm = compared_parts([part("0", 12), part("1", 18)])
    said = about_parts([calm], [], rank_row(0, 13))
    assert "No single one of the 2 blocks is needed beyond noise; of block 1 (−2.0 [" in said
    assert "these rows do not tell which parts" in said
    assert about_parts([], [], rank_row(0, 13)) == ""


@pytest.mark.parametrize(
    ("dropped", "kept", "flag"),
    [
        ("attention.query", "attention.value", "--target-modules attention.value."),
        ("attention.output.dense", "output.dense", "% of ‖ΔW‖²."),  # it would match both
    ],
)
def test_a_flag_is_named_where_it_does_that(dropped: str, kept: str, flag: str) -> None:
    parts = [
        PartRow("matrix type", name, name, (name,), 0.5, figures, figures)
        for name, figures in ((kept, rank_row(1, 40).measured), (dropped, rank_row(1, 12).measured))
    ]
    rows = compared_parts(parts)
    found = Dispensable((rows[1],), rows[1].without)
    assert about_parts([rows], [found], rank_row(0, 90)).endswith(flag)


@pytest.mark.slow
def test_a_part_without_change_changes_nothing(adapter: Path, tmp_path: Path) -> None:
    data, stored = write_table(tmp_path / "test.csv", 30), read_adapter(adapter)
    zeros = {
        name: torch.zeros_like(tensor) if ".layer.1." in name and "lora_B" in name else tensor
        for name, tensor in stored.tensors.items()
    }
    judge = judge_of(adapter, data, replace(stored, tensors=zeros))
    reporter = _Silent()
    remove_adapter(judge.saved.classifier.model, "default")
    load_adapter(judge.saved.classifier.model, replace(stored, tensors=zeros))
    found = {row.title: row for row in judge.parts(True, reporter)}
    assert reporter.done == reporter.total
    silent_block = found["block 1"]
    assert silent_block.energy == 0 and silent_block.without.changed == 0
    np.testing.assert_array_equal(
        judge.logits_of(judge.without(silent_block.modules), silent),
        judge.logits_of(replace(stored, tensors=zeros), silent),
    )
    assert found["block 0"].without.changed > 0
    assert sum(found[f"block {block}"].energy for block in range(3)) == pytest.approx(1)
    assert found["block 0"].alone.changed > 0
    # Alone it is the base with the head.
    np.testing.assert_array_equal(
        judge.logits_of(judge.cut(0)[0], silent).argmax(1) == judge._labels,
        silent_block.alone.correct,
    )


@pytest.mark.slow
def test_what_is_left_out_together_is_measured_together(adapter: Path, tmp_path: Path) -> None:
    judge = judge_of(adapter, write_table(tmp_path / "test.csv", 60))
    rows = [row for row in judge.parts(False, _Silent()) if row.kind == "block"]
    found = judge.dispensable(rows, _Silent())
    assert found is not None and 1 <= len(found.parts) < len(rows)
    modules = [module for part in found.parts for module in part.modules]
    expected = judge.logits_of(judge.without(modules), silent).argmax(1) == judge._labels
    np.testing.assert_array_equal(found.without.correct, expected)
    assert found.without.against_whole.high >= 0
    assert found.parts[0] is rows[-1]


@pytest.mark.slow
def test_everything_stays_as_it_was(adapter: Path, tmp_path: Path) -> None:
    before = bytes_of(adapter)
    report = ranks(adapter, write_table(tmp_path / "test.csv", 20), output=tmp_path / "out")
    assert bytes_of(adapter) == before
    assert report.count == 20
    judge = judge_of(adapter, str(tmp_path / "test.csv"))
    model = judge.saved.classifier.model
    names, values = [*model.state_dict()], [t.clone() for t in model.state_dict().values()]
    judge.logits_of(judge.cut(1)[0], silent)
    judge.canary_change(judge.cut(0)[0])
    with pytest.raises(KeyError), wearing(model, judge.cut(2)[0]):
        raise KeyError
    assert [*model.state_dict()] == names
    assert all(map(torch.equal, model.state_dict().values(), values))
    np.testing.assert_array_equal(judge._logits(silent), logits_of(adapter, judge))


@pytest.mark.slow
def test_the_report_holds_every_figure(adapter: Path, tmp_path: Path) -> None:
    data, out = write_table(tmp_path / "test.csv", 30), tmp_path / "out"
    report = ranks(adapter, data, output=out, matrices=True)
    content = json.loads((out / "ranks.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(report_as_dict(report)))
    assert content["smallest_within_noise"] == smallest_rank(report.ranks).rank
    for name, rows in (("ranks.csv", report.ranks), ("parts.csv", report.parts)):
        with (out / name).open(encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(rows)
        figures = [getattr(row, "measured", None) or row.without for row in rows]
        assert [float(line["accuracy"]) for line in lines] == [f.accuracy for f in figures]
    text = (out / "report.md").read_text(encoding="utf-8")
    assert report.verdict in text and report.about_parts in text
    shown = report._repr_markdown_()
    assert shown == text.split("\n\n## Accuracy against rank")[0] + "\n"
    assert "array" not in repr(report)
    plots = sorted(path.name for path in (out / "plots").iterdir())
    assert plots == ["changed.png", "effective-ranks.png", "energy.png", "ranks.png"]
    assert all(f"](plots/{name})" in text for name in plots)
    with pytest.raises(UsageError, match="exists already"):
        ranks(adapter, data, output=out)


@pytest.mark.slow
def test_nothing_is_left_where_writing_fails(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    data = write_table(tmp_path / "test.csv", 12)
    monkeypatch.setattr("deltafit.experiments.rank_report.report_markdown", fail)
    with pytest.raises(DeltafitError, match="is full"):
        ranks(adapter, data, output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["test.csv"]


@pytest.mark.slow
def test_a_quantised_base_stays_so(tmp_path: Path) -> None:
    saved(tmp_path, "nf4", LoRA(rank=3, initialisation="loftq"))
    judge = judge_of(tmp_path / "adapter", write_table(tmp_path / "test.csv", 12))
    truncate(tmp_path / "adapter", tmp_path / "cut", rank=1, tolerance=99)
    np.testing.assert_array_equal(
        judge.logits_of(judge.cut(1)[0], silent), logits_of(tmp_path / "cut", judge)
    )
    assert ranks(tmp_path / "adapter", tmp_path / "test.csv").ranks[-1].rank == 3


@pytest.mark.slow
@pytest.mark.parametrize("method", [AdaLoRA(rank=2, initial_rank=3), LoRA(initialisation="pissa")])
def test_what_is_saved_as_lora_has_ranks(base: str, tmp_path: Path, method: Method) -> None:
    saved_on(base, tmp_path / "run", method)
    found = ranks(tmp_path / "run", write_table(tmp_path / "test.csv", 12)).ranks
    stored = read_adapter(tmp_path / "run")
    assert isinstance(stored.method, LoRA)
    assert found[-1].rank == max(
        len(tensor) for name, tensor in stored.tensors.items() if name.endswith("lora_A")
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", [IA3(), Full(), Prompt(2)])
def test_other_methods_are_refused_as_truncate_does(
    base: str, tmp_path: Path, method: Method
) -> None:
    saved_on(base, tmp_path / "run", method)
    said = []
    for call in (
        lambda: truncate(tmp_path / "run", tmp_path / "out", rank=1),
        lambda: ranks(tmp_path / "run", "no such file"),
    ):
        with pytest.raises(DeltafitError) as refusal:
            call()
        said.append(str(refusal.value))
    assert said[0] == said[1] and "holds an adapter of the method" in said[0]


def test_ranks_that_are_tried() -> None:
    assert tried_ranks(1) == [0, 1] and tried_ranks(8) == [*range(9)]
    assert tried_ranks(20) == [*range(21)] and tried_ranks(32) == [*range(33)]
    assert tried_ranks(33) == [*range(34)]
    assert tried_ranks(100) == [*range(33), 48, 64, 96, 100]


def test_parts_and_their_titles() -> None:
    names = [f"encoder.layer.{block}.attention.self.{leaf}" for block in (2, 10) for leaf in "qv"]
    found = parts_of([*names, "embeddings.word"], matrices=True)
    assert found["block", "10"] == names[2:] and found["block", "–"] == ["embeddings.word"]
    assert [name for kind, name in found if kind == "block"] == ["2", "10", "–"]
    assert found["matrix type", "attention.self.q"] == [names[0], names[2]]
    assert len(found) == 3 + 3 + 5
    titles = titles_of(names)
    assert titles[names[3]] == "v, block 10" and titles["attention.self.q"] == "q"
    assert titles_of(["pooler.dense"])["pooler.dense"] == "dense"
    both = titles_of([*names, "embeddings.word"])
    assert both[names[0]] == "attention.self.q, block 2"
    assert both["embeddings.word"] == "embeddings.word"
    assert parts_of(names[:1], matrices=True) == {}
    assert {kind for kind, _ in parts_of(names, matrices=False)} == {"block", "matrix type"}
