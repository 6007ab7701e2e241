"""Running the blocks of a transformers model on packed tokens, while a context lasts."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from deltafit.adapters.structure import BlockStack, main_stack, within
from deltafit.engine.attention import NAMES, PACKED
from deltafit.engine.calls import first_of
from deltafit.engine.layout import CannotPackError, find_layout
from deltafit.engine.relative import hook_biases
from deltafit.errors import DeltafitError

# Keywords of a call that need every block's padded states, or its keys and values.
_ASKED_FOR = ("use_cache", "past_key_values", "output_hidden_states", "output_attentions")


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Let the model's blocks work on the real tokens of a batch, without its padding.

    Embeddings run on the padded batch ``[rows, length]``; the first block packs their output to
    ``[1, tokens, width]``, attention keeps the rows apart, and the last block gives
    ``[rows, length, width]`` back, with zeros for padding. A batch that is not padded on the right
    alone, or has no padding mask, runs padded. The results are the same up to rounding.

    Inside another ``packed`` of the same model this does nothing.

    Args:
        model: a transformers model, or a module with one inside. It may carry adapters. When the
            context ends, it is what it was.

    Raises:
        CannotPackError: the model can only run padded; later also from a call of it.
    """
    stack, owner = find_stack(model)
    before = owner.config._attn_implementation
    if before in NAMES:
        yield
        return
    blocks = [model.get_submodule(name) for name in stack.blocks]
    with ExitStack() as restore:
        restore.callback(owner.set_attn_implementation, before)
        owner.set_attn_implementation(PACKED)
        hooks = [block.register_forward_pre_hook(_pack, with_kwargs=True) for block in blocks]
        hooks.append(blocks[-1].register_forward_hook(_unpack, with_kwargs=True))
        hooks.append(owner.register_forward_pre_hook(_refuse_padded_results, with_kwargs=True))
        hooks += [hook for block in blocks for hook in hook_biases(block)]
        for hook in hooks:
            restore.callback(hook.remove)
        yield


def is_packed(model: nn.Module) -> bool:
    """Return whether the model is inside ``packed``."""
    return any(
        module.config._attn_implementation in NAMES
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
    )


def find_stack(model: nn.Module) -> tuple[BlockStack, PreTrainedModel]:
    """Return the blocks that can run packed, and the innermost transformers model around them.

    Raises:
        CannotPackError: there are none; the sentence says why.
    """
    try:
        stack = main_stack(model)
    except DeltafitError as error:
        raise CannotPackError(f"{type(model).__name__} has no repeated blocks to pack.") from error
    owners = [
        module
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and within(stack.name, name)
    ]
    if not owners:
        raise CannotPackError(f"{type(model).__name__} is no model of transformers.")
    owner = owners[-1]
    reason = _obstacle(stack, owner)
    if reason is not None:
        raise CannotPackError(f"{type(owner).__name__} cannot run packed: it {reason}.")
    return stack, owner


def _obstacle(stack: BlockStack, owner: PreTrainedModel) -> str | None:
    config = owner.config

    def is_set(*names: str) -> bool:
        return any(getattr(config, name, None) for name in names)

    obstacles = {
        "computes attention in its own way, past transformers' attention interface": (
            not owner._can_set_attn_implementation()
        ),
        "uses one block for several layers": stack.shared,
        "has an encoder and a decoder": is_set("is_encoder_decoder"),
        "is made of several models": bool(config.sub_configs),
        "leaves out blocks at random in training (layerdrop)": is_set(
            "layerdrop", "decoder_layerdrop"
        ),
        "is configured to give more than its last state": is_set(
            "output_hidden_states", "output_attentions"
        ),
    }
    return next((words for words, holds in obstacles.items() if holds), None)


def _refuse_padded_results(
    owner: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for name in _ASKED_FOR:
        if kwargs.get(name):
            raise CannotPackError(
                f"{type(owner).__name__} was called with {name}, which needs a padded run: leave "
                "packed(model) for it."
            )
    # Decoders fill a cache in evaluation unless told otherwise.
    return args, {**kwargs, "use_cache": False} if hasattr(owner.config, "use_cache") else kwargs


def _pack(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Pack what a block is given: its input if it is the first, and tables of positions."""
    layout = find_layout(args, kwargs)
    if layout is None:
        return None
    kwargs = dict(kwargs)
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    if hidden.shape[:2] != (1, layout.tokens):  # not a sheet yet
        hidden = layout.pack(hidden)
    if args:
        args = (hidden, *args[1:])
    else:
        kwargs["hidden_states"] = hidden
    if kwargs.get("position_embeddings") is not None:
        kwargs["position_embeddings"] = layout.pack_tables(kwargs["position_embeddings"])
    return args, kwargs


def _unpack(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Give back the padded form of what the last block computed."""
    layout = find_layout(args, kwargs)
    if layout is None or first_of(output).shape[:2] != (1, layout.tokens):  # no sheet
        return output
    if isinstance(output, tuple):
        return (layout.unpack(output[0]), *output[1:])
    return layout.unpack(output)
