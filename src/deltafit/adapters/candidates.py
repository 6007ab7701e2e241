"""The adaptable layers of a model by the ends of their names: what can be given as a target."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from deltafit.adapters.structure import LayerKind, is_excluded, layer_kind, layer_shape


@dataclass(frozen=True)
class Candidate:
    """Adaptable layers that share the end of their names.

    Args:
        name: the shared end, such as ``query``; a name to give as a target.
        kind: "linear", "conv1d" (GPT-2's), "embedding" or "convolution".
        shapes: their distinct ``(inputs, outputs)``, in the order of the model.
        modules: their full names.
    """

    name: str
    kind: LayerKind
    shapes: tuple[tuple[int, int], ...]
    modules: tuple[str, ...]

    def __str__(self) -> str:
        layers = f"{len(self.modules)} layer{'s' if len(self.modules) > 1 else ''}"
        arrow = "×" if self.kind == "embedding" else "→"
        shapes = ", ".join(f"{inputs}{arrow}{outputs}" for inputs, outputs in self.shapes)
        return f"{self.name} ({layers}, {shapes})"


def candidates(model: nn.Module, exclude: Collection[str] = ()) -> tuple[Candidate, ...]:
    """Return the adaptable layers outside ``exclude``, grouped by the last part of their names."""
    groups: dict[tuple[str, LayerKind], list[str]] = {}
    for name, module in model.named_modules():
        kind = layer_kind(module)
        if kind is not None and not is_excluded(name, exclude):
            groups.setdefault((leaf_name(name), kind), []).append(name)
    return tuple(
        Candidate(name, kind, _shapes(model, modules), tuple(modules))
        for (name, kind), modules in groups.items()
    )


def leaf_name(module_name: str) -> str:
    """Return the last segment of a module name, with the one before where the last is a number.

    "encoder.layer.0.attention.query" gives "query"; "user.0" stays, for "0" alone says nothing.
    """
    segments = module_name.split(".")
    start = len(segments) - 1
    while start > 0 and segments[start].isdigit():
        start -= 1
    return ".".join(segments[start:])


def _shapes(model: nn.Module, modules: list[str]) -> tuple[tuple[int, int], ...]:
    return tuple(dict.fromkeys(layer_shape(model.get_submodule(name)) for name in modules))
