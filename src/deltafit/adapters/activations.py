"""What a model's blocks keep for the backward pass, estimated from their structure."""

from torch import nn

from deltafit.adapters.structure import BlockStack, is_matrix, is_norm, layer_shape, within

VALUE_BYTES = 4  # adapters, their optimiser and activations are float32


def activation_values(
    model: nn.Module,
    stacks: list[BlockStack],
    sequence_length: int,
    targets: tuple[str, ...] | None = None,
    rank: int = 0,
) -> dict[str, int]:
    """Estimate the values a block keeps for backward, per token; targets None is full training.

    Of each block, from the first that trains anything (those before it keep nothing and are left
    out): the output of every linear layer and of every convolution, which is taken for one that
    leaves the number of tokens as it is, once, by whatever reads it; the input of every norm; the
    attention's output; what a gated or composed activation function adds; ``attention_matrices``;
    the inputs of the layers that train, once where they share one; r per adapter. After
    Korthikanti et al., 2022 (arXiv:2205.05198), section 4.1, without the frozen layers' inputs.
    Embeddings, head and temporaries are not counted. A model without blocks counts as one block,
    and one of convolutions alone has nothing that is counted.
    """
    matrices = int(attention_matrices(model)) * sequence_length if stacks else 0
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    outside = [t for t in targets or () if all(stack.index_of(t) is None for stack in stacks)]
    kept = {}
    for stack in stacks or [BlockStack("", ("",))]:
        # An embedding trains before all the blocks; what stands behind them asks nothing of them.
        place = names.index(stack.name)
        trains = targets is None or any(names.index(name) < place for name in outside)
        for block in stack.blocks:
            trained = None if targets is None else [t for t in targets if within(t, block)]
            trains = trains or bool(trained)
            if trains:
                kept[block] = matrices + _kept_by_block(model, block, trained, rank)
    return kept


def passing_values(model: nn.Module, stacks: list[BlockStack]) -> int:
    """Estimate the most values, per token, that a block holds at a time when nothing is kept.

    That is the input and the output of its activation function, as wide as its widest layer, the
    state that goes past it and the one that it is added to.
    """
    largest = 0
    for block in (block for stack in stacks for block in stack.blocks):
        shapes = [layer_shape(m) for m in model.get_submodule(block).modules() if is_matrix(m)]
        if shapes:
            largest = max(largest, 2 * max(map(max, shapes)) + 2 * shapes[-1][1])
    return largest


def _kept_by_block(model: nn.Module, block: str, trained: list[str] | None, rank: int) -> int:
    modules = {name: m for name, m in model.named_modules() if within(name, block)}
    shapes = {name: layer_shape(m) for name, m in modules.items() if is_matrix(m)}
    channels = {
        name: (m.in_channels, m.out_channels)
        for name, m in modules.items()
        if isinstance(m, nn.Conv1d | nn.Conv2d)
    }
    if not shapes:
        return 0
    last = list(shapes)[-1]  # the projection back to the model's width
    inner, width = shapes[last]
    parent = last.rpartition(".")[0]
    beside = [shape[1] for n, shape in shapes.items() if n.rpartition(".")[0] == parent != n]
    gated = inner if sum(beside) - width == 2 * inner else 0
    # GPT-2's activation is written out in elementary operations: three results more than one.
    composed = 3 * inner * any(type(m).__name__ == "NewGELUActivation" for m in modules.values())
    norms = sum(int(m.get_parameter("weight").numel()) for m in modules.values() if is_norm(m))
    every = shapes | channels
    reading = every if trained is None else [name for name in trained if name in every]
    inputs = {(name.rpartition(".")[0], every[name][0]) for name in reading}
    outputs = sum(shape[1] for shape in every.values())
    read = sum(size for _, size in inputs) + rank * len(trained or ())
    return outputs + norms + width + gated + composed + read


def attention_matrices(model: nn.Module, *, packed: bool = False) -> float:
    """Return the attention matrices that a block keeps: 3 a head with dropout, or 1 if eager."""
    config = getattr(model, "config", None)
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    # T5's one rate is for everything, its attention's weights among it.
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "dropout_rate")
    if any(getattr(config, name, 0) for name in names):
        # Packed: the weights, and a byte for each that says whether it was dropped.
        return heads * (1 + 1 / VALUE_BYTES if packed else 3)
    return 0 if packed or getattr(config, "_attn_implementation", None) != "eager" else heads
