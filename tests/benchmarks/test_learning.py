"""Packed and joined runs learn what padded ones do, by the records that are kept and shown."""

from pathlib import Path
from statistics import mean, stdev

import pytest

import learning
from deltafit.files import read_json, write_json_atomically

KEPT = Path(learning.__file__).parent / "results" / "learning"
DOCUMENT = Path(learning.__file__).parents[1] / "docs" / "performance.md"


def figures(name: str, way: str, key: str) -> list[float]:
    return [read_json(learning.path_of(KEPT, name, way, seed))[key] for seed in learning.SEEDS]


def test_the_document_shows_the_kept_records(capsys: pytest.CaptureFixture[str]) -> None:
    learning.show(KEPT)
    printed = capsys.readouterr().out
    assert printed.count("| 3 |") == len(learning.WORKS) * len(learning.WAYS)
    assert printed in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("key", ["accuracy", "train_loss"])
@pytest.mark.parametrize("way", ["packed", learning.JOINED])
@pytest.mark.parametrize("name", learning.WORKS)
def test_means_differ_by_no_more_than_seeds_do(name: str, way: str, key: str) -> None:
    found, expected = figures(name, way, key), figures(name, learning.PADDED, key)
    # 99 % of a t distribution with four degrees of freedom: of two means of three runs each.
    error = ((stdev(found) ** 2 + stdev(expected) ** 2) / len(learning.SEEDS)) ** 0.5
    assert abs(mean(found) - mean(expected)) < 4.6 * error


def test_records_of_another_machine_are_not_added_to(tmp_path: Path) -> None:
    facts = {"processor": "Some CPU"}
    learning.check_machine(tmp_path, facts)
    write_json_atomically(tmp_path / "a.json", {"machine": facts})
    learning.check_machine(tmp_path, facts)
    with pytest.raises(SystemExit, match=r"a\.json was measured with another machine: .*Some CPU"):
        learning.check_machine(tmp_path, {"processor": "Another"})


def test_the_slow_path_is_padded_float32_and_the_others_are_the_default() -> None:
    configs = {way: learning.config_of("sms_spam", way, 1, Path("data")) for way in learning.WAYS}
    how = {way: (c.settings.packing, c.settings.precision) for way, c in configs.items()}
    assert how.pop(learning.PADDED) == ("off", "float32")
    assert set(how.values()) == {("auto", "auto")}
    assert len({config.method for config in configs.values()}) == 1
