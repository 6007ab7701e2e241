"""What is trained: one method a file, all behind one interface."""

from collections.abc import Mapping

from deltafit.methods.adalora import AdaLoRA
from deltafit.methods.base import Layer, LayerMethod, Method, ModelParts, StepHook
from deltafit.methods.bitfit import BitFit
from deltafit.methods.bottleneck import Bottleneck
from deltafit.methods.delta import DeltaMethod
from deltafit.methods.dora import DoRA
from deltafit.methods.freeze_first import FreezeFirst
from deltafit.methods.full import Full
from deltafit.methods.head import Head
from deltafit.methods.ia3 import IA3
from deltafit.methods.insertion import (
    AttentionInsertion,
    BlockInsertion,
    Insertion,
    TextInsertion,
)
from deltafit.methods.last_blocks import LastBlocks
from deltafit.methods.loha import LoHa
from deltafit.methods.lokr import LoKr
from deltafit.methods.lora import LoRA
from deltafit.methods.modules import Modules
from deltafit.methods.norms import Norms
from deltafit.methods.parsing import method_from_dict as _method_from_dict
from deltafit.methods.parsing import parse_method as _parse_method
from deltafit.methods.prefix import Prefix
from deltafit.methods.prompt import Prompt
from deltafit.methods.sparse import Sparse
from deltafit.methods.vera import VeRA

# The one list of methods. Command line and result files take their names from here.
METHODS: dict[str, type[Method]] = {
    method.command_line_name: method
    for method in (
        *(Full, Head, LastBlocks, FreezeFirst, Modules, BitFit, Norms),
        *(LoRA, DoRA, AdaLoRA, LoHa, LoKr, IA3, VeRA, Sparse),
        *(Bottleneck, Prefix, Prompt),
    )
}


def parse_method(text: str) -> Method:
    """Return the method that ``"lora:rank=8,alpha=16"`` or ``"head"`` describes.

    Raises:
        UsageError: the name, a setting or a value is not known; the sentence lists what is.
    """
    return _parse_method(text, METHODS, {})


def method_with(text: str, settings: Mapping[str, str]) -> Method:
    """Return the method of ``parse_method`` with further settings, each as its own flag's text.

    Raises:
        UsageError: as ``parse_method``; or a setting is given in both places.
    """
    return _parse_method(text, METHODS, settings)


def method_from_dict(content: dict[str, object]) -> Method:
    """Return the method that ``Method.to_dict`` described.

    Raises:
        UsageError: the name or a setting is not known.
    """
    return _method_from_dict(content, METHODS)


__all__ = [
    "IA3",
    "METHODS",
    "AdaLoRA",
    "AttentionInsertion",
    "BitFit",
    "BlockInsertion",
    "Bottleneck",
    "DeltaMethod",
    "DoRA",
    "FreezeFirst",
    "Full",
    "Head",
    "Insertion",
    "LastBlocks",
    "Layer",
    "LayerMethod",
    "LoHa",
    "LoKr",
    "LoRA",
    "Method",
    "ModelParts",
    "Modules",
    "Norms",
    "Prefix",
    "Prompt",
    "Sparse",
    "StepHook",
    "TextInsertion",
    "VeRA",
    "method_from_dict",
    "method_with",
    "parse_method",
]
