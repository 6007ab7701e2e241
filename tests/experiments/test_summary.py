"""The summary says what the rows say, and calls nothing within noise a win."""

import re
from pathlib import Path
from typing import Any

from deltafit.experiments.recipe_file import read_recipe
from deltafit.experiments.rows import failed_row
from deltafit.experiments.summary import headline, summary
from deltafit.training.settings import HeadConfig
from tests.experiments.rows import difference, example, row, run, undecided

RECIPES = Path(__file__).parents[2] / "recipes"
FULL = {"trainable": 22_742_861, "saved_bytes": 90_971_444, "result_name": "all"}


def against(key: str, name: str, compared: dict[str, Any]) -> dict[str, Any]:
    return {key: {"name": name, **compared}}


def three(lora: dict[str, Any], dora: dict[str, Any], **known: object) -> list[dict[str, Any]]:
    """LoRA that is advised, DoRA and full fine-tuning, which is best; differences as given."""
    return [
        run(
            "lora",
            0.93,
            difference(-0.2, 1),
            seconds=100.0,
            **against("against_full", "full", lora),
        ),
        run(
            *("dora", 0.93, difference(-0.2, 1)),
            **{"seconds": 120.0, "saved_bytes": 500_000, **known},
            **against("against_advised", "lora", dora),
        ),
        run(
            *("full", 0.932, None),
            **{**FULL, "seconds": 250.0},
            **against("against_advised", "lora", difference(0.2, 1)),
        ),
    ]


def test_a_tie_with_full_fine_tuning_is_said_with_what_it_costs() -> None:
    sentences = summary(three(difference(-0.2, 1), difference(0, 1)))
    assert sentences[:3] == [
        "Beside the best, full: 2 within noise of it (lora and dora).",
        "lora is within noise of full fine-tuning (−0.2 [−1.2, +0.8] points) at 0.45 % of the "
        "parameters and 0.4× its time.",
        "dora (1.2×) and full (2.5×) cost more time than lora for nothing that these rows show.",
    ]
    assert headline(three(difference(-0.2, 1), difference(0, 1))) == "Ship lora"


def test_a_tie_that_may_hide_a_loss_says_so() -> None:
    (_, second, *_) = summary(three(difference(-15, 25), difference(0, 1)))
    assert second.endswith("; with so few rows and seeds, 40.0 points less cannot be excluded.")
    assert "excluded" not in summary(three(difference(-0.5, 1.4), difference(0, 1)))[1]


def test_a_headline_names_what_to_ship_where_the_tie_may_cost_too_much() -> None:
    rows = three(difference(0, 1), difference(0, 1))
    rows[0]["difference"] = difference(-1.4, 1.7)
    assert headline(rows) == "Ship lora, or full where up to 3.1 points matter"


def test_the_others_are_counted_by_how_they_stand_to_the_best() -> None:
    rows = [
        row("majority", "baseline", 0.5, difference(-44, 2)),
        *(run(f"r={i}", 0.94, difference(-1, 2)) for i in range(6)),
        run("head", 0.92, undecided(-3, 2.8)),
        run("full", 0.95, None),
    ]
    assert summary(rows)[0] == (
        "Beside the best, full: 6 within noise of it (r=0, r=1, r=2, r=3 and 2 others); 1 "
        "undecided: worse looked at alone, not after correction for all pairs (head); 1 worse "
        "beyond noise."
    )
    assert "Beside" not in " ".join(summary(rows[-2:]))


def test_better_and_worse_are_said_only_beyond_noise() -> None:
    for points, word in ((3, "better"), (-3, "worse")):
        (_, second, *_) = summary(three(difference(points, 1), difference(0, 1)))
        sign = "+" if points > 0 else "−"
        assert second.startswith(f"lora ({sign}3.0 [") and f"is {word} than full" in second
    text = " ".join(summary(three(difference(3, 4), difference(0, 1))))
    assert "better" not in text and "worse" not in text


def test_more_time_that_brought_more_is_no_waste() -> None:
    text = " ".join(summary(three(difference(0, 1), difference(2, 1))))
    assert "dora is better than lora beyond noise (+2.0 [+1.0, +3.0] points), for 1.2× its" in text
    assert "full (2.5×) costs more time than lora for nothing" in text
    text = " ".join(summary(three(difference(0, 1), difference(-2, 1))))
    assert "dora (1.2×) took more time than lora and did worse beyond noise." in text


def test_times_that_overlap_over_seeds_are_no_difference() -> None:
    overlapping = {"seconds_range": [90.0, 150.0]}
    rows = three(difference(0, 1), difference(0, 1), **overlapping)
    rows[0] |= {"seconds_range": [80.0, 120.0]}
    assert not any(sentence.startswith("dora") for sentence in summary(rows))
    rows[1] |= {"seconds_range": [121.0, 150.0]}
    assert any(sentence.startswith("dora (1.2×)") for sentence in summary(rows))
    rows[1] |= {"seconds": 105.0, "seconds_range": None}
    assert not any("dora" in sentence for sentence in summary(rows)[1:])


def test_times_under_unlike_conditions_are_not_compared() -> None:
    rows = three(difference(0, 1), difference(0, 1))
    for each in rows:
        each["conditions"] = "AMD EPYC, 2 threads"
    assert not any("Times compare" in sentence for sentence in summary(rows))
    rows[0]["conditions"] = "AMD EPYC, 2 threads, jointly"
    text = " ".join(summary(rows))
    assert "its time" not in text and "more time" not in text
    assert (
        "Times compare only within each of these groups: lora (AMD EPYC, 2 threads, jointly); "
        "dora and full (AMD EPYC, 2 threads)." in text
    )


def test_what_correction_alone_keeps_from_being_a_difference_is_neither_a_tie_nor_worse() -> None:
    text = " ".join(summary(three(undecided(-0.9, 0.8), undecided(1.2, 1)))[1:])
    assert "Of lora (−0.9 [−1.7, −0.1] points; p = 0.20 among all) it is undecided" in text
    assert "dora (1.2×) costs more time than lora and whether for anything is undecided." in text
    for word in ("within noise", "worse than full", "better than"):
        assert word not in text


def test_many_ties_are_counted_after_four() -> None:
    tied = against("against_full", "full", difference(0, 1))
    loras = [
        run(f"lora {i}", 0.93, difference(-1, 2), trainable=1000 + i, **tied) for i in range(9)
    ]
    _, first, second, *_ = summary([*loras, run("full", 0.94, None, **FULL)])
    assert first.startswith("lora 0 is within noise of full fine-tuning")
    assert second == "So are lora 1, lora 2, lora 3, lora 4 and 4 others."


def test_seeds_are_spoken_of() -> None:
    one = run("lora", 0.9, None)
    assert summary([one])[-1].startswith("Each method was trained once")
    assert summary([{**one, "seeds": 3}])[-1].startswith("Figures are means over 3 seeds")
    assert "as far as so few show it" in summary([{**one, "seeds": 4}])[-1]
    assert summary([{**one, "seeds": 5}])[-1].endswith("hold what seeds change.")
    assert "1 to 3 seeds" in summary([one, {**one, "seeds": 3}])[-1]
    assert summary([one, {**one, "seeds": 3}])[-1].endswith("of one seed hold the rows alone.")


def test_runs_that_never_came_up_to_the_frozen_features_are_told_to_begin_there() -> None:
    probe = row("frozen features", "baseline", 0.92, None, result_name="frozen_probe")

    def begun(before: float, points: float) -> list[str]:
        own = against("against_baseline", "frozen features", difference(points, 1))
        rows = [probe, *(run(name, 0.7, difference(-20, 1), before=before, **own) for name in "ab")]
        return [sentence for sentence in summary(rows) if "head_start" in sentence]

    (sentence,) = begun(0.014, -20)
    assert sentence.startswith("Frozen features is better than every run beyond noise")
    assert not begun(0.014, -0.5), "within noise of it"
    assert not begun(0.915, -20), "they began there"
    (override,) = re.findall(r"--set '(head=[^']*)'", sentence)
    recipe = read_recipe(RECIPES / "modules.yaml", [override])
    assert recipe.head == HeadConfig("auto", "probe")


def test_what_failed_or_was_not_trained_says_nothing() -> None:
    failed = failed_row("full", "all", "diverged at step 2: loss nan. Lower --lr.")
    assert summary([failed]) == [] == summary([])
    assert headline([]) == "Nothing was compared" and headline([failed]) == "Nothing is decided"
    baseline = row("TF-IDF", "baseline", 0.9, None)
    assert headline([baseline, run("lora", 0.7, difference(-20, 1))]) == "Use TF-IDF"
    assert all(re.match(r".*\.$", sentence) for sentence in summary(example()))


def rates(*known: tuple[str, str, float, int]) -> list[str]:
    """What is said of rows of these names, methods, learning rates and trials."""
    rows = [
        run(name, 0.9, None, result_name=method, learning_rate=rate, trials=trials,
            searched=["learning_rate"] if trials else [])
        for name, method, rate, trials in known
    ]  # fmt: skip
    return [sentence for sentence in summary(rows) if "rate" in sentence]


def test_it_says_whether_rates_were_tuned_shared_or_neither() -> None:
    assert rates(("full", "all", 2e-5, 8), ("lora", "lora", 1e-3, 6)) == [
        "Every row was trained at a learning rate of its own, the best of 6 to 8 trials on "
        "validation rows."
    ]
    (shared,) = rates(("full", "all", 2e-5, 0), ("lora", "lora", 2e-5, 0))
    assert shared.startswith("All rows were trained at the same learning rate, 2e-05. Each may")
    (differing,) = rates(("full", "all", 2e-5, 0), ("lora", "lora", 5e-4, 0))
    assert "rates that were not tuned on these texts" in differing
    (some,) = rates(("full", "all", 2e-5, 0), ("lora", "lora", 5e-4, 8))
    assert some.startswith("The learning rates of lora were tuned on validation rows; full was")
    # Rows of one method that adapt other modules, or other ranks, may suit other rates too.
    (shared,) = rates(("query", "lora", 5e-4, 0), ("all linear", "lora", 5e-4, 0))
    assert shared.startswith("All rows were trained at the same learning rate, 0.0005.")
    assert rates(("lr=1e-4", "lora", 1e-4, 0), ("lr=5e-4", "lora", 5e-4, 0)) == []
    assert rates(("lora", "lora", 5e-4, 0)) == []
