"""PEFT's prefix tuning and prompt tuning: one table of virtual tokens, and the head beside it.

PEFT counts a text's positions from behind the virtual tokens of a prefix, and a classifier's head
that reads the first token finds a virtual one there under prompt tuning. Where that means another
computation than ours, files go neither way.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltafit.adapters.attention import AttentionView
from deltafit.adapters.peft_format import SHARED_PREFIX, PeftFormat
from deltafit.adapters.prompting import encoder_around
from deltafit.errors import DeltafitError
from deltafit.methods import Method, Prefix, Prompt

TABLE = "prompt_embeddings"  # [count, ...], which names no module


class VirtualTokensFormat(PeftFormat):
    """A table of virtual tokens; the wrapped model keeps its own names."""

    prefix: ClassVar[str] = TABLE
    lookups: ClassVar[bool] = True
    before_names: ClassVar[str] = SHARED_PREFIX
    names_targets: ClassVar[bool] = False

    def written(
        self,
        model: nn.Module,
        method: Method,
        tensors: Mapping[str, Tensor],
        adapted: Sequence[str],
    ) -> dict[str, Tensor]:
        """Return the table and what is trained whole; our own names where PEFT has no such."""
        own = {n: t for n, t in tensors.items() if n.rpartition(".")[0] in adapted}
        if not self.holds(model, method, adapted):
            own = {}
        result = {self.before_names + n: t for n, t in tensors.items() if n not in own}
        return {TABLE: self.table(list(own.values())), **result} if own else result

    def table(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the table of what an adapter has in each of its places, in order."""
        return torch.cat(list(tensors), 1).contiguous()

    def from_peft(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return the table as it is: which modules it belongs to, the model says."""
        return (name, tensor) if name == TABLE else None

    def placed(
        self, model: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the table as the parts that belong to each place."""
        result = dict(tensors)
        if TABLE not in result:
            return result
        self.check_model(model)
        table, widths = result.pop(TABLE), [tensor.shape[1] for tensor in own.values()]
        if table.dim() != 2 or table.shape[1] != sum(widths):
            raise DeltafitError(
                f"The adapter does not fit this base: {TABLE!r} has the shape {list(table.shape)} "
                f"and not {[len(table), sum(widths)]}. Is it the base model that the adapter was "
                "made on?"
            )
        return result | dict(zip(own, table.split(widths, 1), strict=True))

    def check_model(self, model: nn.Module) -> None:
        """Raise a DeltafitError if what PEFT computes in this model is something else here."""


class PrefixFormat(VirtualTokensFormat):
    """Keys and values of all blocks side by side: the first one's keys, its values, and so on."""

    peft_type: ClassVar[str] = "PREFIX_TUNING"
    title: ClassVar[str] = "prefix tuning"
    method: ClassVar[type[Method] | None] = Prefix
    understood: ClassVar[frozenset[str]] = frozenset(
        {
            *("num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"),
            *("num_transformer_submodules", "encoder_hidden_size", "prefix_projection"),
            "init_weights",
        }
    )

    def holds(self, model: nn.Module, method: Method, targets: Sequence[str]) -> bool:
        """Return whether positions are counted as in PEFT, which gives the model a cache."""
        if not isinstance(method, Prefix) or not method.shift_positions:
            return False  # also in models that PEFT has no prefix for
        encoder = encoder_around(model)
        return "past_key_values" in inspect.signature(encoder.forward).parameters

    def settings(
        self, model: nn.Module, method: Method, targets: Sequence[str], shared: bool
    ) -> dict[str, Any]:
        """Return the sizes of the table."""
        assert isinstance(method, Prefix)
        view = AttentionView(model.get_submodule(targets[0]))
        return {
            "num_virtual_tokens": method.count,
            "num_layers": len(targets),
            "token_dim": view.outputs,
            "num_attention_heads": view.outputs // view.width,
            "num_transformer_submodules": 1,
        }

    def method_of(
        self, config: Mapping[str, Any], layers: Mapping[str, Tensor], folder: Path
    ) -> Method:
        """Return a prefix of all blocks; a perceptron that it was trained with is in the table."""
        return Prefix(count=len(layers[TABLE]), shift_positions=True)


class PromptFormat(VirtualTokensFormat):
    """The embeddings of the virtual tokens, of models that read from left to right."""

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    title: ClassVar[str] = "prompt tuning"
    method: ClassVar[type[Method] | None] = Prompt
    understood: ClassVar[frozenset[str]] = frozenset(
        {
            *("num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"),
            *("num_transformer_submodules", "prompt_tuning_init", "prompt_tuning_init_text"),
            *("tokenizer_name_or_path", "tokenizer_kwargs"),
        }
    )

    def holds(self, model: nn.Module, method: Method, targets: Sequence[str]) -> bool:
        """Return whether the head reads the last token: the first one is PEFT's virtual one."""
        return reads_last_token(model)

    def settings(
        self, model: nn.Module, method: Method, targets: Sequence[str], shared: bool
    ) -> dict[str, Any]:
        """Return the sizes of the table."""
        assert isinstance(method, Prompt)
        width = encoder_around(model).get_input_embeddings().embedding_dim
        return {
            "num_virtual_tokens": method.count,
            "token_dim": width,
            "num_transformer_submodules": 1,
        }

    def method_of(
        self, config: Mapping[str, Any], layers: Mapping[str, Tensor], folder: Path
    ) -> Method:
        """Return a prompt of as many tokens."""
        return Prompt(count=len(layers[TABLE]))

    def check_model(self, model: nn.Module) -> None:
        """Raise a DeltafitError if the head may read the first token."""
        if not reads_last_token(model):
            raise DeltafitError(
                f"{type(model).__name__} reads in both directions, and its head may read the first "
                "token: under PEFT's prompt tuning that is a virtual one, and here the text's own. "
                "So the adapter would predict otherwise; train it here with prompt."
            )


def reads_last_token(model: nn.Module) -> bool:
    """Return whether a model reads from left to right, so that no head can read a first token."""
    causal = [m.is_causal for m in encoder_around(model).modules() if hasattr(m, "is_causal")]
    return bool(causal) and all(causal)
