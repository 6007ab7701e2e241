"""The Accelerator of one run: device, precision, processes and trackers."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState

from deltafit.errors import UsageError
from deltafit.methods import Full, Method
from deltafit.training.settings import Precision

MixedPrecision = Literal["no", "bf16", "fp16"]


def processes() -> PartialState:
    """Return which of the run's processes this one is, joining the others if there are any."""
    return PartialState(cpu=_on_cpu())


def _on_cpu() -> bool:
    # Without being told, processes launched together on a CPU never find one another.
    return not torch.accelerator.is_available()


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of the device that is trained on."""
    if device.type == "cpu":
        # torch.manual_seed would note a traceback for every kind of device that is not there,
        # which takes longer than a step of a head.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def mixed_precision_of(precision: Precision, method: Method) -> MixedPrecision:
    """Return what Accelerate is to do for a run.

    On a CPU bf16 pays in the products with frozen weights, which `chosen_precision` sees to.
    """
    if precision == "auto" or precision == "float32":
        return "no"
    if precision == "bf16" and _on_cpu() and not isinstance(method, Full):
        return "no"
    return precision


@contextmanager
def started_accelerator(
    mixed_precision: MixedPrecision,
    folder: Path,
    trackers: tuple[str, ...],
    facts: Mapping[str, Any],
) -> Iterator[Accelerator]:
    """Give the run's Accelerator; its trackers are finished when the block ends, however it ends.

    Args:
        mixed_precision: of training; see ``mixed_precision_of``.
        folder: the run's folder; trackers write into ``logs`` in it.
        trackers: names that Accelerate knows.
        facts: nested settings, for the trackers.

    Raises:
        UsageError: the precision or a tracker cannot be used here.
    """
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("fp16 needs a CUDA device. Use --precision bf16 or float32.")
    # Accelerate keeps the first precision of a process for ever; runs in one process may differ.
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            cpu=_on_cpu(),
            mixed_precision=mixed_precision,
            log_with=list(trackers) or None,
            project_dir=folder / "logs",
            # Between processes, tensors that the head does not read would be waited for.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise UsageError(f"A tracker cannot be used: {error}") from error
    missing = [name for name in trackers if name not in map(str, accelerator.log_with)]
    if missing and "all" not in trackers:
        # Accelerate leaves out in silence what is not installed.
        raise UsageError(
            f"The tracker {missing[0]} is not installed. Install TensorBoard and W&B with "
            "pip install 'deltafit[trackers]', another with pip."
        )
    _start_trackers(accelerator, folder / "logs", facts)
    try:
        yield accelerator
        accelerator.wait_for_everyone()
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _start_trackers(accelerator: Accelerator, folder: Path, facts: Mapping[str, Any]) -> None:
    if not accelerator.log_with:
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        accelerator.init_trackers(
            "deltafit",
            config=flat(facts),
            # W&B would write into the working directory.
            init_kwargs={"wandb": {"dir": os.environ.get("WANDB_DIR", str(folder))}},
        )
    # Not logged in, no connection, no room: each tracker raises its own kinds.
    except Exception as error:
        names = ", ".join(map(str, accelerator.log_with))
        raise UsageError(f"The tracker {names} cannot be used: {error}") from error


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names, with the plain values that trackers take."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value if isinstance(value, int | float | str) else str(value)
    return result
