"""Layouts, and attention on a sheet, against the padded formula in plain operations."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from deltafit.engine import groups
from deltafit.engine.attention import packed_attention, packed_mask
from deltafit.engine.dropout import draw_kept
from deltafit.engine.layout import CannotPackError, Layout, layout_of

LENGTHS = (4, 1, 6, 4, 3)
HEADS, WIDTH = 4, 8


@pytest.fixture(params=[0, 10, 10**9], autouse=True)
def _groups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one length in a group, of a few, and all of them in one."""
    monkeypatch.setattr(groups, "_COST_OF_A_GROUP", request.param)


def padding_of(lengths: Sequence[int], width: int | None = None) -> Tensor:
    return torch.arange(width or max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def layout(causal: bool = False, mask: Tensor | None = None) -> Layout:
    made = layout_of(padding_of(LENGTHS), causal=causal, mask=mask)
    assert made is not None
    return made


def sheets(keys: int = HEADS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key and value as blocks give them: ``[1, heads, tokens, width]``, not contiguous."""
    tokens = sum(LENGTHS)
    return [
        torch.randn(1, tokens, heads, WIDTH, dtype=dtype, requires_grad=True)
        for heads in (HEADS, keys, keys)
    ]


def relative() -> Tensor:
    """A bias of the scores, as models with relative positions have it, for the longest row."""
    longest = max(LENGTHS)
    return torch.randn(1, HEADS, longest, longest, dtype=torch.float64, requires_grad=True)


def padded_attention(
    tensors: Sequence[Tensor], seen: Tensor, rows: Layout, bias: Tensor | None = None
) -> Tensor:
    """Row by row in the order of the sheet, with its own scores, softmax and sum."""
    outputs, start = [], 0
    order = sorted(range(len(LENGTHS)), key=lambda row: LENGTHS[row])
    for row in order:
        stop = start + LENGTHS[row]
        q, k, v = (tensor[0, start:stop].transpose(0, 1) for tensor in tensors)
        k, v = (t.repeat_interleave(HEADS // len(t), 0) for t in (k, v))
        allowed = seen[row, : LENGTHS[row], : LENGTHS[row]]
        scores = torch.einsum("hqd,hkd->hqk", q, k) * 0.3
        if bias is not None:
            scores = scores + bias[0, :, : LENGTHS[row], : LENGTHS[row]]
        weights = torch.where(allowed, scores, -math.inf).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        outputs.append(torch.einsum("hqk,hkd->qhd", weights, v))
        start = stop
    assert start == rows.tokens
    return torch.cat(outputs).unsqueeze(0)


def sight(kind: str) -> tuple[Layout, Tensor]:
    """A layout, and who sees whom in each row of the padded batch."""
    longest = max(LENGTHS)
    everyone = torch.ones(len(LENGTHS), longest, longest, dtype=torch.bool)
    if kind == "full":
        return layout(), everyone
    if kind == "causal":
        return layout(causal=True), everyone.tril()
    # Any mask, another for each row, in which each token sees itself at least.
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(everyone.shape, generator=generator) < 0.5
    seen |= torch.eye(longest, dtype=torch.bool)
    return layout(mask=seen.unsqueeze(1)), seen


# The smallest probability drops nothing, but has the weights written out.
@pytest.mark.parametrize("dropout", [0.0, 1e-9])
@pytest.mark.parametrize("keys", [HEADS, 2, 1])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", ["full", "causal", "dense"])
def test_attention_on_a_sheet_is_the_formula(
    kind: str, biased: bool, keys: int, dropout: float
) -> None:
    rows, seen = sight(kind)
    tensors, bias = sheets(keys), relative() if biased else None
    expected = padded_attention(tensors, seen, rows, bias)
    found, weights = packed_attention(
        nn.Identity(), *(t.transpose(1, 2) for t in tensors), rows,
        dropout=dropout, scaling=0.3, position_bias=bias,
    )  # fmt: skip
    assert weights is None and found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    learnt = [*tensors, *([] if bias is None else [bias])]
    for ours, theirs in zip(
        torch.autograd.grad(found, learnt, upstream),
        torch.autograd.grad(expected, learnt, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["full", "causal", "dense"])
def test_dropped_weights_are_dropped_in_the_gradient_too(kind: str) -> None:
    rows, _ = sight(kind)
    tensors, bias = sheets(), relative()

    def attend(*sheet: Tensor, bias: Tensor | None = None) -> Tensor:
        torch.manual_seed(5)
        return packed_attention(
            nn.Identity(), *(t.transpose(1, 2) for t in sheet), rows,
            dropout=0.4, position_bias=bias,
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(attend, tensors, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda *given: attend(*given[:3], bias=given[3]), [*tensors, bias], fast_mode=True
    )
    sizes = [group.rows * HEADS * group.length**2 for group in rows.groups]
    torch.manual_seed(5)
    kept, factor = draw_kept(sum(sizes), 0.4)
    first = tensors[2][0, :1]  # the value of the row of one token
    group = rows.groups[0]
    of_group = kept[: sizes[0]].view(group.rows, HEADS, group.length, group.length)
    expected = first * of_group[0, :, 0, 0].view(1, HEADS, 1) * factor
    torch.testing.assert_close(attend(*tensors)[0, :1], expected)


def test_the_expectation_under_dropout_is_attention_without() -> None:
    rows, _ = sight("causal")
    tensors = [t.detach().transpose(1, 2) for t in sheets(dtype=torch.float32)]
    expected, _ = packed_attention(nn.Identity(), *tensors, rows)
    draws = torch.stack(
        [packed_attention(nn.Identity(), *tensors, rows, dropout=0.2)[0] for _ in range(1000)]
    )
    error = draws.std(0) / math.sqrt(1000)
    assert ((draws.mean(0) - expected).abs() <= 5 * error + 1e-6).all()
    # A token that sees only itself keeps its value in four of five draws.
    alone = draws[:, 0, 0, :, 0]
    assert 0.77 < float((alone != 0).double().mean()) < 0.83


def test_a_layout_packs_and_unpacks() -> None:
    padding = padding_of(LENGTHS, width=8)
    rows = layout_of(padding, causal=False)
    assert rows is not None
    assert [size for group in rows.groups for size in group.lengths] == [1, 3, 4, 4, 6]
    padded = torch.randn(5, 8, 3, requires_grad=True)
    sheet = rows.pack(padded)
    expected = [padded[row, : LENGTHS[row]] for row in (1, 4, 0, 3, 2)]
    assert torch.equal(sheet, torch.cat(expected).unsqueeze(0))
    back = rows.unpack(sheet)
    assert torch.equal(back, torch.where(padding.unsqueeze(-1), padded, 0))
    upstream = torch.randn_like(back)
    (gradient,) = torch.autograd.grad(back, padded, upstream)
    assert torch.equal(gradient, torch.where(padding.unsqueeze(-1), upstream, 0))


def test_tables_of_positions_are_packed_once() -> None:
    rows = layout()
    table = torch.arange(6.0).view(1, 6, 1)
    tables = (table, table.neg())
    packed = rows.pack_tables(tables)
    assert packed[0][0, :, 0].tolist() == [n for size in sorted(LENGTHS) for n in range(size)]
    assert rows.pack_tables(tables) is packed
    assert rows.pack_tables((table + 1, table))[0][0, 0, 0] == 1
    with pytest.raises(CannotPackError, match=r"shape \[6, 1\].* \[5, 6, ...\]"):
        rows.pack_tables((table[0],))


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 1, 1], [1, 1, 1]],
        [[1, 0, 1], [1, 1, 1]],
        [[0, 0, 0], [1, 1, 1]],
        [[0, 1, 0], [1, 1, 1]],
    ],
    ids=["left", "a gap", "empty", "both sides"],
)
def test_other_padding_has_no_layout(rows: list[list[int]]) -> None:
    assert layout_of(torch.tensor(rows).bool(), causal=False) is None


@pytest.mark.parametrize(
    "changed",
    [{"q_offset": 3}, {"kv_offset": 2}, {"kv_length": 9}, {"q_offset": torch.tensor(0)}],
)
def test_behind_a_cache_the_mask_is_torchs(changed: dict[str, int]) -> None:
    given = {"batch_size": 5, "q_length": 6, "kv_length": 6, "attention_mask": padding_of(LENGTHS)}
    assert isinstance(packed_mask(**given), Layout)
    mask = packed_mask(**{**given, **changed})
    assert isinstance(mask, Tensor)
    assert mask.shape == (5, 1, 6, changed.get("kv_length", 6))
