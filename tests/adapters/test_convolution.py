"""Convolutions of every geometry under every delta method: the law, merging, many adapters."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from deltafit.adapters import (
    activate,
    adapt,
    adapter_tensors,
    check_fits,
    layer_state,
    merge,
    remove_adapter,
    unmerge,
)
from deltafit.adapters.counting import trained_values
from deltafit.adapters.inspection import inspect_model
from deltafit.adapters.layers import view_of
from deltafit.adapters.statistics import input_moments
from deltafit.adapters.structure import layer_kind
from deltafit.adapters.targets import select_targets
from deltafit.engine import mixed, packed
from deltafit.errors import DeltafitError, UsageError
from deltafit.methods import IA3, METHODS, AdaLoRA, DeltaMethod, DoRA, LoKr, LoRA, Sparse, VeRA
from tests.adapters.adapted import anatomy, bits, randomise
from tests.adapters.convolutional import GEOMETRIES, Pictures, its_input, one_convolution, pictures
from tests.adapters.test_law import factor
from tests.tiny_models import tiny_inputs, tiny_model

DELTAS = [name for name, method in METHODS.items() if issubclass(method, DeltaMethod)]


def changed(layer: nn.Module, change: Tensor) -> nn.Module:
    """A copy of a plain layer, to whose kernels a matrix of a row an output is added."""
    copied = copy.deepcopy(layer)
    copied.weight = nn.Parameter(layer.weight + change.view(layer.weight.shape))
    return copied


@given(
    dimensions=st.sampled_from([1, 2]),
    groups=st.integers(1, 3),
    of_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    rank=st.integers(1, 12),
    dropout=st.sampled_from([0.0, 0.5]),
    rows=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_lora_is_the_convolution_with_changed_kernels(
    dimensions: int, groups: int, of_group: tuple[int, int], kernel: int, stride: int,
    padding: int | str, mode: str, dilation: int, bias: bool, rank: int, dropout: float,
    rows: int | None, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    layer = (nn.Conv1d, nn.Conv2d)[dimensions - 1](
        groups * of_group[0], groups * of_group[1], kernel, bias=bias, groups=groups,
        stride=1 if padding == "same" else stride, padding=padding, padding_mode=mode,
        dilation=dilation,
    ).double()  # fmt: skip
    assume(layer_kind(layer) is not None)  # as Mamba's is shaped
    plain = copy.deepcopy(layer)
    shape = (groups * of_group[0], 7, 6)[: dimensions + 1]
    x = torch.randn(shape if rows is None else (rows, *shape), dtype=torch.float64)
    method = LoRA(("0",), rank=rank, alpha=3, dropout=dropout)
    adapt(model := nn.Sequential(layer), method)
    model.train(dropout == 0)
    randomise(model, seed=seed)
    tensors = [x.requires_grad_(), *adapter_tensors(model, "default").values()]
    _, A, B = tensors
    # The oracle's kernels, so that its gradients are those of the dense change.
    parameters = {"weight": plain.weight + (factor(method) * B @ A).view(plain.weight.shape)}
    expected = torch.func.functional_call(plain, parameters, (x,))
    state = layer_state(layer)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, tensors, direction)
    for found in (model(x), state.view.forward_with(state.deltas("default"), x)):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
        gradients = torch.autograd.grad(found, tensors, direction)
        torch.testing.assert_close(gradients, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", DELTAS)
def test_every_delta_method_is_its_dense_change_merged_and_beside_others(
    name: str, geometry: str
) -> None:
    model = one_convolution(geometry)
    x, plain, before = its_input(model), copy.deepcopy(model[0]), anatomy(model)
    base = plain(x)
    adapt(model, METHODS[name](target_modules=("0",)))  # type: ignore[call-arg]  # a DeltaMethod
    torch.testing.assert_close(model(x), base, rtol=1e-12, atol=1e-12)
    randomise(model)
    deltas = layer_state(model[0]).deltas("default")
    expected = changed(plain, deltas["weight"])
    if "bias" in deltas:
        expected.bias = nn.Parameter(plain.bias + deltas["bias"])
    tensors = adapter_tensors(model, "default")
    wanted = [x.requires_grad_(), *(t for t in tensors.values() if t.requires_grad)]
    reference = layer_state(model[0]).view.forward_with(deltas, x)
    torch.testing.assert_close(reference, expected(x), rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(reference)
    ours, theirs = (
        torch.autograd.grad(y, wanted, direction, retain_graph=True) for y in (model(x), reference)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(x), expected(x), rtol=1e-12, atol=1e-12)
    with mixed(model, [("default", 1), (None, 2)]):
        torch.testing.assert_close(
            model(x), torch.cat([reference[:1], base[1:]]), rtol=1e-12, atol=1e-12
        )
    merge(model)
    assert torch.equal(model[0].weight, changed(plain, deltas["weight"]).weight)
    torch.testing.assert_close(model(x), expected(x), rtol=1e-12, atol=1e-12)
    unmerge(model)
    assert bits(model[0].weight) == bits(plain.weight)
    remove_adapter(model, "default")
    assert anatomy(model) == before


@pytest.mark.parametrize("method", [LoRA, DoRA, AdaLoRA, VeRA])
def test_dropout_drops_the_adapters_input_in_training_alone(method: type[LoRA]) -> None:
    model = one_convolution("patches")
    x = its_input(model)
    adapt(model, method(("0",), dropout=0.5))
    randomise(model)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.allclose(model(x), model(x))


def test_doras_norm_is_of_all_that_an_output_multiplies() -> None:
    model = one_convolution("in groups")
    x, plain = its_input(model), copy.deepcopy(model[0])
    adapt(model, method := DoRA(("0",), rank=2, alpha=3))
    randomise(model)
    A, B, m = adapter_tensors(model, "default").values()
    turned = plain.weight + method.factor * torch.einsum("or,ri->oi", B, A).view(6, 2, 2, 3)
    kernels = torch.stack([m[i] * kernel / kernel.norm() for i, kernel in enumerate(turned)])
    expected = functional.conv2d(x, kernels, plain.bias, padding=1, groups=2)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometry", ["a line", "a plane", "in groups", "channel by channel"])
@pytest.mark.parametrize("feedforward", [False, True])
def test_ia3_scales_channels(geometry: str, feedforward: bool) -> None:
    model = one_convolution(geometry)
    x, plain = its_input(model), copy.deepcopy(model[0])
    adapt(model, IA3(("0",), feedforward_modules=("0",) if feedforward else ()))
    randomise(model)
    (vector,) = adapter_tensors(model, "default").values()
    channels = vector.view(-1, *(1,) * (x.ndim - 2))
    expected = plain(channels * x) if feedforward else channels * plain(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    merge(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_lokr_divides_channels_and_leaves_the_kernel_whole() -> None:
    model = nn.Sequential(nn.Conv2d(12, 6, (2, 3)))
    for rank, shapes in (
        (1, {"lokr_w1": (2, 3), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 24)}),
        (2, {"lokr_w1": (2, 3), "lokr_w2": (3, 24)}),
    ):
        adapt(model, LoKr(("0",), rank=rank), name=str(rank))
        made = {n[2:]: tuple(t.shape) for n, t in adapter_tensors(model, str(rank)).items()}
        assert made == shapes


@pytest.mark.parametrize(("groups", "rank"), [(1, 4), (1, 400), (4, 2), (32, 8)])
def test_the_update_takes_the_cheaper_order(groups: int, rank: int) -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=groups))
    x = torch.randn(2, 32, 9, 9)
    adapt(model, LoRA(("0",), rank=rank))
    positions, inputs = 2 * 9 * 9, 32 // groups * 9
    apart = rank * positions * (groups * inputs + 32)
    whole = 32 * inputs * (rank + positions)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() // 2 - 32 * inputs * positions == min(apart, whole)
    assert (whole < apart) == ((groups, rank) in {(1, 400), (32, 8)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_a_model_of_less_precision_the_adapter_computes_in_float32(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv1d(4, 2, 1)).to(dtype)
    adapt(model, DoRA(("0",), rank=2))
    adapt(model, LoKr(("0",), rank=2), name="dense")
    x = torch.randn(2, 3, 5, 5, dtype=dtype)
    for name in ("default", "dense"):
        randomise(model, name)
        activate(model, name)
        assert all(t.dtype == torch.float32 for t in adapter_tensors(model, name).values())
        wide = copy.deepcopy(model).float()
        torch.testing.assert_close(
            model[0](x).float(), wide[0](x.float()), rtol=4 * torch.finfo(dtype).eps, atol=0.05
        )
        with torch.autocast("cpu", torch.bfloat16):
            assert model[0](x).dtype == torch.bfloat16


@pytest.mark.parametrize("method", [LoRA(("0",)), LoKr(("0",)), Sparse(("0",))], ids=repr)
def test_a_persons_hook_runs_once(method: DeltaMethod) -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 2))
    x, calls = torch.randn(2, 3, 5), []
    model[0].register_forward_hook(lambda module, args, y: calls.append(1) or 2 * y)
    plain = model(x)
    adapt(model, method)
    model(x)
    assert len(calls) == 2
    remove_adapter(model, "default")
    torch.testing.assert_close(model(x), plain)


def test_a_convolution_that_is_read_and_never_called_is_no_target() -> None:
    """That of Mamba's mixers: an adapter there would have no effect."""
    model = nn.Module()
    model.conv1d = nn.Conv1d(6, 6, 4, groups=6, padding=3)
    model.called = nn.Conv1d(6, 6, 3, groups=6, padding=1)
    with pytest.raises(UsageError, match="conv1d"):
        select_targets(model, ("conv1d",))
    assert select_targets(model, ("called",)) == ("called",)


# What is asked for of layers' types elsewhere.


def test_they_are_targets_by_name_and_by_expression_alone() -> None:
    model = Pictures()
    assert select_targets(model, ("stem", "line")) == ("stem", "line")
    assert select_targets(model, "(point|depth|head)") == ("depth", "point", "head")
    with pytest.raises(UsageError, match="no linear layer to adapt outside its head"):
        select_targets(model, "all-linear", exclude=("head",))
    with pytest.raises(
        UsageError, match=r"There are stem \(1 layer, 27→8\), depth \(1 layer, 9→8\)"
    ):
        select_targets(model, ("zzz",), exclude=("head",))
    with pytest.raises(UsageError, match="The model is itself a Conv1d"):
        select_targets(model.line, ("0",))


def test_other_kinds_of_convolutions_are_refused() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(functional.pad(x, (1, 0, 1, 0)))

    for layer, said in (
        (nn.Conv3d(1, 1, 1), "A Conv3d cannot be adapted; .*Conv1d and Conv2d"),
        (nn.ConvTranspose2d(1, 1, 1), "A ConvTranspose2d cannot be adapted"),
        (nn.LazyConv2d(2, 1), "no shape before its first call"),
        (nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 3)), "weight is computed"),
    ):
        with pytest.raises(DeltafitError, match=said):
            view_of(layer)
    own = nn.Sequential(Padded(2, 3, 2)).double()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    adapt(own, LoRA(("0",), rank=2))
    randomise(own)
    plain, deltas = Padded(2, 3, 2).double(), layer_state(own[0]).deltas("default")
    plain.load_state_dict({n: t for n, t in own[0].state_dict().items() if "lora" not in n})
    torch.testing.assert_close(own(x), changed(plain, deltas["weight"])(x))


@pytest.mark.parametrize("name", DELTAS)
def test_what_would_be_trained_is_known_before(name: str) -> None:
    method = METHODS[name](target_modules=("stem", "depth", "point", "line"))  # type: ignore[call-arg]  # a DeltaMethod
    counted = trained_values(Pictures().to("meta"), method, head=())
    adapt(model := Pictures(), method)
    trained = [t for t in adapter_tensors(model, "default").values() if t.requires_grad]
    assert counted == sum(t.numel() for t in trained)


def test_costs_of_matrices_are_those_of_kernels() -> None:
    model = Pictures()
    found = inspect_model(model, ("stem", "depth"), rank=2)
    assert [(m.inputs, m.outputs, m.adapter_values) for m in found.matrices] == [
        (27, 8, 2 * 35),
        (9, 8, 2 * 17),
    ]
    adapt(model, LoRA(("stem", "depth"), rank=2))
    values = sum(t.numel() for t in adapter_tensors(model, "default").values())
    assert found.adapter_parameters == values
    assert all(m.weight_values == m.inputs * m.outputs for m in found.matrices)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_moments_are_of_what_lies_under_the_kernel(geometry: str) -> None:
    model = one_convolution(geometry)
    x, layer = its_input(model), model[0]
    with torch.no_grad(), input_moments(model, ["0"]) as statistics:
        model(x)
    # Unfolded by torch, of a picture one position high where it is a line.
    side = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(x, side, mode=mode)
    one = (1,) * (4 - x.ndim)
    sizes = [(*one, *s) for s in (layer.kernel_size, layer.dilation, layer.stride)]
    padded = padded.view(*padded.shape[:2], *one, *padded.shape[2:])
    patches = functional.unfold(padded, sizes[0], dilation=sizes[1], stride=sizes[2])
    rows = patches.unflatten(1, (layer.groups, -1)).transpose(2, 3).flatten(0, 2)
    found = statistics["0"]
    torch.testing.assert_close(found["mean"], rows.mean(0), rtol=1e-10, atol=1e-10)
    moment = rows.T @ rows / len(rows)
    torch.testing.assert_close(found["second_moment"], moment, rtol=1e-10, atol=1e-10)
    # And W times them is what the layer gives.
    products = view_of(layer).products(x).view(len(x), layer.groups, -1, rows.shape[1])
    weight = view_of(layer).view().view(layer.groups, -1, rows.shape[1])
    bias = 0 if layer.bias is None else layer.bias.view(-1, 1)
    y = torch.einsum("ngpi,goi->ngop", products, weight).flatten(1, 2) + bias
    torch.testing.assert_close(y, layer(x).flatten(2), rtol=1e-11, atol=1e-11)


def test_starts_from_data_and_from_the_weight() -> None:
    model, x = Pictures().double(), pictures().double()
    names, base = ("stem", "depth"), Pictures().double()(x)
    with torch.no_grad(), input_moments(model, names) as statistics:
        model(x)
    adapt(model, LoRA(names, rank=3, initialisation="eva"), name="eva", statistics=statistics)
    assert torch.equal(model(x), base)
    A = adapter_tensors(model, "eva")["stem.lora_A"]
    torch.testing.assert_close(A @ A.T, torch.eye(len(A), dtype=torch.float64))
    for start in ("pissa", "olora", "orthogonal"):
        adapt(model, LoRA(names, rank=3, initialisation=start), name=start)
        torch.testing.assert_close(model(x), base, rtol=1e-12, atol=1e-12)
    gradients = {name: {"gradient": torch.randn(8, 27 if name == "stem" else 9)} for name in names}
    adapt(model, Sparse(names, density=0.1, mask="gradient"), name="s", statistics=gradients)
    largest = gradients["stem"]["gradient"].abs().flatten().topk(22).indices.sort().values
    assert torch.equal(adapter_tensors(model, "s")["stem.sparse_indices"].long(), largest)
    with pytest.raises(DeltafitError, match="takes a rank of at most 8 there"):
        adapt(model, LoRA(("depth",), rank=9, initialisation="pissa"), name="large")
    with pytest.raises(DeltafitError, match="none of its targets is stored so"):
        adapt(model, LoRA(names, initialisation="loftq"), name="loftq")
    check_fits(model, LoRA(names, initialisation="eva"))


def test_rows_of_many_adapters_share_one_pass_of_the_base() -> None:
    model, x = Pictures().double(), pictures(7).double()
    methods: dict[str, DeltaMethod] = {
        "lora": LoRA(("stem", "line"), rank=2),
        "dora": DoRA(("stem", "depth"), rank=3),
        "ia3": IA3(("stem", "point"), feedforward_modules=("point",)),
        "lokr": LoKr(("point", "line", "depth"), rank=2),
    }
    alone = {None: model(x)}
    for number, (name, method) in enumerate(methods.items()):
        adapt(model, method, name=name)
        randomise(model, name, seed=number)
        alone[name] = model(x)
    segments = [("lora", 2), (None, 1), ("ia3", 1), ("lokr", 2), ("dora", 1)]
    with mixed(model, segments):
        together = model(x)
    start = 0
    for name, count in segments:
        rows = slice(start, start := start + count)
        torch.testing.assert_close(together[rows], alone[name][rows], rtol=1e-11, atol=1e-11)
        others = (alone[other][rows] for other in alone if other != name)
        assert all(not torch.allclose(together[rows], other, atol=1e-4) for other in others)


def test_rows_that_cannot_be_told_apart_are_refused() -> None:
    for method in (LoRA(("0",)), LoKr(("0",))):
        model = one_convolution("a plane")
        adapt(model, method)
        with (
            mixed(model, [("default", 2), (None, 2)]),
            pytest.raises(DeltafitError, match=r"0 is a convolution .* which has no rows"),
        ):
            model[0](its_input(model)[0])


def test_in_packed_blocks_their_channels_are_no_tokens() -> None:
    class Convolved(nn.Linear):
        """A linear layer with a convolution behind it, of as many channels as there are tokens."""

        def __init__(self, width: int) -> None:
            super().__init__(width, width)
            self.points = nn.Conv1d(width, width, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.points(super().forward(x).mT).mT

    model = tiny_model("bert")
    for block in model.bert.encoder.layer:
        block.attention.output.dense = Convolved(32)
    batch = tiny_inputs(model, batch=5, length=8)
    adapt(model, LoRA(("points",), rank=2))
    randomise(model)
    expected = model(**batch).logits
    with packed(model):
        torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    with mixed(model, [("default", 3), (None, 2)]):
        together = model(**batch).logits
        torch.testing.assert_close(together[:3], expected[:3], rtol=1e-4, atol=1e-5)
        with packed(model), pytest.raises(DeltafitError, match=r"points is a convolution, whose"):
            model(**batch)
