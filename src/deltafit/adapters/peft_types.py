"""The adapter types of Hugging Face PEFT that are known here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deltafit.adapters.peft_adalora import AdaLoRAFormat
from deltafit.adapters.peft_format import PeftAdapter, PeftFormat
from deltafit.adapters.peft_ia3 import IA3Format
from deltafit.adapters.peft_lora import LoRAFormat
from deltafit.adapters.peft_lycoris import LoHaFormat, LoKrFormat
from deltafit.adapters.peft_norms import NormsFormat
from deltafit.adapters.peft_vera import VeRAFormat
from deltafit.adapters.peft_virtual import PrefixFormat, PromptFormat
from deltafit.errors import DeltafitError
from deltafit.methods import Method

# The one list of types: saving and loading look here alone.
FORMATS: tuple[PeftFormat, ...] = (
    *(LoRAFormat(), AdaLoRAFormat(), IA3Format(), VeRAFormat()),
    *(LoHaFormat(), LoKrFormat(), NormsFormat(), PrefixFormat(), PromptFormat()),
)


def format_of(method: Method) -> PeftFormat | None:
    """Return the type that a method is written as; None where PEFT has none."""
    for form in FORMATS:
        if form.method is not None and isinstance(method, form.method):
            return form
    return None


def check_layers(model: nn.Module, method: Method, targets: Sequence[str]) -> None:
    """Raise a DeltafitError if in a layer PEFT does otherwise what it made an adapter for."""
    form = format_of(method)
    for target, why in (form.differences(model, method, targets) if form else {}).items():
        raise DeltafitError(
            f"The adapter was made with PEFT, and at {target!r} {why}, so it cannot be loaded "
            "here. Train it without that module."
        )


def from_peft(config: Any, tensors: Mapping[str, Tensor], folder: Path) -> PeftAdapter:
    """Read what PEFT wrote.

    Raises:
        DeltafitError: it is of no type that is known here, changes its base at the start, or holds
            a setting or tensor that has no place here; the sentence names it.
    """
    if not isinstance(config, dict):
        raise DeltafitError(f"{folder}/adapter_config.json holds no JSON object.")
    kind = config.get("peft_type")
    known = {form.peft_type: form for form in FORMATS}
    if kind not in known:
        *others, last = known
        raise DeltafitError(
            f"{folder}/adapter_config.json: peft_type is {kind!r}; only {', '.join(others)} and "
            f"{last} can be loaded here."
        )
    return known[kind].read(config, tensors, folder)
