"""Attention modules that carry adapters: virtual tokens before a text's keys and values.

For the time of its forward such a module has a configuration that names our function under
transformers' attention interface. That function adds the virtual tokens and calls the one that the
model's own configuration names, whatever it is at the time; so that and the masks stay as they are.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deltafit.adapters.layers import AdaptedLayer, carry, enter, is_adapted, layer_state
from deltafit.adapters.module_view import ModuleView
from deltafit.adapters.shared import SharedTensors
from deltafit.errors import DeltafitError
from deltafit.methods import AttentionInsertion

WITH_VIRTUAL_TOKENS = "deltafit_virtual_tokens"
"""The name by which transformers finds this attention."""

# Their kernels take no mask in which virtual tokens could be seen by all.
_WITHOUT_MASK = ("flash_", "flex_", "paged|")


class AttentionView(ModuleView):
    """An attention: ``inputs`` is the block's width, ``outputs`` that of all its keys together.

    Attributes:
        width: of one head's keys.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, plain=False)
        config: Any = module.config
        heads, self.inputs = int(config.num_attention_heads), int(config.hidden_size)
        self.width = int(getattr(config, "head_dim", None) or self.inputs // heads)
        # Fewer of them where several heads of queries share one of keys and values.
        self.outputs = self.width * int(getattr(config, "num_key_value_heads", None) or heads)

    def to_parameter(self, view: Tensor) -> Tensor:
        """Return ``view`` as it is: an attention has no weight of its own."""
        return view


class AdaptedAttention(AdaptedLayer):
    """The part of an adapted attention's class that is ours."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the attention gives, with the active adapter's virtual tokens."""
        if layer_state(self).active is None:
            return super().forward(*args, **kwargs)
        config = self.__dict__["config"]
        rerouted = self.__dict__["config"] = _Rerouted(config)
        try:
            output = super().forward(*args, **kwargs)
        finally:
            self.__dict__["config"] = config
        if not rerouted.called:
            raise DeltafitError(
                f"{layer_state(self).original_class.__name__} computes attention past "
                "transformers' attention interface, so no virtual tokens can stand before its "
                "keys. Choose another method, such as lora or bottleneck."
            )
        return output


class _Rerouted:
    """A configuration as it is, but for the attention that it names."""

    _attn_implementation = WITH_VIRTUAL_TOKENS

    def __init__(self, config: Any) -> None:
        self.config, self.called = config, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def add_to_attention(
    module: nn.Module,
    adapter: str,
    method: AttentionInsertion,
    tensors: Mapping[str, Tensor],
    shared: SharedTensors,
) -> None:
    """Give an attention one more adapter, inactive. The tensors become its parameters."""
    if not is_adapted(module):
        from transformers import AttentionInterface

        AttentionInterface.register(WITH_VIRTUAL_TOKENS, attend_with_virtual_tokens)
        carry(module, AttentionView(module), AdaptedAttention)
    enter(module, adapter, method, tensors, shared)


def attend_with_virtual_tokens(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **options: Any,
) -> Any:
    """Let the tokens of each row attend to the active adapter's virtual tokens and to one another.

    Args:
        module: the attention that carries the adapter.
        query: ``[rows, heads, tokens, width]``.
        key: the same, of as many heads or of a divisor, and of the tokens in a cache as well.
        value: like ``key``.
        attention_mask: what the model's own attention takes: a mask, None, or what the engine puts
            in its place when the rows lie on one sheet.
        options: for the model's own attention.

    Raises:
        DeltafitError: the keys have another width than was foretold, or it takes no such mask.
    """
    state, rerouted = layer_state(module), module.__dict__["config"]
    rerouted.called = True
    assert state.active is not None
    method = state.methods[state.active]
    assert isinstance(method, AttentionInsertion)
    virtual = method.virtual_tokens(state.tensors(state.active))
    keys, values = (_by_head(*pair, module) for pair in zip(virtual, (key, value), strict=True))
    named = rerouted.config._attn_implementation
    if named.startswith(_WITHOUT_MASK):
        raise DeltafitError(
            f"The model runs with the attention {named!r}, which cannot show virtual tokens to all "
            "others. Load it with attn_implementation='sdpa' or 'eager'."
        )
    bias = options.get("position_bias")
    if bias is not None:  # virtual tokens have no place in a row that could be counted from
        options["position_bias"] = functional.pad(bias, (keys.shape[1], 0))
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        attention_mask = attention_mask.with_virtual_tokens(keys, values)
    else:
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        # Without a mask, eager attention hides nothing.
        attention_mask = _widened(attention_mask, query, key, keys, causal and named != "eager")
        key = torch.cat([keys.expand(len(key), -1, -1, -1), key], 2)
        value = torch.cat([values.expand(len(value), -1, -1, -1), value], 2)
    file = vars(sys.modules[state.original_class.__module__])
    own = file["ALL_ATTENTION_FUNCTIONS"].get_interface(named, file.get("eager_attention_forward"))
    return own(module, query, key, value, attention_mask, **options)


def _by_head(virtual: Tensor, like: Tensor, module: nn.Module) -> Tensor:
    """Return ``[count, heads · width]`` as ``[heads, count, width]``, as keys or values have it."""
    heads, width = like.shape[1], like.shape[3]
    if heads * width != virtual.shape[1]:
        raise DeltafitError(
            f"{layer_state(module).original_class.__name__} makes keys or values of {heads} heads, "
            f"{width} wide, where its configuration says {virtual.shape[1]} in all, so no virtual "
            "tokens can stand before them. Choose another method, such as lora or bottleneck."
        )
    return virtual.to(like.dtype).view(-1, heads, width).transpose(0, 1)


def _widened(
    mask: Tensor | None, query: Tensor, key: Tensor, keys: Tensor, causal: bool
) -> Tensor | None:
    """Return a mask in which every token sees the virtual ones too, ``[..., count + keys]``."""
    count = keys.shape[1]
    if mask is None:
        tokens = query.shape[2]
        if not causal or tokens == 1:
            return None
        seen = torch.ones(tokens, count + key.shape[2], dtype=torch.bool, device=query.device)
        return seen.tril(count)[None, None]
    # True is seen in a mask of truth values, and 0 is added to scores in any other.
    virtual = mask.new_full((*mask.shape[:-1], count), mask.dtype == torch.bool)
    return torch.cat([virtual, mask], -1)
