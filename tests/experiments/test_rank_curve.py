"""The picture of accuracy against rank: every rank stands in its place with its standing."""

import pytest

from deltafit.experiments.rank_curve import rank_curve
from deltafit.experiments.rank_rows import compared_ranks
from tests.experiments.figures import LONG, assert_inside, texts
from tests.experiments.test_ranks import rank_row


@pytest.mark.parametrize(
    "wrongs",
    [
        {0: 90, 1: 18, 2: 15, 4: 12, 8: 13, 16: 12},
        {0: 13, 1: 12},
        {0: 90, 1: 12},
        dict.fromkeys(range(14), 12),
    ],
)
def test_every_rank_stands_in_its_place(wrongs: dict[int, int]) -> None:
    rows = compared_ranks([rank_row(rank, wrong) for rank, wrong in wrongs.items()])
    figure = rank_curve(rows, LONG)
    assert_inside(figure)
    (axes,) = figure.axes
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert [int(tick.split()[0]) for tick in ticks] == list(wrongs)
    shown = {
        line.get_label(): dict(zip(*line.get_data(), strict=True))
        for line in axes.lines
        if line.get_label() in {row.standing for row in rows}
    }
    for place, row in enumerate(rows):
        assert shown[row.standing][place] == pytest.approx(100 * row.measured.accuracy)
    assert {"best", "95 % interval", "too small a difference to show"} <= texts(figure)
    (said,) = [tick for tick in ticks if "\n" in tick]
    smallest = min(row.rank for row in rows if row.standing in ("best", "within noise"))
    assert said.split()[0] == str(smallest)


def test_a_single_row_has_no_zone() -> None:
    rows = compared_ranks([rank_row(rank, 0, count=1) for rank in (0, 1)])
    figure = rank_curve(rows, "a")
    assert_inside(figure)
    assert "too small a difference to show" not in texts(figure)
