"""What a model is made of: kinds of layers, its stack of repeated blocks, its final norm.

Everything here reads the module tree alone. It works on any ``nn.Module``, on the meta device
too, and does not import transformers.
"""

import math
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter

from deltafit.adapters.layers import is_adapted, layer_state
from deltafit.adapters.model import base_parameters
from deltafit.errors import DeltafitError, UsageError

LayerKind = Literal["linear", "conv1d", "embedding", "convolution"]

# Final norms by the names in use (ln_f, norm, final_layer_norm, layernorm, post_layernorm, ...).
# Upper case is left out on purpose: DeBERTa's encoder.LayerNorm stands beside the stack but norms
# the relative positions, and BERT's post-norm family writes its other norms so.
_FINAL_NORM_NAME = re.compile(r"(final_|post_)?(layer_?norm|norm|ln)(_f|_out|_final)?")
# LayerNorm, LlamaRMSNorm, BatchNorm1d, RMSNormGated; not Normalizer or NormedLinear.
_NORM_CLASS = re.compile(r"Norm(?![a-z])")


@dataclass(frozen=True)
class BlockStack:
    """A run of blocks, each feeding the next.

    Args:
        name: the stack's module name, such as ``bert.encoder.layer``; empty for the model itself.
        blocks: the full module names of the blocks, in order.
        shared: whether blocks share parameters, so that training one trains others too.
    """

    name: str
    blocks: tuple[str, ...]
    shared: bool = False

    @property
    def length(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    def index_of(self, module_name: str) -> int | None:
        """Return the index of the block that is or holds ``module_name``; None outside."""
        return next((i for i, block in enumerate(self.blocks) if within(module_name, block)), None)


def within(module_name: str, ancestor: str) -> bool:
    """Return whether ``module_name`` is ``ancestor`` or inside it, by whole dotted segments."""
    return not ancestor or module_name == ancestor or module_name.startswith(f"{ancestor}.")


def is_excluded(module_name: str, exclude: Collection[str]) -> bool:
    """Return whether ``module_name`` is one of ``exclude`` or inside one of them.

    The empty name (a parameter of the model itself) excludes nothing.
    """
    return any(within(module_name, ancestor) for ancestor in exclude if ancestor)


def layer_kind(module: nn.Module) -> LayerKind | None:
    """Return an adaptable layer's kind ("conv1d" is GPT-2's, a linear one); None for others."""
    # An adapter would have no effect where a weight is read and its layer never called: out_proj of
    # MultiheadAttention, and Mamba's convolution by channel, padded by its kernel but one position.
    causal = isinstance(module, nn.Conv1d) and (
        module.groups == module.in_channels > 1
        and module.padding == (module.kernel_size[0] - 1,) != (0,)
    )
    if causal or isinstance(module, NonDynamicallyQuantizableLinear):
        return None
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return "convolution"
    # A Conv1D can only exist when its module has been imported already.
    utilities = sys.modules.get("transformers.pytorch_utils")
    if utilities is not None and isinstance(module, utilities.Conv1D):
        return "conv1d"
    return None


def is_matrix(module: nn.Module) -> bool:
    """Return whether ``module`` multiplies its input by a weight, token by token.

    A lookup does not, and a convolution takes several tokens.
    """
    return layer_kind(module) in ("linear", "conv1d")


def layer_shape(module: nn.Module) -> tuple[int, int]:
    """Return ``(inputs, outputs)`` of an adaptable layer; ``(vocabulary, width)`` of an embedding.

    The inputs of a convolution are the values under its kernel, in one group of channels.

    Raises:
        ValueError: the module is not adaptable.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        kernel = math.prod(module.kernel_size)
        return module.in_channels // module.groups * kernel, module.out_channels
    if layer_kind(module) != "conv1d":
        raise ValueError(f"a {type(module).__name__} is not an adaptable layer")
    inputs, outputs = cast(nn.Parameter, module.weight).shape  # transposed: [inputs, outputs]
    return inputs, outputs


def repeated_blocks(model: nn.Module) -> list[BlockStack]:
    """Return the model's outermost stacks of blocks, in the order of the module tree.

    A stack is a ModuleList, or a Sequential of at least two, whose members are of one class and
    hold linear layers inside them; in a ModuleList of several classes (attention and state-space
    blocks in turn) one must repeat. Lists inside a block (a mixture's experts) are no stacks, nor
    are lists of heads.
    """
    stacks: list[BlockStack] = []
    for name, module in model.named_modules():
        if any(stack.index_of(name) is not None for stack in stacks):
            continue
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        blocks = _children(module)
        if not _is_stack(module, list(blocks.values())):
            continue
        names = tuple(f"{name}.{child}" if name else child for child in blocks)
        stacks.append(BlockStack(name, names, _shared(model, list(blocks.values()))))
    return _without_heads(model, stacks)


def main_stack(model: nn.Module) -> BlockStack:
    """Return the largest stack; of equally large ones the last (a decoder follows its encoder).

    Raises:
        DeltafitError: the model has no repeated blocks.
    """
    stacks = repeated_blocks(model)
    if not stacks:
        raise DeltafitError(
            f"{type(model).__name__} has no repeated blocks (a ModuleList of equal modules with "
            "linear layers) to choose from. Name the modules themselves instead."
        )
    if len(stacks) == 1:  # the usual case, met in every pass of several adapters
        return stacks[0]
    return max(reversed(stacks), key=lambda stack: _size(model, stack))


def known_head(model: nn.Module) -> tuple[str, ...]:
    """Return the modules that must be the head, as far as the tree of a model without blocks tells.

    Of a transformers model they are those beside its base model. Of another it is the last linear
    layer, if it is the model's own child and others lie deeper.
    """
    children = [name for name, _ in model.named_children()]
    base = getattr(model, "base_model_prefix", None)
    if base in children:
        return tuple(name for name in children if name != base)
    matrices = [name for name, module in model.named_modules() if is_matrix(module)]
    known = "." not in "".join(matrices[-1:]) and any("." in name for name in matrices)
    return tuple(matrices[-1:]) if known else ()


def final_norm(model: nn.Module) -> str | None:
    """Return the name of the norm behind the main stack, None where there is none.

    Pre-norm models have one (GPT-2's ``transformer.ln_f``, Llama's ``model.norm``). It is looked
    for beside the stack, then beside each module around it.
    """
    stack = main_stack(model).name
    while stack:
        stack = stack.rpartition(".")[0]
        for name, module in model.get_submodule(stack).named_children():
            if _FINAL_NORM_NAME.fullmatch(name) and is_norm(module):
                return f"{stack}.{name}" if stack else name
    return None


def normalises(module: nn.Module) -> bool:
    """Return whether ``module`` is a normalisation, by the names of its class and their bases.

    Every architecture brings an RMSNorm class of its own, so there is no common type to ask for.
    """
    named = any(_NORM_CLASS.search(kind.__name__) for kind in type(module).__mro__)
    return named and layer_kind(module) is None


def is_norm(module: nn.Module) -> bool:
    """Return whether ``module`` is a normalisation with a weight."""
    return normalises(module) and getattr(module, "weight", None) is not None


def last_blocks(model: nn.Module, count: int) -> list[str]:
    """Return the module names of the last ``count`` blocks, and of the final norm behind them.

    Raises:
        DeltafitError: the model has no repeated blocks, or uses one block for several layers.
        UsageError: there are not ``count`` blocks.
    """
    stack = main_stack(model)
    if stack.shared:
        raise DeltafitError(
            f"{type(model).__name__} uses the same block for several layers ({stack.name}), so its "
            "last block cannot be trained alone. Train the head, an adapter, or all parameters."
        )
    if not 1 <= count <= stack.length:
        raise UsageError(
            f"{stack.name or type(model).__name__} has {stack.length} blocks; "
            f"the last {count} of them cannot be trained. Give a count from 1 to {stack.length}."
        )
    norm = final_norm(model)
    return [*stack.blocks[-count:], *([norm] if norm else [])]


def parameters_of_last_blocks(model: nn.Module, count: int) -> tuple[str, ...]:
    """Return the base's parameter names in ``last_blocks``; tensors of adapters are left out."""
    modules = last_blocks(model, count)
    adapters = [
        f"{name}.{tensor}"
        for name, module in model.named_modules()
        if is_adapted(module)
        for tensors in layer_state(module).tensor_names.values()
        for tensor in tensors
    ]
    return tuple(
        name
        for name, _ in model.named_parameters()
        if is_excluded(name, modules) and not is_excluded(name, adapters)
    )


def _children(module: nn.Module) -> dict[str, nn.Module]:
    # named_children leaves out a module that stands there twice; a shared block must be seen.
    return {
        name: child
        for name, child in module.named_modules(remove_duplicate=False)
        if name and "." not in name
    }


def _is_stack(module: nn.Module, blocks: list[nn.Module]) -> bool:
    minimum = 1 if isinstance(module, nn.ModuleList) else 2
    classes = len({type(block) for block in blocks})
    repeated = classes == 1 or (isinstance(module, nn.ModuleList) and classes < len(blocks))
    if len(blocks) < minimum or not repeated:
        return False
    return all(
        layer_kind(block) is None and any(map(is_matrix, block.modules())) for block in blocks
    )


def _without_heads(model: nn.Module, stacks: list[BlockStack]) -> list[BlockStack]:
    """Leave out lists of heads: small beside the largest stack, and giving another width."""
    if len(stacks) < 2:
        return stacks
    sizes = [_size(model, stack) for stack in stacks]
    return [
        stack
        for stack, size in zip(stacks, sizes, strict=True)
        if 2 * size >= max(sizes)
        or all(_returns_its_width(model.get_submodule(block)) for block in stack.blocks)
    ]


def _size(model: nn.Module, stack: BlockStack) -> int:
    return sum(
        parameter.numel()
        for name, parameter in base_parameters(model).items()
        # a lazy layer has no size yet
        if within(name, stack.name) and not isinstance(parameter, UninitializedParameter)
    )


def _returns_its_width(block: nn.Module) -> bool:
    """Return whether the first linear layer takes what the last one gives, as on a residual."""
    shapes = [layer_shape(module) for module in block.modules() if is_matrix(module)]
    return shapes[0][0] == shapes[-1][1]


def _shared(model: nn.Module, blocks: list[nn.Module]) -> bool:
    # ALBERT has fewer groups of parameters than layers and says so in its configuration alone.
    config = getattr(model, "config", None)
    groups = getattr(config, "num_hidden_groups", None)
    if groups is not None and groups < getattr(config, "num_hidden_layers", groups):
        return True
    parameters = [{id(parameter) for parameter in block.parameters()} for block in blocks]
    return sum(map(len, parameters)) > len(set().union(*parameters))
