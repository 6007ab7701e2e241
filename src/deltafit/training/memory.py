"""Memory of the process: its peak while something runs, and what finished work has left in it."""

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_INTERVAL = 0.02  # seconds between two looks where the system keeps no resettable peak


@dataclass
class PeakMemory:
    """Bytes, filled in when the block ends.

    Attributes:
        process: highest resident size of the process.
        gpu: highest size allocated on the GPU; 0 without one.
    """

    process: int = 0
    gpu: int = 0

    def without(self, others_bytes: int) -> "PeakMemory":
        """Return the peak of a process that had not kept so many bytes for others all along."""
        return PeakMemory(max(0, self.process - others_bytes), self.gpu)


@contextmanager
def measured_memory() -> Iterator[PeakMemory]:
    """Measure the peak within the block: the kernel's own figure on Linux, else by sampling."""
    peak = PeakMemory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with _sampled(peak) if not _reset_kernel_peak() else _read_after(peak):
        yield peak
    if torch.cuda.is_available():
        peak.gpu = torch.cuda.max_memory_allocated()


def give_back_memory() -> None:
    """Let go of what finished work has left, so that it counts as memory of nothing that follows.

    A finished run lives on in reference cycles; and what they free glibc keeps for the process, a
    gigabyte after the full fine-tuning of a model of 90 MB.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
        if trim is not None:
            trim(0)


def _reset_kernel_peak() -> bool:
    try:
        _CLEAR.write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return False
    return True


@contextmanager
def _read_after(peak: PeakMemory) -> Iterator[None]:
    try:
        yield
    finally:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        peak.process = int(line.split()[1]) * 1024


@contextmanager
def _sampled(peak: PeakMemory) -> Iterator[None]:
    process, stop = psutil.Process(), threading.Event()

    def watch() -> None:
        while not stop.wait(_INTERVAL):
            peak.process = max(peak.process, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        peak.process = max(peak.process, process.memory_info().rss)
