"""The interface of insertions: what adds computation to a model, and where."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from deltafit.methods.base import Layer, LayerMethod, Tensors
from deltafit.methods.checks import check_layers

_VIRTUAL = "has virtual tokens, which all rows of a pass attend to"


class BlockModules(Protocol):
    """The names of modules in a model's blocks, by what they do, as an insertion sees them."""

    def attention_outputs(self) -> tuple[str, ...]:
        """Return the linear layers behind attention, one a block."""

    def feed_forward_outputs(self) -> tuple[str, ...]:
        """Return the linear layers that end the feed-forward parts, one a block."""

    def attentions(self) -> tuple[str, ...]:
        """Return the modules that compute attention, one a block."""

    def input_embeddings(self) -> tuple[str, ...]:
        """Return the one table of tokens that the blocks are given."""


@dataclass(frozen=True)
class Insertion(LayerMethod):
    """A method that adds computation to some of the model's modules; it does not merge."""

    @abstractmethod
    def places(self, modules: BlockModules) -> tuple[str, ...]:
        """Return the names of the modules to sit in, of all blocks."""


@dataclass(frozen=True)
class BlockInsertion(Insertion):
    """An insertion in blocks, of which some may be chosen.

    Raises:
        UsageError: a block's index is no whole number.
    """

    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.layers)


@dataclass(frozen=True)
class AttentionInsertion(BlockInsertion):
    """An insertion in attention itself: all tokens of a text attend to virtual ones as well."""

    apart: ClassVar[str | None] = _VIRTUAL

    @abstractmethod
    def virtual_tokens(self, tensors: Tensors) -> tuple[Tensor, Tensor]:
        """Return the virtual tokens' keys and values, ``[count, heads · width]`` each."""

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return ``y``: nothing is done behind attention."""
        return y


@dataclass(frozen=True)
class TextInsertion(Insertion):
    """An insertion before the text itself: embeddings of virtual tokens."""

    apart: ClassVar[str | None] = _VIRTUAL

    def places(self, modules: BlockModules) -> tuple[str, ...]:
        """Return the table of tokens."""
        return modules.input_embeddings()

    @abstractmethod
    def virtual_embeddings(self, tensors: Tensors) -> Tensor:
        """Return the virtual tokens' embeddings, ``[count, width]``."""

    def post(self, layer: Layer, x: Tensor, y: Tensor, tensors: Tensors) -> Tensor:
        """Return ``y``: a token's own embedding stays."""
        return y
