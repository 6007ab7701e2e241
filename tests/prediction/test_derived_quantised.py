"""Adapters of a quantised base: cut and combined on it; the base in float32 is another."""

from pathlib import Path

import pytest

from deltafit.adapters import read_adapter
from deltafit.errors import DeltafitError
from deltafit.methods import LoRA
from deltafit.prediction.combining import combine
from deltafit.prediction.extracting import extract
from deltafit.prediction.folder import load_saved
from deltafit.prediction.truncating import truncate
from tests.prediction.derived import saved_on
from tests.prediction.test_quantised import saved

pytestmark = pytest.mark.slow


def test_they_stay_on_their_base(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name, "nf4")
    folders = [tmp_path / name / "adapter" for name in ("a", "b")]
    same = truncate(folders[0], tmp_path / "same", rank=2, tolerance=0)
    assert same.certificate.canaries.largest_change == 0
    truncate(folders[0], tmp_path / "cut", rank=1, tolerance=99)
    combine(folders, tmp_path / "both")
    for name in ("same", "cut", "both"):
        assert load_saved(tmp_path / name).facts["base"]["weights"] == "nf4"
    with pytest.raises(DeltafitError, match="base weights in few bits"):
        extract(folders[0], tmp_path / "out", rank=2)
    saved_on(str(tmp_path / "a" / "base"), tmp_path / "plain")
    with pytest.raises(DeltafitError, match=r"the base weights of .*plain are stored otherwise"):
        combine([folders[0], tmp_path / "plain"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_makes_up_for_the_rounding_stays_said(tmp_path: Path) -> None:
    loftq = LoRA(rank=3, initialisation="loftq")
    for name, method in (("a", loftq), ("b", loftq), ("plain", LoRA(rank=2))):
        saved(tmp_path / name, "nf4", method)
    folders = [tmp_path / name / "adapter" for name in ("a", "b", "plain")]
    truncate(folders[0], tmp_path / "cut", rank=2, tolerance=99)
    combine(folders[:2], tmp_path / "both")
    combine(folders[::-1], tmp_path / "all")
    for name in ("cut", "both", "all"):
        assert read_adapter(tmp_path / name).corrects == "nf4"
    combine(folders[2:], tmp_path / "one")
    assert read_adapter(tmp_path / "one").corrects is None
