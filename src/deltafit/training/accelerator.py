"""The Accelerator of one run: device, precision and processes."""

import os
from datetime import timedelta
from typing import Literal

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast

from deltafit.errors import UsageError
from deltafit.methods import Full, Method
from deltafit.training.settings import Precision

MixedPrecision = Literal["no", "bf16", "fp16"]
# What one process does for all, or waits for, may take hours; one that ends is noticed at once.
_LONGEST_WAIT = timedelta(days=30)


def processes() -> PartialState:
    """Return which of the run's processes this one is, joining the others if there are any.

    Raises:
        UsageError: several were asked for, and one was started.
    """
    state = PartialState(cpu=_on_cpu(), timeout=_LONGEST_WAIT)
    if state.num_processes == 1 and _launched_for_several():
        raise UsageError(
            "accelerate launch started one process, whatever --num_processes says: without GPUs it "
            "leaves the others to mpirun. Give it --multi_gpu in place of --cpu, which starts "
            "processes on CPUs too."
        )
    return state


def _launched_for_several() -> bool:
    """Return whether Accelerate's launcher began this process and was asked for several.

    Then it gave the process a port to meet at. One that the launcher has itself says nothing: jobs
    of clusters have it in their environment.
    """
    port = os.environ.get("MASTER_PORT")
    if port is None or "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return False
    try:
        of_launcher = psutil.Process(os.getppid()).environ().get("MASTER_PORT")
    except (psutil.Error, OSError):
        return False
    return bool(of_launcher != port)


def agreed(answer: bool) -> bool:
    """Return the main process's answer; all processes of a run have to ask, in the same order."""
    process = processes()
    if process.num_processes == 1:
        return answer
    return bool(broadcast(torch.tensor(float(answer), device=process.device)))


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
