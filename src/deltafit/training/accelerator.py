"""The Accelerator of one run: device, precision and processes."""

from typing import Literal

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


def make_accelerator(mixed_precision: MixedPrecision) -> Accelerator:
    """Return a run's Accelerator.

    Args:
        mixed_precision: of training; see ``mixed_precision_of``.

    Raises:
        UsageError: the precision cannot be used here.
    """
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("fp16 needs a CUDA device. Use --precision bf16 or float32.")
    # Accelerate keeps the first precision of a process for ever; runs in one process may differ.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=_on_cpu(),
        mixed_precision=mixed_precision,
        # Between processes, tensors that the head does not read would be waited for.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
