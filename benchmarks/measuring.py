"""What one side of a work is measured by, and what the machine is that it ran on."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as TimedOut
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

from works import WARM_UP

Result = TypeVar("Result")


@dataclass
class Training:
    """One side's training, as it went.

    Attributes:
        moments: when each step ended, in seconds of one clock.
        tokens: real tokens of each step, padding apart.
        losses: of each step.
        precision: of the matrix products.
        accuracy: on held-out rows.
        peak: the process's largest memory until the last step, in bytes.
        ahead: seconds spent before the first step: checks, and what is computed once.
        replaces_work: whether that is work that the steps are spared, and so part of their time.
        roofline: seconds of the base's matrix products alone for the timed steps; None where it
            was not measured.
    """

    moments: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    precision: str = "float32"
    accuracy: float = 0.0
    peak: int = 0
    ahead: float = 0.0
    replaces_work: bool = False
    roofline: float | None = None

    def record(self, floor: int) -> dict[str, Any]:
        """Return what is kept of it as JSON values; the warm-up steps are left out.

        Args:
            floor: the process's memory before, in bytes.
        """
        seconds = self.moments[-1] - self.moments[WARM_UP - 1]
        return record_of(
            seconds + (self.ahead if self.replaces_work else 0.0),
            sum(self.tokens[WARM_UP : len(self.moments)]), self.peak, floor,
            losses=self.losses, accuracy=self.accuracy, roofline=self.roofline,
            precision=self.precision,
        ) | {"ahead": self.ahead}  # fmt: skip


class Stopwatch:
    """Times the block of a ``with``.

    Attributes:
        seconds: that it took.
    """

    def __init__(self) -> None:
        self.seconds, self._began = 0.0, 0.0

    def __enter__(self) -> "Stopwatch":
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._began


def record_of(
    seconds: float,
    tokens: int,
    peak: int,
    floor: int,
    *,
    losses: Sequence[float] = (),
    accuracy: float | None = None,
    roofline: float | None = None,
    precision: str = "float32",
) -> dict[str, Any]:
    """Return what is kept of a side, as JSON values.

    Args:
        seconds: of the timed steps or texts.
        tokens: what a ratio is taken by: real tokens, or texts.
        peak: the process's largest memory, in bytes.
        floor: its memory before.
        losses: of each step; none where nothing is trained.
        accuracy: None where the adapters were never trained.
        roofline: seconds of the base's matrix products alone.
        precision: of the matrix products.
    """
    return {
        "seconds": seconds,
        "tokens": tokens,
        "losses": list(losses),
        "accuracy": accuracy,
        "precision": precision,
        "memory_above_floor": peak - floor,
        "peak_memory": peak,
        "roofline_seconds": roofline,
    }


def memory() -> int:
    """Return the process's largest resident memory so far, in bytes."""
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_another_process(
    function: Callable[..., Result], *arguments: Any, limit: float | None = None
) -> Result:
    """Call a function where the memory it needs is not counted as this process's.

    Args:
        function: what to call.
        arguments: of it.
        limit: seconds after which it is stopped; None for as long as it takes.

    Raises:
        TimeoutError: it was stopped.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(function, *arguments)
        try:
            return future.result(limit)
        except TimedOut as error:  # Python 3.10's is not the builtin
            for process in multiprocessing.active_children():
                process.kill()
            raise TimeoutError(f"It took longer than {limit} seconds.") from error


def has_bf16_units() -> bool:
    """Return whether the CPU multiplies bf16 by itself.

    oneDNN's own answer (``_is_mkldnn_bf16_supported``) is true on any AVX-512, where it emulates.
    """
    import torch

    return any("bf16" in name and there for name, there in torch.cpu.get_capabilities().items())


def machine(threads: int) -> dict[str, Any]:
    """Return what the times depend on, as JSON values."""
    import torch

    from deltafit.prediction.folder import versions

    return {
        "threads": threads,
        "processor": torch.cpu.get_capabilities()["cpu_name"],
        "bf16_units": has_bf16_units(),
        "versions": versions() | {name: version(name) for name in ("peft", "loralib")},
    }
