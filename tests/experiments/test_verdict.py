"""The verdict says what the figures say, and decides nothing that they do not."""

import re

import pytest

from deltafit.experiments.rows import failed_row
from deltafit.experiments.statistics import smallest_visible_difference
from deltafit.experiments.verdict import advised, alternative, verdict
from tests.experiments.rows import against, between, difference, example, row, run, undecided


def test_the_cheapest_of_a_tie_is_advised_and_the_tie_is_named() -> None:
    text = verdict(example())
    assert text.startswith("Ship lora rank=8 alpha=16 targets=query,value (93.4 % accuracy")
    assert "within noise of the best, lora rank=16 alpha=32 targets=all-linear (93.8 %" in text
    assert (
        "(93.8 % accuracy; the 95 % interval of their difference, −0.4 [−1.0, +0.2] points, "
        "includes 0), and it trains the fewest parameters of those tied. It gets at most 1.0 "
        "points (95 %) less than the best. " in text
    )
    cheap = "the best cheap baseline, frozen features + logistic regression,"
    # Of the advised: that the best beats the baseline says nothing of it.
    assert text.endswith(
        f"lora rank=8 alpha=16 targets=query,value does not beat {cheap} beyond noise "
        "(+0.4 [−0.3, +1.1] points)."
    )


def test_a_tie_that_may_cost_much_names_what_costs_nothing() -> None:
    rows = [
        run("small", 0.94, difference(-1.4, 1.7), trainable=1_000),
        run("big", 0.954, None, trainable=1_000_000),
    ]
    assert advised(rows) is rows[0] and alternative(rows) is rows[1]
    assert verdict(rows).endswith(
        "It gets at most 3.1 points (95 %) less than the best: where that matters, big is safer, "
        "and more rows would tell."
    )
    near = [run("small", 0.95, difference(-0.4, 1.5), trainable=1_000), rows[1]]
    assert advised(near) is near[0] and alternative(near) is None
    assert verdict(near).endswith("It gets at most 1.9 points (95 %) less than the best.")
    assert alternative(rows[1:]) is None and alternative([]) is None


def test_fewer_trained_parameters_decide_where_no_size_is_known() -> None:
    rows = [
        run("big", 0.95, None, trainable=1_000_000, saved_bytes=None),
        run("small", 0.94, difference(-1, 1.5), trainable=1_000, saved_bytes=None),
    ]
    assert verdict(rows).startswith("Ship small (94.0 % accuracy, one seed, 1.0 k trained")


def test_a_baseline_in_the_tie_is_said_to_suffice() -> None:
    rows = [
        row("TF-IDF + linear SVM", "baseline", 0.96, difference(-1, 1.5)),
        run("lora", 0.97, None, **against("TF-IDF + linear SVM", 1, 1.5)),
    ]
    text = verdict(rows)
    assert text.startswith("Use TF-IDF + linear SVM (96.0 % accuracy): within noise of the best")
    # It is the best cheap baseline itself, so its result is not said again.
    assert text.endswith(
        "No adapter beats the cheap baselines beyond noise: lora against TF-IDF + linear SVM: "
        "within noise (+1.0 [−0.5, +2.5] points)."
    )


def test_a_baseline_that_wins_is_said_to_win() -> None:
    rows = [
        row("frozen", "baseline", 0.93, None),
        run("lora", 0.88, difference(-5, 1), **against("frozen", -5, 1)),
    ]
    text = verdict(rows)
    assert text == (
        "Use frozen (93.0 % accuracy): it is better than every other method beyond noise "
        "(p < 0.05). No adapter beats the cheap baselines beyond noise."
    )


def test_another_baseline_than_the_advised_is_named_with_its_result() -> None:
    rows = [
        row("TF-IDF", "baseline", 0.92, difference(-1, 1.5), seconds=1.0),
        row("frozen", "baseline", 0.93, None, seconds=9.0),
        run("lora", 0.88, difference(-5, 1), **against("frozen", -5, 1)),
    ]
    text = verdict(rows)
    assert text.startswith("Use TF-IDF (92.0 % accuracy): within noise of the best, frozen")
    assert text.endswith("beyond noise: frozen reaches 93.0 % accuracy without one.")


def test_the_best_is_spoken_of_where_a_baseline_is_advised() -> None:
    rows = [
        row("TF-IDF", "baseline", 0.93, difference(-0.5, 0.6)),
        run("head", 0.934, difference(-0.1, 0.1), **against("TF-IDF", 0.4, 0.2)),
        run("full", 0.935, None, **against("TF-IDF", 0.5, 0.6)),
    ]
    text = verdict(rows)
    assert text.startswith("Use TF-IDF (93.0 % accuracy): within noise of the best, full")
    # The head beats TF-IDF; what is said is how the best does.
    cheap = "the best cheap baseline, TF-IDF,"
    assert text.endswith(f"full does not beat {cheap} beyond noise (+0.5 [−0.1, +1.1] points).")


def test_a_clear_winner_a_best_and_cheapest_and_a_lone_method() -> None:
    clear = [run("lora", 0.95, None), run("head", 0.9, difference(-5, 1))]
    assert "better than every other method beyond noise" in verdict(clear)
    cheapest = [run("lora", 0.95, None), run("full", 0.94, difference(-1, 2), trainable=10**8)]
    assert "full is within noise of it" in verdict(cheapest)
    assert "nothing else was compared" in verdict([run("lora", 0.95, None)])
    assert verdict([]) == "Nothing was compared."


def test_too_few_rows_to_leave_the_majority_class_behind_decide_nothing() -> None:
    rows = [
        row("majority class", "baseline", 0.5, between(-37.5, -81.2, 1.9), count=8),
        row("TF-IDF + linear SVM", "baseline", 0.75, difference(-12.5, 40), count=8),
        run("lora", 0.875, None, count=8, **against("TF-IDF + linear SVM", 12.5, 40)),
    ]
    assert smallest_visible_difference(8) == 0.5
    assert verdict(rows) == (
        "8 rows are too few to decide: the best, lora (87.5 % accuracy), is within noise of the "
        "majority class (50.0 % accuracy, a difference of −37.5 [−81.2, +1.9] points). They "
        "cannot show a difference under 50 points at all. Judge on more rows; if the tie "
        "stays, nothing was learned."
    )


def test_a_majority_class_that_is_the_best_itself_is_not_advised() -> None:
    tied = [
        row("majority class", "baseline", 0.5, None, count=2),
        run("lora", 0.5, difference(0, 40), count=2, **against("majority class", 0, 40)),
    ]
    assert verdict(tied) == (
        "2 rows are too few to decide: nothing got more of them right than the majority class "
        "(50.0 % accuracy). They cannot show any difference at all. Judge on more rows; if the "
        "tie stays, nothing was learned."
    )
    tied[0]["count"] = 1
    assert verdict(tied).startswith("1 row is too few to decide: ")
    worse = [
        row("majority class", "baseline", 0.9, None),
        run("lora", 0.5, difference(-40, 2), **against("majority class", -40, 2)),
    ]
    assert verdict(worse) == (
        "Ship none of them: always answering the majority class (90.0 % accuracy) is better than "
        "every other method beyond noise."
    )


def test_a_majority_class_far_behind_leaves_the_tie_of_the_others_alone() -> None:
    rows = [
        row("majority class", "baseline", 0.5, difference(-44, 20), count=60),
        row("TF-IDF", "baseline", 0.93, difference(-1, 5), count=60),
        run("lora", 0.94, None, count=60, **against("TF-IDF", 1, 5)),
    ]
    assert verdict(rows).startswith("Use TF-IDF (93.0 % accuracy): within noise of the best, lora")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("diverged at step 40: loss nan. Lower --lr.", "full diverged at step 40 and is"),
        ("ran out of memory. Lower --batch-size.", "full ran out of memory and is"),
        ("diverged at a rate of 0.5", "full diverged at a rate of 0.5 and is"),
    ],
)
def test_what_failed_is_named_and_neither_advised_nor_compared(failure: str, said: str) -> None:
    failed = failed_row("full", "all", failure)
    alone = [failed, run("lora", 0.95, None)]
    assert verdict(alone).startswith("Ship lora (95.0 % accuracy, ")
    assert verdict(alone).endswith(f": nothing else was compared with it. {said} not judged.")
    assert verdict([failed, *example()]) == f"{verdict(example())} {said} not judged."


def test_rows_that_failed_alike_are_named_together() -> None:
    failed = [failed_row(f"lr={i}", "lora", f"diverged at step 2: loss {i}.") for i in range(6)]
    assert verdict([*failed, run("lora", 0.95, None)]).endswith(
        " lr=0, lr=1, lr=2, lr=3 and 2 others diverged at step 2 and are not judged."
    )


def test_what_only_correction_keeps_from_being_worse_is_not_shipped_for_being_cheap() -> None:
    rows = [
        run("r=4", 0.91, undecided(-4.7, 3.8), trainable=1000),
        run("r=8", 0.95, difference(-0.7, 1.5), trainable=2000),
        run("full", 0.957, None, trainable=90_000_000),
    ]
    assert advised(rows) is rows[1]
    text = verdict(rows)
    assert text.startswith("Ship r=8 (95.0 % accuracy, one seed, ") and "at most 2.2 points" in text
    # Without a tie the best is shipped, and no win over what is undecided is claimed.
    text = verdict([rows[0], rows[2]])
    assert text.startswith("Ship full (") and "nothing else is within noise of it." in text
    assert "better than every" not in text


def test_a_win_over_baselines_has_to_stand_correction_too() -> None:
    open_one = {"against_baseline": {"name": "TF-IDF", **undecided(2, 1.8)}}
    rows = [
        row("TF-IDF", "baseline", 0.93, undecided(-2, 1.8)),
        run("lora", 0.95, None, **open_one),
    ]
    text = verdict(rows)
    assert text.startswith("Ship lora (") and "beats the best" not in text
    assert "No adapter beats the cheap baselines beyond noise: TF-IDF reaches 93.0 %" in text
    assert text.endswith("lora against TF-IDF: undecided (+2.0 [+0.2, +3.8] points).")


def test_a_majority_class_that_is_not_beaten_beyond_noise_decides_nothing() -> None:
    rows = [
        row("majority class", "baseline", 0.9, undecided(-2, 1.8), result_name="majority"),
        run("lora", 0.92, None),
    ]
    assert advised(rows) is None
    assert "lora (92.0 % accuracy), is not beyond noise better than the majority" in verdict(rows)
    rows[0]["difference"] = difference(-2, 1.8)
    assert advised(rows) is rows[1]


def test_of_equal_sizes_validation_decides_and_neither_bytes_nor_seconds_do() -> None:
    """A folder is some bytes smaller where a figure in it has fewer digits."""
    tied = [
        run("α=4", 0.94, difference(-1, 2), saved_bytes=444_136, seconds=10.0, validation=0.91),
        run("α=8", 0.95, None, saved_bytes=444_150, seconds=99.0, validation=0.93),
        run("α=16", 0.945, difference(-0.5, 2), saved_bytes=444_150, validation=0.95),
    ]
    full = run("full", 0.94, difference(-1, 2), trainable=10**8, validation=0.99)
    text = verdict([*tied, full])
    assert text.startswith("Ship α=16")
    assert "and of the 3 of those tied that train the fewest parameters it does best on the" in text
    untold = [each | {"validation": None} for each in (tied[0], tied[2], tied[1])]
    assert advised(untold) is untold[2], "the best"
    worse = [*untold[:2], run("full", 0.96, None, trainable=10**8)]
    assert verdict(worse).startswith("Ship α=4") and "it came first" in verdict(worse)


def test_of_many_rows_three_sentences_are_said() -> None:
    """The others are counted in the summary."""
    tied = [run(f"r={i}", 0.94, difference(-1, 2), trainable=2000 + i) for i in range(15)]
    others = [run(f"a={i}", 0.9, undecided(-5, 4.5)) for i in range(4)]
    cheap = row("TF-IDF", "baseline", 0.9, difference(-5, 1))
    best = run("full", 0.95, None, trainable=10**8)
    runs = [each | against("TF-IDF", 3, 1) for each in [*tied, *others, best]]
    text = verdict([cheap, *runs])
    assert len(re.findall(r"\.(?: |$)", text)) == 3 and len(text) < 500
    text = verdict([*tied[:5], run("r=32", 0.95, None, trainable=1000)])
    assert "the best and the cheapest of a tie; 5 others are within noise of it (" in text


def test_one_seed_is_said_where_the_advice_is_and_several_are_not() -> None:
    for seeds, said in ((1, True), (3, False)):
        rows = [
            run("lora", 0.95, None, seeds=seeds),
            run("head", 0.9, difference(-5, 1), seeds=seeds),
        ]
        text = verdict(rows)
        assert ("one seed" in text.split(":")[0]) is said
