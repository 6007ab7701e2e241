"""The file format of Hugging Face PEFT: what one of its adapter types is, and how it is read.

A type that is known here is a ``PeftFormat`` in a file of its own, and in ``peft_types``'s list.
Of replacements PEFT knows norms; full, head, last block and the rest have no type.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from deltafit.adapters.layers import view_of
from deltafit.adapters.module_view import ModuleView
from deltafit.errors import DeltafitError
from deltafit.methods import LayerMethod, Method
from deltafit.methods.checks import EXPRESSION

PREFIX = "base_model.model."
SHARED_PREFIX = "base_model."
_BASE_KEY = re.compile(r"(.+)\.base_layer(\.weight|\.bias)")
# Keys of every type that say nothing about the computation, or that the tensors say better.
_UNDERSTOOD = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "modules_to_save", "peft_type",
    "peft_version", "revision", "target_modules", "task_type",
}  # fmt: skip


@dataclass(frozen=True)
class PeftAdapter:
    """What a PEFT folder holds, in this package's terms.

    Attributes:
        method: the method, with exact module names.
        tensors: ``<module>.lora_A`` and the like, and replaced parameters by their names.
        replaced: names of the parameters stored whole.
        base: parameters of the base that PEFT stored too (those of adapted embeddings).
        shared: tensors that all layers share, where they are stored.
        notes: sentences about settings that were not understood.
    """

    method: Method
    tensors: dict[str, Tensor]
    replaced: tuple[str, ...]
    base: dict[str, Tensor]
    shared: dict[str, Tensor]
    notes: tuple[str, ...]


class PeftFormat(ABC):
    """One of PEFT's adapter types: its names and shapes of tensors, and its configuration.

    Attributes:
        peft_type: what the configuration calls it.
        title: what people call it.
        method: what of ours is written so, subclasses included; None where it is only read.
        prefix: what its names of tensors begin with.
        lookups: whether PEFT has it for embeddings.
        understood: its own keys of the configuration that need no note.
    """

    peft_type: ClassVar[str]
    title: ClassVar[str]
    method: ClassVar[type[Method] | None]
    prefix: ClassVar[str]
    lookups: ClassVar[bool]
    understood: ClassVar[frozenset[str]]
    before_names: ClassVar[str] = PREFIX
    """What stands before the names of modules in the file."""
    names_targets: ClassVar[bool] = True
    """Whether its configuration names the modules that are adapted."""

    def places(self, model: nn.Module, adapted: Sequence[str]) -> tuple[str, ...]:
        """Return the modules in which it has something of its own: the adapted ones.

        Args:
            model: the adapted model.
            adapted: names of the adapted modules.
        """
        return tuple(adapted)

    def to_peft(
        self, model: nn.Module, method: Method, name: str, tensor: Tensor
    ) -> tuple[str, Tensor]:
        """Return PEFT's name for a tensor of one of the places, and it in PEFT's shape.

        Args:
            model: the adapted model.
            method: of its adapter.
            name: ours, ``<module>.<leaf>``.
            tensor: ours.
        """
        return name, tensor

    def written(
        self,
        model: nn.Module,
        method: Method,
        tensors: Mapping[str, Tensor],
        adapted: Sequence[str],
    ) -> dict[str, Tensor]:
        """Return all of an adapter's tensors under PEFT's names.

        Args:
            model: the adapted model.
            method: of its adapter.
            tensors: ``<module>.<leaf>`` of the layers, and replaced parameters by their names.
            adapted: names of the adapted modules.
        """
        places = self.places(model, adapted)
        result = {}
        for name, tensor in tensors.items():
            theirs = name, tensor
            if name.rpartition(".")[0] in places:
                theirs = self.to_peft(model, method, name, tensor)
            result[self.before_names + theirs[0]] = theirs[1]
        return result

    def placed(
        self, model: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return tensors by our names, where the file alone could not say them.

        Args:
            model: with the adapter on it.
            own: the adapter's tensors in the layers, ``<module>.<leaf>``.
            tensors: as they were read.

        Raises:
            DeltafitError: they do not fit the model.
        """
        return dict(tensors)

    @abstractmethod
    def from_peft(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return ``<module>.<our leaf>`` and the tensor in our shape; None of another tensor.

        Args:
            name: PEFT's, with the module's, without what stands before all names.
            tensor: PEFT's.
        """

    @abstractmethod
    def settings(
        self, model: nn.Module, method: Method, targets: Sequence[str], shared: bool
    ) -> dict[str, Any]:
        """Return the type's own keys of the configuration, the fewest that say it all.

        Args:
            model: the adapted model.
            method: of its adapter.
            targets: names of the places.
            shared: whether what the layers share is stored too.
        """

    @abstractmethod
    def method_of(
        self, config: Mapping[str, Any], layers: Mapping[str, Tensor], folder: Path
    ) -> Method:
        """Return the method that a configuration of PEFT's means.

        Args:
            config: its keys.
            layers: the layers' tensors, by our names, in PEFT's shapes.
            folder: where they stand, for errors.

        Raises:
            DeltafitError: it cannot be loaded here; the sentence says why.
        """

    def check(self, config: Mapping[str, Any], folder: Path) -> None:
        """Raise a DeltafitError if a setting has no place here; trained biases have none."""
        if config.get("bias", "none") != "none":
            raise DeltafitError(
                f"{folder}/adapter_config.json: bias is {config['bias']!r}; only 'none' can be "
                "loaded."
            )

    def read(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
    ) -> PeftAdapter:
        """Read what PEFT wrote.

        Raises:
            DeltafitError: a setting or tensor has no place here; the sentence names it.
        """
        self.check(config, folder)
        ours: dict[str, Tensor] = {}
        layers: dict[str, Tensor] = {}
        base: dict[str, Tensor] = {}
        whole: list[str] = []
        for key, tensor in tensors.items():
            if self.shares(key):
                continue
            name = key.removeprefix(self.before_names)
            if found := self.from_peft(name, tensor):
                ours[found[0]], layers[found[0]] = found[1], tensor
            elif stored_base := _BASE_KEY.fullmatch(name):
                base[stored_base[1] + stored_base[2]] = tensor
            elif any(segment.startswith(self.prefix) for segment in name.split(".")):
                raise self.variant(name, folder)
            else:
                ours[name] = tensor
                whole.append(name)
        if not layers:
            raise DeltafitError(
                f"{folder} holds no tensor of {self.title}, so there is no adapter to load."
            )
        method = self.method_of(config, layers, folder)
        notes = tuple(
            f"adapter_config.json sets {key!r} to {value!r}, which is not known here and was "
            "ignored."
            for key, value in config.items()
            if key not in _UNDERSTOOD | self.understood
            and value not in (None, False, "none", {}, [], "")
        )
        # A replacement's own tensors are parameters trained whole, as the head's are.
        replaced = tuple(whole if isinstance(method, LayerMethod) else ours)
        return PeftAdapter(method, ours, replaced, base, stored_shared(self, tensors), notes)

    def shares(self, key: str) -> bool:
        """Return whether PEFT's name is that of a tensor that layers share."""
        return self.before_names == PREFIX and is_shared(key)

    def variant(self, name: str, folder: Path) -> DeltafitError:
        """Return the error for a tensor that the type's plain form does not have."""
        return DeltafitError(
            f"{folder}: the tensor {name!r} belongs to a variant of {self.title} that cannot be "
            "loaded here (such as one with a bias of B)."
        )

    def holds(self, model: nn.Module, method: Method, targets: Sequence[str]) -> bool:
        """Return whether PEFT has the type for these modules, and for such a method."""
        return not self.differences(model, method, targets)

    def differences(
        self, model: nn.Module, method: Method, targets: Sequence[str]
    ) -> dict[str, str]:
        """Return those of the layers in which PEFT does otherwise, and what, as a clause."""
        if not isinstance(method, LayerMethod):
            return {}
        views = {target: view_of(model.get_submodule(target)) for target in targets}
        found = {t: self.differs(method.for_module(t), view) for t, view in views.items()}
        return {target: why for target, why in found.items() if why is not None}

    def differs(self, method: LayerMethod, view: ModuleView) -> str | None:
        """Return what PEFT does otherwise in a layer, as a clause; None where it does the same."""
        lacking = view.lookup and not self.lookups
        return f"PEFT's {self.title} knows no embeddings" if lacking else None


def from_peft_tensors(form: PeftFormat | None, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by our names and in our shapes; what layers share is left out.

    Args:
        form: the type that they were written as; None where PEFT has none.
        tensors: as they are stored.
    """
    if form is None:
        return {key.removeprefix(PREFIX): t for key, t in tensors.items() if not is_shared(key)}
    result = {}
    for key, tensor in tensors.items():
        if not form.shares(key):
            name = key.removeprefix(form.before_names)
            ours, value = form.from_peft(name, tensor) or (name, tensor)
            result[ours] = value
    return result


def stored_shared(form: PeftFormat | None, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that layers share, by our names."""
    if form is None:
        return {}
    return {k.removeprefix(SHARED_PREFIX): t for k, t in tensors.items() if form.shares(k)}


def is_shared(key: str) -> bool:
    """Return whether PEFT's name is that of a tensor that layers share."""
    return key.startswith(SHARED_PREFIX) and not key.startswith(PREFIX)


def names_of(tensors: Iterable[str]) -> tuple[str, ...]:
    """Return the modules that tensors named ``<module>.<leaf>`` belong to, each once."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in tensors))


def expression_for(modules: Collection[str]) -> str:
    """Return the expression for exactly these modules.

    A name would match every module whose name it ends.
    """
    return EXPRESSION + "|".join(map(re.escape, modules))
