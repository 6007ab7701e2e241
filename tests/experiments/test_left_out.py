"""Kinds of matrices that are left out: as ``ranks`` measures them, found once, said as they are."""

import json
from pathlib import Path

import numpy as np
import pytest

from deltafit.adapters import read_adapter
from deltafit.data import load_labelled
from deltafit.experiments import left_out as rooms
from deltafit.experiments.judgement import _look, _Shown
from deltafit.experiments.left_out import KindLeftOut, LeftOut, left_out, spread
from deltafit.experiments.left_out_words import left_out_part
from deltafit.experiments.rank_judging import Judge
from deltafit.experiments.statistics import paired_comparison
from deltafit.methods import IA3, LoRA, Method
from deltafit.prediction.folder import load_saved
from deltafit.training.progress import Silent
from tests.experiments.recipe_runs import Listening
from tests.experiments.right_answers import answers
from tests.prediction.derived import saved_on
from tests.training.tiny_runs import LABELS, save_model, write_table


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("base"))


def adapter(base: str, folder: Path, method: Method) -> Path:
    saved_on(base, folder, method, std=0.3)
    return folder


def test_it_is_what_ranks_finds_and_is_found_once(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter(base, tmp_path / "run", LoRA(["query", "value", "dense"], rank=3))
    part = load_labelled(write_table(tmp_path / "test.csv", 60, seed=5), LABELS)
    kept = tmp_path / "left_out.json"
    found = left_out(folder, "run 1", part, kept, Silent())
    judge = Judge(load_saved(folder), read_adapter(folder), part, str(folder), 2048)
    expected = {row.title: row for row in judge.parts(False, Silent()) if row.kind == "matrix type"}
    assert found is not None and found.count == 60
    assert {kind.title for kind in found.kinds} == expected.keys() and len(expected) > 2
    for kind in found.kinds:
        row = expected[kind.title]
        assert kind.accuracy == pytest.approx(row.without.accuracy)
        assert kind.energy == pytest.approx(row.energy)
        assert kind.to_whole.difference == row.without.against_whole.difference
        assert kind.to_whole.adjusted_p_value >= row.without.against_whole.p_value
    missed = [kind.to_whole.difference for kind in found.kinds]
    assert missed == sorted(missed)

    def refuse(*_: object) -> None:
        raise AssertionError("it is known")

    with monkeypatch.context() as context:
        context.setattr(rooms, "load_saved", refuse)
        assert left_out(folder, "run 1", part, kept, Silent()) == found
        with pytest.raises(AssertionError, match="it is known"):
            left_out(folder, "run 2", part, kept, Silent())
        with pytest.raises(AssertionError, match="it is known"):
            left_out(folder, "run 1", part.select(range(50)), kept, Silent())
    with_list = json.dumps(json.loads(kept.read_text()) | {"without": [*expected]})
    for damaged in (
        "",
        "{}",
        "[1]",
        with_list,
        kept.read_text().replace('"count": 60', '"count": 3'),
    ):
        kept.write_text(damaged)
        assert left_out(folder, "run 1", part, kept, Silent()) == found


def test_of_many_rows_some_are_looked_at_spread_evenly(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "MOST_ROWS", 20)
    folder = adapter(base, tmp_path / "run", LoRA(rank=2))
    part = load_labelled(write_table(tmp_path / "test.csv", 50, seed=5), LABELS)
    found = left_out(folder, "run", part, tmp_path / "left_out.json", Silent())
    assert found is not None and (found.count, found.total) == (20, 50)
    thinned = part.select(spread(50, 20))
    again = left_out(folder, "run", thinned, tmp_path / "b.json", Silent())
    assert again is not None and again.kinds == found.kinds
    for count, most in ((1001, 1000), (7, 1000), (1, 5), (2500, 1000)):
        indices = spread(count, most)
        assert len({*indices}) == len(indices) == min(count, most)
        assert indices[0] == 0 and indices[-1] == count - 1 and indices == sorted(indices)


@pytest.mark.parametrize("method", [IA3(), LoRA(["query"], rank=2)])
def test_what_has_no_kinds_to_leave_out_has_none(base: str, tmp_path: Path, method: Method) -> None:
    folder = adapter(base, tmp_path / "run", method)
    part = load_labelled(write_table(tmp_path / "test.csv", 20, seed=5), LABELS)
    assert left_out(folder, "run", part, tmp_path / "left_out.json", Silent()) is None
    assert not (tmp_path / "left_out.json").exists()


def test_what_cannot_be_loaded_is_told_and_ends_no_report(base: str, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "run", LoRA(rank=2))
    (folder / "canaries.safetensors").write_bytes(b"damaged")
    part = load_labelled(write_table(tmp_path / "test.csv", 20, seed=5), LABELS)
    said, shown = Listening(), {"r=2": _Shown("r=2", folder, {"run_hash": "run"})}
    assert _look(shown, part, tmp_path, said)("r=2") is None
    assert len(said.said) == 1 and said.said[0].startswith("No kind of matrix is left out of r=2: ")


def test_it_is_said_by_what_may_be_said() -> None:
    kinds = []
    for title, cells in (("dense", (100, 1, 40, 9)), ("query", (120, 8, 10, 12))):
        comparison = paired_comparison(*answers(*cells))
        kinds.append(KindLeftOut(title, 0.5, 0.9, comparison))
    part = left_out_part("r=4", LeftOut(150, 4000, 0.93, tuple(kinds)), "Which?")
    assert part.caption.startswith("Which? Of r=4 one kind of matrix at a time was left out")
    assert (
        "On 150 of the 4,000 judged rows (93.0 % with all) it is worse beyond noise without dense; "
        "within noise of the whole without query (corrected for 2 kinds)." in part.caption
    )
    every = left_out_part("r=4", LeftOut(150, 150, 0.93, tuple(kinds)), "Which?")
    assert "On all 150 judged rows (" in every.caption
    assert part.table is not None and len(part.table.rows) == 2
    assert part.table.rows[1][-1].startswith("within noise (−1.3")
    assert np.isclose(part.table.records[0]["to_whole"]["difference"], -0.26)
