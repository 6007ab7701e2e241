"""A sweep's questions are answered from planted effects, and left open where nothing tells."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from deltafit.adapters.movement import MatrixChange
from deltafit.experiments.arms import Arm
from deltafit.experiments.factors import Tried, factors
from deltafit.experiments.page_parts import Section
from deltafit.experiments.questions import questions_section
from deltafit.experiments.together import Together
from deltafit.methods import DoRA, Full, Head, LastBlocks, LoRA, Method
from deltafit.training.settings import TrainingSettings
from tests.experiments.rows import run

ROWS = 600
EASE = np.random.default_rng(0).normal(1.6, 0.7, size=ROWS)
SETTINGS = TrainingSettings(learning_rate=1e-3)


def tried(
    method: Method,
    shift: float = 0.0,
    seeds: int = 1,
    arm: dict[str, Any] | None = None,
    **known: Any,
) -> Tried:
    """A row whose answers are right where a text is easy; ``shift`` makes all of them easier."""
    noise = np.random.default_rng([*str(method).encode(), seeds])
    correct = EASE + shift + noise.normal(0, 0.6, size=(seeds, ROWS)) > 0
    figures: dict[str, Any] = {
        **{"result_name": method.result_name, "settings": method.to_dict()},
        **{"trainable": getattr(method, "rank", 4000) * 1000, "validation": 0.9 + shift},
        **{"training": 0.99, "seeds": seeds, "failed_seeds": 0},
    }
    row = run(str(method), float(correct.mean()), None, **(figures | known))
    return Tried(Arm(str(method), method, **{"settings": SETTINGS, **(arm or {})}), row, correct)


def grid(shift_of: dict[int, float], alphas: Sequence[float] = (4, 8, 16, 32)) -> list[Tried]:
    return [
        tried(LoRA("all-linear", rank=rank, alpha=alpha, scaling="alpha"), shift)
        for (rank, shift), alpha in product(shift_of.items(), alphas)
    ]


def captions(sections: Sequence[Section]) -> list[str]:
    return [part.caption for section in sections for part in section.parts]


def test_a_rank_is_the_mean_over_its_alphas_and_judged_so() -> None:
    rows = grid({4: -0.3, 8: 0.0, 16: 0.05, 32: 0.0})
    (rank,) = factors(rows, "rank")
    assert [level.value for level in rank.levels] == [4, 8, 16, 32]
    assert dict(rank.over) == {"alpha": (4, 8, 16, 32)} and rank.left_out == 0
    by_hand = {
        r: np.mean([each.correct for each in rows if each.arm.method.rank == r], axis=(0, 1))  # type: ignore[attr-defined]
        for r in (4, 8, 16, 32)
    }
    best = max(by_hand, key=lambda r: by_hand[r].mean())
    others = [level for level in rank.levels if level.to_best]
    assert rank.best.value == best and len(others) == 3
    for level in others:
        difference = by_hand[level.value] - by_hand[best]
        assert level.to_best is not None
        assert level.to_best.difference == pytest.approx(difference.mean())
        error = difference.std() / ROWS**0.5  # of the mean of paired differences
        assert level.to_best.high - level.to_best.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    together = Together([np.stack([m.correct for m in level.members]) for level in rank.levels])
    place = [level.value for level in rank.levels].index(best)
    for index, level in enumerate(rank.levels):
        if level.to_best is not None:
            assert level.to_best == together.compare(index, place)


def test_the_smallest_rank_within_noise_is_enough_and_says_how_much_less_it_may_be() -> None:
    rows = grid({4: -0.4, 8: 0.0, 16: 0.02, 32: 0.02})
    (rank,) = factors(rows, "rank")
    standing = {level.value: level.to_best for level in rank.levels}
    assert standing[4] is not None and standing[4].beyond_noise  # as planted
    (section,) = questions_section(rows, {})
    said = next(text for text in captions([section]) if text.startswith("Which rank is enough?"))
    assert "Of lora, on average over α 4, 8, 16 and 32, rank 8 " in said
    assert "Worse beyond noise: rank 4 (−" in said
    if standing[8] is not None:
        assert f"at most {-100 * standing[8].low:.1f} points (95 %) less, with 8.0 k" in said
    assert "A lower one was not tried" not in said
    (table,) = [
        part.table for part in section.parts if part.table and part.table.headers[0] == "rank"
    ]
    assert json.loads(json.dumps(table.records)) == [
        {
            "setting": "rank",
            "value": str(level.value),
            "rows": [member.row["name"] for member in level.members],
            "trainable": 1000 * level.value,
            "accuracy": pytest.approx(np.mean([m.correct.mean() for m in level.members])),
            "training": 0.99,
            "difference": None if level.to_best is None else vars(level.to_best),
        }
        for level in rank.levels
    ]


def test_ranks_that_all_tie_are_not_ordered() -> None:
    (section,) = questions_section(grid(dict.fromkeys((4, 8, 16, 32), 0.0)), {})
    (said,) = [text for text in captions([section]) if text.startswith("Which rank is enough?")]
    assert "rank 4" in said and "eyond noise" not in said
    assert "A lower one was not tried." in said
    assert "trained once, so what another seed would change" in section.text


def test_alpha_is_the_mean_over_ranks_and_its_scale_and_gap_are_told() -> None:
    rows = [
        tried(
            LoRA("all-linear", rank=rank, alpha=alpha, scaling="alpha"), -0.5 * (alpha == 32),
            training=1.0 if alpha == 32 else None,
        )
        for rank, alpha in product((4, 8), (8, 32))
    ]  # fmt: skip
    (section,) = questions_section(rows, {})
    (alpha,) = [part for part in section.parts if part.caption.startswith("What does α do?")]
    assert "over rank 4 and 8, α = 8 does best" in alpha.caption
    assert "Worse beyond noise: α = 32 (−" in alpha.caption
    assert alpha.caption.endswith(" ΔW is s·B·A with s = alpha, from 8 to 32 here.")
    assert alpha.table is not None and alpha.table.headers[-1] == "training − judged rows"
    gap = 100 * (1 - np.mean([each.correct for each in rows if each.arm.method.alpha == 32]))  # type: ignore[attr-defined]
    assert [line[-1] for line in alpha.table.rows] == ["–", f"+{gap:.1f}"]


def test_all_the_last_block_and_the_head_are_held_to_the_low_rank_row_of_validation() -> None:
    rows = [
        tried(LoRA(rank=4), 0.0, validation=0.95),
        tried(LoRA(rank=8), 0.1, validation=0.90),  # better on the judged rows, which do not choose
        tried(Full(), 0.0, trainable=22_000_000),
        tried(LastBlocks(), -0.02, trainable=1_800_000),
        tried(Head(), -0.9, trainable=800),
    ]
    (section,) = questions_section(rows, {})
    (part,) = [part for part in section.parts if "all, the last block or the head" in part.caption]
    assert part.table is not None
    assert [line[0] for line in part.table.rows] == ["lora:rank=4", "full", "last-block", "head"]
    assert (
        "lora:rank=4 was chosen of the 2 rows with a ΔW by its validation figure." in part.caption
    )
    assert "Worse beyond noise: head (−" in part.caption and "points; 800 trained)." in part.caption
    without = [replace(each, row={**each.row, "validation": None}) for each in rows]
    (section,) = questions_section(without, {})
    assert "by the judged rows, which flatters it" in " ".join(captions([section]))


def test_matrices_are_compared_under_one_budget_and_said_if_it_is_not_one() -> None:
    arms = [("query", 24, -0.3), (("query", "value"), 12, 0.0), ("all-linear", 4, 0.1)]
    rows = [
        tried(LoRA((t,) if t == "query" else t, rank=r), shift, trainable=80_000 + r)  # type: ignore[arg-type]
        for t, r, shift in arms
    ]
    said = captions(questions_section(rows, {}))[0]
    assert said.startswith(
        "Which matrices, under a budget of parameters? All train about 80.0 k parameters. Of lora, "
    )
    assert "Worse beyond noise: adapting query (−" in said
    rows[0].row["trainable"] = 10_000  # type: ignore[index]
    assert "and not one budget: a difference may be" in captions(questions_section(rows, {}))[0]


def test_what_rows_do_not_tell_is_said_with_what_would() -> None:
    rows = grid({4: 0.0, 8: 0.0})
    moved = [
        MatrixChange(f"encoder.layer.{i}.{name}", (8, 8), norm, 1.0, 2.0)
        for i in range(2)
        for name, norm in (("query", 3.0), ("value", 1.0))
    ]
    best = max(rows, key=lambda each: each.row["validation"]).row["name"]
    first, second, *_ = captions(questions_section(rows, {best: moved}))
    assert "do not say: all adapt all linear layers." in first and "recipes/modules.yaml" in first
    assert f"Of ‖ΔW‖² in {best}, query has 90 % and value has 10 %" in first  # 9 to 1
    assert second.startswith("Which layers? These rows do not say")
    pair = [tried(LoRA(rank=8)), tried(Full(), trainable=22_000_000)]
    assert "Which rank is enough? These rows do not say: all have rank 8." in " ".join(
        captions(questions_section(pair, {}))
    )


def test_blocks_and_scalings_are_factors_too() -> None:
    rows = [tried(LoRA(layers=layers), s) for layers, s in ((None, 0.0), ((0, 1), -0.6))]
    said = " ".join(captions(questions_section(rows, {})))
    assert "Which layers? Of lora, adapting all blocks does best" in said
    assert "Worse beyond noise: adapting blocks 0 and 1 (−" in said
    rows = [tried(LoRA(scaling=scaling)) for scaling in ("alpha", "alpha/r")]  # type: ignore[arg-type]
    assert "Which scaling?" in " ".join(captions(questions_section(rows, {})))


def test_rows_count_as_counterparts_only_if_nothing_else_differs() -> None:
    other = {"settings": replace(SETTINGS, learning_rate=1e-4)}
    assert factors([tried(LoRA(rank=4)), tried(LoRA(rank=8), arm=other)], "rank") == []
    searched = {**other, "searched": ("learning_rate",)}
    own = {"searched": ("learning_rate",)}
    pair = [tried(LoRA(rank=4), arm=own), tried(LoRA(rank=8), arm=searched)]
    assert len(factors(pair, "rank")) == 1  # each at the rate that a search found for it
    assert factors([replace(each, arm=replace(each.arm, searched=("rank",))) for each in pair],
                   "rank") == []  # fmt: skip
    kept = [tried(LoRA(rank=r, alpha=2 * r)) for r in (4, 8)]
    assert len(factors(kept, "rank")) == 1 and factors(kept, "alpha") == []  # α/r is kept
    both = factors([*pair, tried(DoRA(rank=4)), tried(DoRA(rank=8))], "rank")
    assert [len(each.levels) for each in both] == [2, 2]


def test_rows_without_counterpart_have_no_part_and_are_counted() -> None:
    rows = grid({4: 0.0, 8: 0.0})
    rows = [each for each in rows if str(each.arm.method) != str(rows[0].arm.method)]
    (rank,) = factors(rows, "rank")
    assert [len(level.members) for level in rank.levels] == [3, 3] and rank.left_out == 1
    assert "1 row has no counterpart" in " ".join(captions(questions_section(rows, {})))
    rows[-1].row["failed_seeds"] = 1  # type: ignore[index]
    assert [len(level.members) for level in factors(rows, "rank")[0].levels] == [2, 2]


def test_where_nothing_differs_nothing_is_asked() -> None:
    assert questions_section([tried(LoRA())], {}) == questions_section([], {}) == []
    assert questions_section([tried(Full()), tried(Head())], {}) == []
