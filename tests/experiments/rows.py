"""Rows of a comparison for the tests of tables, report and plots."""

from typing import Any


def difference(points: float, half: float) -> dict[str, Any]:
    return between(points, points - half, points + half)


def between(points: float, low: float, high: float) -> dict[str, Any]:
    within = low <= 0 <= high
    p_value = 0.5 if within else 0.001
    return {
        **{"difference": points / 100, "low": low / 100, "high": high / 100},
        **{"p_value": p_value, "adjusted_p_value": p_value},
        **{"within_noise": within, "beyond_noise": not within},
    }


def undecided(points: float, half: float) -> dict[str, Any]:
    """A difference that stands alone, and not after correction."""
    return difference(points, half) | {
        **{"p_value": 0.016, "adjusted_p_value": 0.2, "beyond_noise": False}
    }


def against(name: str, points: float, half: float) -> dict[str, Any]:
    return {"against_baseline": {"name": name, **difference(points, half)}}


def row(
    name: str, kind: str, after: float, compared: dict[str, Any] | None, **known: object
) -> dict[str, Any]:
    unknown = ("trainable", "total", "before", "seconds", "examples_per_second")
    return {
        **dict.fromkeys((*unknown, "peak_memory_bytes", "saved_bytes")),
        **{
            "name": name,
            "kind": kind,
            "result_name": name.split(maxsplit=1)[0],
            "metric_name": "accuracy",
        },
        **{"after": after, "interval": [after - 0.009, after + 0.008], "macro_f1": after - 0.01},
        **{"difference": compared, "against_baseline": None, "seeds": 1, "count": 3080},
        **{"notes": [], "failure": None},
        **known,
    }


def run(
    name: str, after: float, compared: dict[str, Any] | None, **known: object
) -> dict[str, Any]:
    costs = {
        **{"before": 0.0123, "seconds": 1210.0, "examples_per_second": 131.4},
        **{"trainable": 103_373, "total": 22_742_861},
        **{"peak_memory_bytes": 1_612_000_000, "saved_bytes": 412_000},
    }
    return row(name, "run", after, compared, **(costs | known))


def example() -> list[dict[str, Any]]:
    frozen = "frozen features + logistic regression"
    return [
        row("majority class", "baseline", 0.013, difference(-92.5, 0.9), interval=[0.009, 0.017]),
        row("TF-IDF + linear SVM", "baseline", 0.894, difference(-4.4, 1.1), seconds=1.7),
        row(frozen, "baseline", 0.93, difference(-0.8, 0.6)),
        run(
            *("head (probe init)", 0.929, difference(-0.9, 0.6)),
            **{"trainable": 29_645, **against(frozen, -0.1, 0.6)},
        ),
        run(
            *("lora rank=8 alpha=16 targets=query,value", 0.934, difference(-0.4, 0.6)),
            **against(frozen, 0.4, 0.7),
        ),
        run(
            *("lora rank=16 alpha=32 targets=all-linear", 0.938, None),
            **{"trainable": 703_000, "saved_bytes": 2_812_000, "seeds": 3},
            **against(frozen, 0.8, 0.6),
        ),
        run(
            *("full", 0.936, difference(-0.2, 0.7)),
            **{"trainable": 22_742_861, "saved_bytes": 90_971_444, "seconds": 4810.0},
            **against(frozen, 0.6, 0.5),
            notes=["learning rate [2e-5] chosen on validation"],
        ),
    ]
