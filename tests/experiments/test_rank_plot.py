"""The picture of ranks: every rank stands in its place, and the file's zeros are rank 0."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from deltafit.adapters import adapt, adapter_tensors, save_adapter
from deltafit.experiments.rank_plot import OUTSIDE, learned_ranks, matrix_plot, rank_plot
from deltafit.experiments.report import write_report
from deltafit.methods import AdaLoRA, Full, LoRA, Method
from tests.experiments.figures import LONG, assert_inside, texts
from tests.experiments.rows import run
from tests.tiny_models import tiny_model


def saved(folder: Path, left: Sequence[int]) -> Path:
    """An AdaLoRA adapter on each block's query with so many triplets left."""
    model = tiny_model("bert")
    adapt(model, AdaLoRA(("query",), rank=1, initial_rank=4), seed=0)
    lambdas = [t for n, t in adapter_tensors(model, "default").items() if n.endswith("lora_E")]
    with torch.no_grad():
        for tensor, kept in zip(lambdas, left, strict=True):
            tensor.fill_(1.0)
            tensor[kept:] = 0
    save_adapter(model, folder)
    return folder


@pytest.mark.parametrize("left", [(4, 1, 2), (0, 3, 3), (2, 2, 2), (0, 0, 0)])
def test_ranks_are_those_that_are_left(tmp_path: Path, left: tuple[int, ...]) -> None:
    ranks = learned_ranks(saved(tmp_path / "a", left))
    expected = {
        f"bert.encoder.layer.{block}.attention.self.query": rank for block, rank in enumerate(left)
    }
    assert ranks == (expected if len(set(left)) > 1 else {})


@pytest.mark.parametrize("method", [LoRA(rank=2), Full()])
def test_where_all_ranks_are_alike_there_is_nothing_to_draw(tmp_path: Path, method: Method) -> None:
    model = tiny_model("bert")
    adapt(model, method, seed=0)
    save_adapter(model, tmp_path / "a")
    assert learned_ranks(tmp_path / "a") == {}


@pytest.mark.parametrize("blocks", [1, 6, 30])
def test_every_rank_stands_in_its_place(blocks: int) -> None:
    leaves = ("attention.self.query", "attention.self.value", "intermediate.dense")
    ranks = {
        f"bert.encoder.layer.{block}.{leaf}": block + 7 * place
        for block in range(blocks)
        for place, leaf in enumerate(leaves)
    } | {"bert.pooler.dense": 99}
    del ranks[f"bert.encoder.layer.0.{leaves[2]}"]
    figure = rank_plot(ranks, LONG)
    assert_inside(figure)
    axes = figure.axes[0]
    columns = [label.get_text() for label in axes.get_xticklabels()]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert columns == [*map(str, range(blocks)), OUTSIDE]
    seen = {}
    for text in axes.texts:
        column, row = map(round, text.get_position())
        seen[rows[row], columns[column]] = int(text.get_text())
    assert seen == {
        **{(n.split(".", 4)[4], n.split(".")[3]): r for n, r in ranks.items() if ".layer." in n},
        ("bert.pooler.dense", OUTSIDE): 99,
    }
    assert {"rank", "block", "matrix"} <= texts(figure)


def test_what_is_no_whole_number_keeps_a_digit() -> None:
    figure = matrix_plot(
        {"layer.0.query": 12.34, "layer.1.query": 0.0}, LONG, "% of ‖ΔW‖²", lambda v: f"{v:.1f}"
    )
    assert_inside(figure)
    assert {"12.3", "0.0", "% of ‖ΔW‖²"} <= texts(figure)


def test_the_report_shows_it_where_ranks_differ(tmp_path: Path) -> None:
    ranks = {"adalora": {"encoder.layer.0.query": 3, "encoder.layer.1.query": 0}, "lora": {}}
    write_report(tmp_path, [run("adalora", 0.9, None)], {}, {}, ranks, {})
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Rank of each matrix in adalora" in report and "matrix in lora" not in report
    assert (tmp_path / "plots" / "ranks-1.png").read_bytes().startswith(b"\x89PNG")
