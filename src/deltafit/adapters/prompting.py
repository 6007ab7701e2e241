"""Virtual tokens before a text: the encoder is called with them, and gives the text's states.

Where the virtual tokens are keys and values alone, the text may still be called with the positions
behind them.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from deltafit.adapters.layers import layer_state
from deltafit.adapters.structure import main_stack, within
from deltafit.errors import DeltafitError
from deltafit.methods import LayerMethod, TextInsertion

_BEFORE = "past_key_values_length"  # what BERT's family counts positions from


def encoder_around(model: nn.Module) -> Any:
    """Return the innermost module around the blocks that knows its table of tokens.

    Raises:
        DeltafitError: there are no blocks, none such, an encoder and a decoder, or one that does
            not compute the same with embeddings in the place of numbers.
    """
    stack = main_stack(model).name
    around = [
        module
        for name, module in model.named_modules()
        if within(stack, name) and hasattr(module, "get_input_embeddings")
    ]
    config: Any = getattr(around[-1], "config", None) if around else None
    if getattr(config, "token_dropout", False):
        raise DeltafitError(
            f"{type(around[-1]).__name__} rescales the embeddings of token numbers "
            "(token_dropout), which it does not do with embeddings that it is given, so no virtual "
            "tokens can be put before its texts. Choose another method, such as lora."
        )
    if config is None or getattr(config, "is_encoder_decoder", False):
        raise DeltafitError(
            f"{type(model).__name__} is no encoder or decoder of transformers alone, so no virtual "
            "tokens can be put before its texts. Choose another method, such as lora."
        )
    return around[-1]


def check_positions(model: nn.Module) -> None:
    """Raise a DeltafitError if a text's positions cannot be counted from behind virtual tokens."""
    encoder = encoder_around(model)
    if _counts_from(encoder) is None and not _takes(encoder, "position_ids"):
        raise DeltafitError(
            f"{type(encoder).__name__} cannot be told a text's positions, so they cannot be "
            "counted from behind virtual tokens. Leave shift_positions out."
        )


def hook_calls(model: nn.Module, carrier: nn.Module) -> None:
    """Let the encoder see virtual tokens, or count from behind them, as the active adapter says.

    Args:
        model: around an encoder of transformers.
        carrier: a module of it that carries the adapter; the hooks go when its last one does.
    """
    state = layer_state(carrier)
    if state.hooks:
        return
    encoder, calls = encoder_around(model), _Calls(carrier)
    state.hooks.append(encoder.register_forward_pre_hook(calls.lengthen, with_kwargs=True))
    state.hooks.append(encoder.register_forward_hook(calls.shorten))
    if (embeddings := _counts_from(encoder)) is not None:
        state.hooks.append(embeddings.register_forward_pre_hook(calls.count_on, with_kwargs=True))


class _Calls:
    """The hooks around an encoder of which one module carries virtual tokens."""

    def __init__(self, carrier: nn.Module) -> None:
        self._carrier = carrier

    def _method(self) -> LayerMethod | None:
        state = layer_state(self._carrier)
        return None if state.active is None else state.methods[state.active]

    def _virtual(self) -> Tensor | None:
        """Return the active adapter's virtual tokens, ``[count, width]``; None if it has none."""
        state, method = layer_state(self._carrier), self._method()
        if state.active is None or not isinstance(method, TextInsertion):
            return None
        return method.virtual_embeddings(state.tensors(state.active))

    def lengthen(
        self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Put the virtual tokens before what the encoder is given, or count from behind them."""
        method, virtual = self._method(), self._virtual()
        if method is None or not method.taken_positions:
            return None
        given = _by_name(encoder, args, kwargs)
        cache = given.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            raise DeltafitError(
                "Virtual tokens stand before a whole text, and this call goes on behind a cache. "
                "Call the model with use_cache=False."
            )
        if virtual is None:
            if _counts_from(encoder) is None:
                _shift(given, method.taken_positions)
            return (), given
        ids, own = given.pop("input_ids", None), given.get("inputs_embeds")
        if own is None:
            own = self._carrier(ids)
        count = len(virtual)
        before = virtual.to(own.dtype).expand(len(own), -1, -1)
        given["inputs_embeds"] = torch.cat([before, own], 1)
        for name in ("attention_mask", "token_type_ids", "position_ids"):
            if given.get(name) is not None:
                given[name] = _longer(name, given[name], count)
        return (), given

    def count_on(
        self, embeddings: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Let embeddings that count positions begin behind the virtual tokens."""
        method = self._method()
        if method is None or isinstance(method, TextInsertion) or not method.taken_positions:
            return None
        if kwargs.get("position_ids") is not None:
            shifted = kwargs["position_ids"] + method.taken_positions
            return args, {**kwargs, "position_ids": shifted}
        return args, {**kwargs, _BEFORE: method.taken_positions}

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
        # As an encoder's own states lie: torch's product with a head that has no bias rounds what
        # is not contiguous otherwise while the head trains.
        output.last_hidden_state = output.last_hidden_state[:, count:].contiguous()
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


def _shift(given: dict[str, Any], count: int) -> None:
    """Give a call the positions of its tokens, ``count`` on."""
    places = given.get("position_ids")
    if places is None:
        own = given.get("input_ids")
        own = given["inputs_embeds"] if own is None else own
        places = torch.arange(own.shape[1], device=own.device).expand(len(own), -1)
    given["position_ids"] = places + count


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


def _counts_from(encoder: nn.Module) -> nn.Module | None:
    """Return the module that counts positions from a number that it is given, if there is one."""
    embeddings = getattr(encoder, "embeddings", None)
    return embeddings if isinstance(embeddings, nn.Module) and _takes(embeddings, _BEFORE) else None


def _takes(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters
