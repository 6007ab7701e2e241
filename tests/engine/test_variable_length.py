"""The call of torch's variable-length kernel: to its documented semantics, and only where it runs.

There is no GPU here. A plain implementation of what torch documents stands in for the kernel.
"""

import sys
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from deltafit.adapters import adapt
from deltafit.engine import check_packing, packed, variable_length
from deltafit.engine.attention import packed_attention
from deltafit.engine.layout import CAUSAL, EVERYTHING, Layout, Window, band, layout_of
from deltafit.methods import LoRA
from tests.adapters.adapted import head_of, randomise
from tests.engine.ragged import assert_same, in_training, outputs_and_gradients, ragged
from tests.tiny_models import LAYERS, tiny_model

LENGTHS = (9, 5, 1, 5, 7)
CPU = torch.device("cpu")


class Documented:
    """What torch documents of its kernel, token by token in float64; it keeps the windows."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.wrong = 0.0  # added to what it gives

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: Window,
        enable_gqa: bool,
    ) -> Tensor:
        self.windows.append(window_size)
        assert query.dtype == key.dtype == value.dtype
        assert key.shape == value.shape and query.shape[::2] == key.shape[::2]
        assert query.shape[1] == key.shape[1] or enable_gqa
        assert all(tensor.stride(-1) == 1 for tensor in (query, key, value))
        for bounds, longest in ((cu_seq_q, max_q), (cu_seq_k, max_k)):
            assert bounds.dtype == torch.int32 and bounds.is_contiguous()
            assert bounds[0] == 0 and bounds[-1] == len(query) and type(longest) is int
            assert longest == int(bounds.diff().max())
        repeats = query.shape[1] // key.shape[1]
        before, behind = window_size
        outputs = []
        for start, stop in pairwise(cu_seq_q.tolist()):
            for token in range(start, stop):
                first = start if before < 0 else max(start, token - before)
                last = stop - 1 if behind < 0 else min(stop - 1, token + behind)
                k, v = (
                    tensor[first : last + 1].double().repeat_interleave(repeats, 1)
                    for tensor in (key, value)
                )
                weights = (torch.einsum("hd,khd->hk", query[token].double(), k) * scale).softmax(-1)
                outputs.append(torch.einsum("hk,khd->hd", weights, v) + self.wrong)
        return torch.stack(outputs).to(query.dtype)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Documented]:
    """The documented kernel, as if it ran here and in float64 too."""
    documented = Documented()
    monkeypatch.setattr(variable_length, "kernel", documented)
    monkeypatch.setattr(variable_length, "_runs_on", lambda device: True)
    monkeypatch.setattr(variable_length, "_DTYPES", (torch.float16, torch.bfloat16, torch.float64))
    yield documented


def model_with(architecture: str, window: int | None) -> nn.Module:
    """A tiny model whose layers, the first apart in Qwen2, see no farther than the window."""
    model = tiny_model(architecture)
    if window is not None:
        model.config.sliding_window = window
    if window is not None and architecture == "qwen2":
        kinds = ["full_attention", *["sliding_attention"] * (LAYERS - 1)]
        model.config.update({"use_sliding_window": True, "layer_types": kinds})
        weights = model.state_dict()
        model = AutoModelForSequenceClassification.from_config(model.config)
        model.load_state_dict(weights)
    return model


MODELS: dict[str, tuple[str, int | None, list[Window]]] = {
    "bert": ("bert", None, [EVERYTHING] * 3),
    "gpt2": ("gpt2", None, [CAUSAL] * 3),
    "llama, grouped keys": ("llama", None, [CAUSAL] * 3),
    "qwen2, window": ("qwen2", 3, [CAUSAL, (2, 0), (2, 0)]),
    "qwen2, window of one": ("qwen2", 1, [CAUSAL, (0, 0), (0, 0)]),
    "mistral, window longer than most rows": ("mistral", 8, [(7, 0)] * 3),
    "mistral, window longer than all rows": ("mistral", 20, [CAUSAL] * 3),
    "gemma3, windows and whole rows": ("gemma3_text", None, [(3, 0), CAUSAL, (3, 0)]),
    "modernbert, window on both sides": ("modernbert", 2, [EVERYTHING, (2, 2), (2, 2)]),
}


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_through_the_kernel_packed_is_padded(
    case: tuple[str, int | None, list[Window]], kernel: Documented
) -> None:
    architecture, window, windows = case
    model, batch = in_training(model_with(architecture, window).double()), ragged(LENGTHS)
    adapt(model, LoRA(rank=2), head=head_of(model))
    randomise(model)
    expected = outputs_and_gradients(model, batch)
    assert not kernel.windows
    with packed(model):
        found = outputs_and_gradients(model, batch)
    assert kernel.windows == windows
    assert_same(found, expected)


def test_mixed_precision_gives_the_kernel_one_dtype(kernel: Documented) -> None:
    # Rotary tables in float32 make float32 of queries and keys; values stay bf16.
    model, batch = in_training(tiny_model("llama")), ragged(LENGTHS)
    exact = outputs_and_gradients(model, batch)
    with torch.autocast("cpu", torch.bfloat16), packed(model):
        found = outputs_and_gradients(model, batch)
    assert len(kernel.windows) == LAYERS
    assert (found[0] - exact[0]).abs().max() < 0.1 * exact[0].abs().max()


def test_the_self_check_looks_at_the_kernel_in_the_precision_it_runs_in(
    kernel: Documented,
) -> None:
    model, batch = tiny_model("llama"), ragged(LENGTHS)
    assert check_packing(model, batch) is None and not kernel.windows  # float32: by groups
    assert check_packing(model, batch, mixed=torch.bfloat16) is None
    assert len(kernel.windows) == LAYERS
    kernel.wrong = 0.1
    found = check_packing(model, batch, mixed=torch.bfloat16) or ""
    assert "in mixed precision with bfloat16, the states of its tokens differs by" in found
    kernel.wrong = float("nan")
    assert "differs by nan" in (check_packing(model, batch, mixed=torch.bfloat16) or "")


def test_a_mask_that_is_no_window_is_not_for_the_kernel(kernel: Documented) -> None:
    model, batch = tiny_model("llama").double(), ragged(LENGTHS)
    seen = batch["attention_mask"].bool()[:, None, None].expand(5, 1, 9, 9).tril()
    with packed(model):
        model(**(batch | {"attention_mask": seen}))
    assert not kernel.windows
    rows = padded_rows(mask=seen)
    assert rows.window is None


def padded_rows(**sight: Tensor | bool | Window | None) -> Layout:
    """The layout of the batch."""
    padding = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    layout = layout_of(padding, **{"causal": False, **sight})  # type: ignore[arg-type]  # by name
    assert layout is not None
    return layout


def tensors(
    width: int = 8, value_width: int = 8, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    query = torch.empty(1, 4, sum(LENGTHS), width, dtype=dtype)
    return query, torch.empty(1, 4, sum(LENGTHS), value_width, dtype=dtype)


@pytest.mark.parametrize(
    ("given", "dropout", "taken"),
    [
        ({}, 0.0, True),
        ({"dtype": torch.float16}, 0.0, True),
        ({"dtype": torch.float32}, 0.0, False),
        ({}, 0.1, False),
        ({"width": 12, "value_width": 12}, 0.0, False),
        ({"width": 192, "value_width": 192}, 0.0, True),
        ({"width": 200, "value_width": 200}, 0.0, False),
        ({"value_width": 16}, 0.0, False),
    ],
    ids=str,
)
def test_the_kernel_is_chosen_where_it_can_run_alone(
    given: dict[str, object], dropout: float, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, value = tensors(**given)
    rows = padded_rows()
    assert not variable_length.takes(query, value, rows, dropout)  # on a CPU
    monkeypatch.setattr(variable_length, "_runs_on", lambda device: True)
    assert variable_length.takes(query, value, rows, dropout) is taken


@pytest.mark.parametrize(
    "lack",
    [
        {"torch.version.hip": "6.0"},
        {"torch.backends.cuda.is_flash_attention_available": lambda: False},
        {"torch.cuda.get_device_capability": lambda device: (7, 5)},
        {"deltafit.engine.variable_length.kernel": None},
        {},
    ],
    ids=lambda lack: next(iter(lack), "nothing"),
)
def test_a_gpu_or_a_torch_without_the_kernel_is_recognised(
    lack: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {
        "torch.version.hip": None,
        "torch.backends.cuda.is_flash_attention_available": lambda: True,
        "torch.cuda.get_device_capability": lambda device: (8, 0),
    }
    for name, value in (there | lack).items():
        monkeypatch.setattr(name, value)
    assert variable_length._runs_on(torch.device("cuda", 0)) is not bool(lack)
    assert not variable_length._runs_on(CPU)


@pytest.mark.parametrize(
    "module",
    [None, SimpleNamespace(varlen_attn=lambda query, key, is_causal: None)],
    ids=["without", "of other arguments"],
)
def test_an_older_torch_has_no_such_kernel(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert variable_length._find_kernel() is not None
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    assert variable_length._find_kernel() is None


def test_torchs_own_function_takes_the_call() -> None:
    rows = padded_rows(window=(2, 0))
    query = torch.empty(27, 4, 8, device="meta", dtype=torch.bfloat16, requires_grad=True)
    key = torch.empty(27, 2, 8, device="meta", dtype=torch.bfloat16, requires_grad=True)
    output = variable_length.variable_length_attention(query, key, key, rows, 0.3)
    assert (output.shape, output.dtype) == (query.shape, query.dtype)
    slopes = torch.autograd.grad(output, [query, key], torch.empty_like(output))
    assert [slope.shape for slope in slopes] == [query.shape, key.shape]


@pytest.mark.parametrize("window", [EVERYTHING, CAUSAL, (2, 0), (1, 3), (0, 0)])
def test_by_groups_a_window_is_the_same(window: Window, kernel: Documented) -> None:
    rows = padded_rows(causal=window == CAUSAL, window=window if window[0] >= 0 else None)
    assert rows.window == window and rows.bounds.tolist() == [0, 1, 6, 11, 18, 27]
    sheet = [torch.randn(1, 4, 27, 8, dtype=torch.float64) for _ in range(3)]
    expected, _ = packed_attention(nn.Identity(), *sheet, rows)
    assert kernel.windows == [window]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variable_length, "_DTYPES", ())
        found, _ = packed_attention(nn.Identity(), *sheet, rows)
    assert kernel.windows == [window]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_band_is_what_a_window_lets_a_token_see() -> None:
    seen = band(4, (2, 1), CPU)[0, 0].tolist()
    assert seen == [[i - 2 <= j <= i + 1 for j in range(4)] for i in range(4)]
