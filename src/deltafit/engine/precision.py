"""What is faster in bf16 on this machine, frozen products and attention: measured, remembered."""

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import platformdirs
import torch
from torch import Tensor, nn
from torch.nn import functional

from deltafit.engine.attention import packed_attention
from deltafit.engine.frozen import reduced_product
from deltafit.engine.layout import layout_of
from deltafit.engine.processor import processor_key
from deltafit.errors import DeltafitError
from deltafit.files import read_json, write_json_atomically

ProductPrecision = Literal["float32", "bf16"]


class AttentionShape(NamedTuple):
    """What the time of attention depends on.

    Attributes:
        heads: of queries.
        width: of one.
        length: tokens of a row.
    """

    heads: int
    width: int
    length: int


# What bf16 must gain: rounding is paid for, and a measurement on a busy machine is a rough one.
_CLEARLY = 1.2
# In a batch, a number that is rounded up by as much as numbers are on average.
_TOKENS = 320
# The ratio of two products changes little beyond, and their time much.
_WIDEST = 1024
_LONGEST = 512  # tokens of a row
_LENGTHS = 4  # that rows of a measured attention have in turn
_DROPPED = 0.1  # of attention's weights
_ROUNDS = 12
_SECONDS = 1.0


def probe_precision(shapes: Collection[tuple[int, int]]) -> ProductPrecision:
    """Return the precision in which frozen products of these shapes train faster on this CPU.

    It takes about a second, once for a processor, a version of torch, a number of threads and the
    shapes: the result is kept in the person's cache folder, if that can be written.

    Args:
        shapes: ``(inputs, outputs)`` of the layers; each counts once.

    Returns:
        "bf16" where it is clearly faster, else "float32".
    """
    widths = " ".join(f"{inputs}x{outputs}" for inputs, outputs in sorted(set(shapes)))
    return _probe(widths, lambda: measure_products(shapes))


def probe_attention(shape: AttentionShape) -> ProductPrecision:
    """Return the precision in which packed attention of this shape trains faster on this CPU.

    It takes about a second, and is remembered as ``probe_precision`` says.

    Returns:
        "bf16" where it is clearly faster, else "float32".
    """
    words = " ".join(f"{name}={value:g}" for name, value in shape._asdict().items())
    return _probe(f"attention {words}", lambda: measure_attention(shape))


def _probe(what: str, measure: Callable[[], tuple[float, float]]) -> ProductPrecision:
    if not _has_kernels():
        return "float32"
    key = f"{processor_key()}, torch {torch.__version__}, {torch.get_num_threads()} threads: {what}"
    known = _read_cache()
    if (kept := known.get(key)) in ("float32", "bf16"):
        return "bf16" if kept == "bf16" else "float32"
    float32, bf16 = measure()
    chosen: ProductPrecision = "bf16" if float32 >= _CLEARLY * bf16 else "float32"
    with suppress(DeltafitError):  # the next run measures again then
        write_json_atomically(cache_file(), {**known, key: chosen})
    return chosen


def measure_products(shapes: Collection[tuple[int, int]]) -> tuple[float, float]:
    """Return the seconds of one pass forward and backward through products in float32 and in bf16.

    The two run in turn for about a second; each time is the shortest.

    Args:
        shapes: ``(inputs, outputs)`` of the layers; wide ones are measured narrower.
    """
    generator = torch.Generator().manual_seed(0)
    capped = sorted({(min(i, _WIDEST), min(o, _WIDEST)) for i, o in shapes})
    layers = [torch.randn(outputs, inputs, generator=generator) for inputs, outputs in capped]
    copies = [layer.to(torch.bfloat16) for layer in layers]
    tensors = [
        (
            torch.randn(_TOKENS, inputs, generator=generator, requires_grad=True),
            torch.randn(_TOKENS, outputs, generator=generator),
        )
        for inputs, outputs in capped
    ]

    def seconds(product: Any, weights: list[Tensor]) -> float:
        began = time.perf_counter()
        for weight, (x, dy) in zip(weights, tensors, strict=True):
            torch.autograd.grad(product(x, weight), x, dy)
        return time.perf_counter() - began

    return _shortest(lambda: (seconds(functional.linear, layers), seconds(reduced_product, copies)))


def measure_attention(shape: AttentionShape) -> tuple[float, float]:
    """Return the seconds of one pass of attention, forward and backward, in float32 and in bf16.

    The two run in turn for about a second; each time is the sum of the shortest for some lengths of
    rows. Weights are dropped. Kernels are compiled for each length, once, which is left out: a run
    meets the same lengths over and over.

    Args:
        shape: of as many rows as make a batch of some hundred tokens; long ones are measured
            shorter.
    """
    longest = min(shape.length, _LONGEST)
    rows, generator, training = max(1, _TOKENS // longest), torch.Generator(), nn.Identity()

    def seconds(products: torch.dtype | None, length: int) -> float:
        layout = layout_of(torch.ones(rows, length, dtype=torch.bool), causal=False)
        tokens = rows * length
        size = (1, shape.heads, tokens, shape.width)
        q, k, v = (torch.randn(size, generator=generator, requires_grad=True) for _ in range(3))
        dy = torch.randn(1, tokens, shape.heads, shape.width, generator=generator)
        began = time.perf_counter()
        output, _ = packed_attention(training, q, k, v, layout, _DROPPED, products=products)
        torch.autograd.grad(output, (q, k, v), dy)
        return time.perf_counter() - began

    def both(length: int) -> tuple[float, float]:
        return seconds(None, length), seconds(torch.bfloat16, length)

    lengths = range(max(1, longest - _LENGTHS + 1), longest + 1)
    with torch.random.fork_rng(devices=[]):
        found = [_shortest(partial(both, length), len(lengths)) for length in lengths]
    float32, bf16 = (sum(times) for times in zip(*found, strict=True))
    return float32, bf16


def _shortest(both: Callable[[], tuple[float, float]], parts: int = 1) -> tuple[float, float]:
    """Return the shortest of two times that are measured in turn, for a part of about a second.

    What else the machine does makes times longer, and the shortest last.
    """
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + _SECONDS / parts
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # The first round starts threads and fills caches, and is left out.
        while len(times) < 2 or (len(times) <= _ROUNDS and time.perf_counter() < end):
            times.append(both())
    first, second = zip(*times[1:], strict=True)
    return min(first), min(second)


def cache_file() -> Path:
    """Return where measured precisions are kept."""
    return platformdirs.user_cache_path("deltafit", appauthor=False) / "precision.json"


def _read_cache() -> dict[str, Any]:
    try:
        content = read_json(cache_file())
    except DeltafitError:  # not there yet, or damaged: it is made anew
        return {}
    return content if isinstance(content, dict) else {}


def _has_kernels() -> bool:
    """Return whether torch can hand bf16 products to oneDNN, without which they are slow."""
    backend = torch.backends.mkldnn
    return bool(backend.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
