"""What finished work leaves in a process counts as memory of nothing that follows."""

import sys

import psutil
import pytest
import torch

from deltafit.training.memory import give_back_memory

_VALUES, _COUNT = 16_000, 4_000  # tensors too small for pages of their own: 256 MB of heap


@pytest.mark.skipif(sys.platform != "linux", reason="what is freed goes back by itself elsewhere")
def test_memory_that_the_heap_holds_below_a_living_tensor_is_given_back() -> None:
    process = psutil.Process()
    give_back_memory()
    before = process.memory_info().rss
    tensors = [torch.ones(_VALUES) for _ in range(_COUNT)]
    held = process.memory_info().rss
    assert held - before > 0.9 * 4 * _VALUES * _COUNT
    last = tensors.pop()  # above all others, so that the heap does not shrink by itself
    tensors.clear()
    give_back_memory()
    assert process.memory_info().rss - before < 0.2 * (held - before)
    assert last.sum() == _VALUES


def test_what_lives_on_in_a_cycle_is_let_go() -> None:
    class Run:
        def __init__(self) -> None:
            self.itself = self
            gone.append(False)

        def __del__(self) -> None:
            gone[0] = True

    gone: list[bool] = []
    Run()
    give_back_memory()
    assert gone == [True]
