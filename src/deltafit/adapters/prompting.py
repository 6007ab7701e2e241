"""Virtual tokens before a text: the encoder is called with them, and gives the text's states."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from deltafit.adapters.layers import layer_state
from deltafit.adapters.structure import main_stack, within
from deltafit.errors import DeltafitError
from deltafit.methods import Prompt


def encoder_around(model: nn.Module) -> Any:
    """Return the innermost module around the blocks that knows its table of tokens.

    Raises:
        DeltafitError: there are no blocks, none such, or an encoder and a decoder.
    """
    stack = main_stack(model).name
    around = [
        module
        for name, module in model.named_modules()
        if within(stack, name) and hasattr(module, "get_input_embeddings")
    ]
    config: Any = getattr(around[-1], "config", None) if around else None
    if config is None or getattr(config, "is_encoder_decoder", False):
        raise DeltafitError(
            f"{type(model).__name__} is no encoder or decoder of transformers alone, so no virtual "
            "tokens can be put before its texts. Choose another method, such as lora."
        )
    return around[-1]


def lengthen_calls(encoder: nn.Module, table: nn.Module) -> None:
    """Let the encoder see virtual tokens while the table's active adapter has some.

    Args:
        encoder: a model of transformers.
        table: its embedding of tokens, which carries the adapter.
    """
    state = layer_state(table)
    if not state.hooks:
        calls = _LongerCalls(table)
        state.hooks.append(encoder.register_forward_pre_hook(calls.lengthen, with_kwargs=True))
        state.hooks.append(encoder.register_forward_hook(calls.shorten))


class _LongerCalls:
    """The hooks around an encoder whose table of tokens carries virtual ones."""

    def __init__(self, table: nn.Module) -> None:
        self._table = table

    def _virtual(self) -> Tensor | None:
        """Return the active adapter's virtual tokens, ``[count, width]``; None if it has none."""
        state = layer_state(self._table)
        method = None if state.active is None else state.methods[state.active]
        if state.active is None or not isinstance(method, Prompt):
            return None
        return method.virtual_embeddings(state.tensors(state.active))

    def lengthen(
        self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Put the virtual tokens before what the encoder is given."""
        virtual = self._virtual()
        if virtual is None:
            return None
        given = _by_name(encoder, args, kwargs)
        cache, ids = given.get("past_key_values"), given.pop("input_ids", None)
        if cache is not None and cache.get_seq_length():
            raise DeltafitError(
                "Virtual tokens stand before a whole text, and this call goes on behind a cache. "
                "Call the model with use_cache=False."
            )
        own: Tensor = (
            self._table(ids) if given.get("inputs_embeds") is None else given["inputs_embeds"]
        )
        count = len(virtual)
        before = virtual.to(own.dtype).expand(len(own), -1, -1)
        given["inputs_embeds"] = torch.cat([before, own], 1)
        for name in ("attention_mask", "token_type_ids", "position_ids"):
            if given.get(name) is not None:
                given[name] = _longer(name, given[name], count)
        return (), given

    def shorten(self, encoder: Any, args: Any, output: Any) -> Any:
        """Take the virtual tokens off what the encoder gives."""
        virtual = self._virtual()
        if virtual is None:
            return None
        count, pooled = len(virtual), getattr(output, "pooler_output", None)
        if not hasattr(output, "last_hidden_state"):
            raise DeltafitError(
                "Virtual tokens need the output by name: call with return_dict=True."
            )
        output.last_hidden_state = output.last_hidden_state[:, count:]
        if getattr(output, "hidden_states", None) is not None:
            output.hidden_states = tuple(states[:, count:] for states in output.hidden_states)
        if pooled is not None:
            # It was made of the first virtual token.
            output.pooler_output = encoder.pooler(output.last_hidden_state)
            if output.pooler_output.shape != pooled.shape:
                raise DeltafitError(
                    f"{type(encoder).__name__} pools its tokens in its own way, so virtual ones "
                    "cannot be left out. Choose another method, or a head that pools by itself."
                )
        return output


def _longer(name: str, tensor: Tensor, count: int) -> Tensor:
    """Return ``[rows, tokens]`` as ``[rows, count + tokens]``.

    Virtual tokens are seen, are of the first type, and have the first positions.
    """
    if tensor.ndim != 2:
        raise DeltafitError(
            f"Virtual tokens need a {name} of [rows, tokens]; this one has the shape "
            f"{list(tensor.shape)}."
        )
    rows = len(tensor)
    if name == "position_ids":
        first = torch.arange(count, device=tensor.device).expand(rows, -1)
        return torch.cat([first, tensor + count], 1)
    return torch.cat([tensor.new_full((rows, count), int(name == "attention_mask")), tensor], 1)


def _by_name(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by their names."""
    signature = inspect.signature(encoder.forward)
    given = dict(signature.bind(*args, **kwargs).arguments)
    rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    for name in rest:
        given.update(given.pop(name, {}))
    return given
