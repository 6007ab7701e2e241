"""An adapter on disk: its tensors and, where PEFT has the type, ``adapter_config.json``.

The tensors file carries the method as metadata, so that it reads back exactly; PEFT ignores it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from deltafit.adapters.injection import adapt
from deltafit.adapters.layers import layer_state, view_of
from deltafit.adapters.model import (
    Adapter,
    activate,
    adapter_tensors,
    base_parameters,
    disabled,
    model_adapters,
    remove_adapter,
    trained_tensors,
)
from deltafit.adapters.peft_format import from_peft_tensors, stored_shared
from deltafit.adapters.peft_types import check_layers, format_of, from_peft
from deltafit.adapters.peft_writing import (
    tied_copies,
    to_peft_config,
    to_peft_shared,
    to_peft_tensors,
)
from deltafit.adapters.quantised import Quantisation
from deltafit.adapters.quantising import QUANTISED, quantisation_of
from deltafit.adapters.tied import refuse_untied, under_first_names
from deltafit.errors import DeltafitError
from deltafit.files import read_json, read_tensors, write_json_atomically, write_tensors_atomically
from deltafit.methods import LayerMethod, Method, method_from_dict

TENSORS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_METADATA = "deltafit"


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as read from disk, before it is put on a model.

    Attributes:
        method: what was trained.
        tensors: ``<module>.<tensor>`` of the layers, and replaced parameters by their names.
        replaced: names of the parameters stored whole.
        base: parameters that the base must have, bit for bit, where the file holds such.
        shared: frozen tensors that all layers share, where the file holds them.
        foreign: whether PEFT wrote it. Then a tied parameter stored under one of its names is meant
            for that place alone, and a layer may compute something else than here.
        notes: sentences about what was not understood.
        corrects: see ``Adapter``.
    """

    method: Method
    tensors: dict[str, Tensor]
    replaced: tuple[str, ...]
    base: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    foreign: bool = False
    notes: tuple[str, ...] = ()
    corrects: Quantisation | None = None


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    name: str = "default",
    *,
    base_name: str | None = None,
    task_type: str | None = None,
) -> None:
    """Write an adapter's tensors and, where PEFT knows the method, its configuration.

    Args:
        model: the adapted model.
        folder: made if need be; each file is written whole or not at all.
        name: which adapter of the model.
        base_name: what PEFT should load as the base.
        task_type: PEFT's task type, such as ``"SEQ_CLS"``; None where it has none.

    Raises:
        DeltafitError: there is no such adapter, a tensor is empty, or the disk refuses.
    """
    folder, state = Path(folder), model_adapters(model)
    if name not in state.adapters:
        raise DeltafitError(f"The model has no adapter {name!r} to save.")
    if state.merged is not None and state.active == name:
        raise DeltafitError(f"The adapter {name!r} is merged; unmerge the model before saving it.")
    adapter = state.adapters[name]
    replaced = tuple(adapter.replaced)
    method, tensors = _as_kept(model, name)
    form, config, shared = format_of(method), None, _shared_to_store(model, adapter)
    # What makes up for a rounding would be added to whatever base PEFT loads.
    if form is not None and not adapter.corrects and form.holds(model, method, adapter.targets):
        config = to_peft_config(  # made first: it may be refused
            form, model, method, adapter.targets, replaced,
            shared=bool(shared), base_name=base_name, task_type=task_type,
        )  # fmt: skip
        tensors |= tied_copies(model, tensors)
    stored = to_peft_tensors(form, model, method, tensors, adapter.targets)
    metadata: dict[str, Any] = {"method": method.to_dict(), "replaced": replaced}
    if adapter.corrects is not None:
        metadata["corrects"] = adapter.corrects
    write_tensors_atomically(
        folder / TENSORS_FILE,
        stored | to_peft_shared(shared),
        # One key: safetensors writes several in a random order, and equal adapters would differ.
        {_METADATA: json.dumps(metadata)},
    )
    if config is not None:
        write_json_atomically(folder / CONFIG_FILE, config)
    else:
        (folder / CONFIG_FILE).unlink(missing_ok=True)  # of an adapter saved here before


def _as_kept(model: nn.Module, name: str) -> tuple[Method, dict[str, Tensor]]:
    """Return the method that an adapter is saved by, and its tensors by that method's names."""
    adapter = model_adapters(model).adapters[name]
    if not isinstance(adapter.method, LayerMethod):
        return adapter.method, dict(adapter.replaced)
    layers = {target: layer_state(model.get_submodule(target)) for target in adapter.targets}
    method = adapter.method.kept({target: s.tensors(name) for target, s in layers.items()})
    tensors = {
        f"{target}.{leaf}": tensor.contiguous()
        for target, state in layers.items()
        for leaf, tensor in state.kept_tensors(name).items()
    }
    return method, tensors | adapter.replaced


def _shared_to_store(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """Return the tensors that an adapter's layers share, if they are not those its method makes."""
    own = adapter.shared.tensors
    if not isinstance(adapter.method, LayerMethod) or not own:
        return {}
    views = [view_of(model.get_submodule(target)) for target in adapter.targets]
    made = adapter.method.shared_tensors(views)
    return {} if all(torch.equal(own[name], made[name]) for name in own) else own


def read_adapter(folder: str | Path) -> StoredAdapter:
    """Read an adapter folder of ours or of PEFT's.

    Raises:
        DeltafitError: a file is missing or damaged, or holds what cannot be loaded here.
    """
    folder = Path(folder)
    path = folder / TENSORS_FILE
    if not path.is_file():
        pickled = folder / "adapter_model.bin"
        hint = (
            f" {pickled.name} is a pickle, which can run any code, and is never loaded; save it "
            "as safetensors with PEFT."
            if pickled.is_file()
            else ""
        )
        raise DeltafitError(f"{folder} holds no {TENSORS_FILE}, so it is no adapter.{hint}")
    tensors = _as_float32(read_tensors(path))
    with safe_open(path, framework="pt") as file:
        metadata = (file.metadata() or {}).get(_METADATA)
    if metadata is None:
        foreign = from_peft(read_json(folder / CONFIG_FILE), tensors, folder)
        return StoredAdapter(
            foreign.method, foreign.tensors, foreign.replaced, foreign.base, foreign.shared,
            foreign=True, notes=foreign.notes,
        )  # fmt: skip
    try:
        content = json.loads(metadata)
        method, replaced = method_from_dict(content["method"]), tuple(content["replaced"])
        corrects = content.get("corrects")
        if corrects not in (None, *QUANTISED):
            raise ValueError(corrects)
    except (ValueError, KeyError, TypeError) as error:
        raise DeltafitError(
            f"{path} does not say what was trained (its metadata is damaged); restore a copy."
        ) from error
    if (folder / CONFIG_FILE).exists():
        read_json(folder / CONFIG_FILE)  # only PEFT needs it, but damaged it is not as it was saved
    form = format_of(method)
    ours, shared = from_peft_tensors(form, tensors), stored_shared(form, tensors)
    return StoredAdapter(method, ours, replaced, shared=shared, corrects=corrects)


def load_adapter(
    model: nn.Module, stored: StoredAdapter, name: str = "default", *, trainable: bool = False
) -> None:
    """Put a stored adapter on its base and make it active. Strict: every tensor finds its place.

    Raises:
        DeltafitError: tensors are missing, left over or of another shape, or untied where the
            model's are tied; each is named, and the model is as it was. Or the adapter makes up
            for another rounding of the base's weights, or PEFT does otherwise in its layers.
    """
    _check_rounding(model, stored.corrects)
    if stored.foreign:
        refuse_untied(model, stored.replaced)
    tensors = under_first_names(model, stored.tensors)
    with disabled(model):
        _check_base(model, stored.base)
    active = model_adapters(model).active
    adapt(
        model,
        stored.method,
        name=name,
        head=stored.replaced,
        initial={n: stored.tensors[n] for n in stored.replaced if n in stored.tensors},
    )
    form, adapter = format_of(stored.method), model_adapters(model).adapters[name]
    try:
        if stored.foreign:
            check_layers(model, adapter.method, adapter.targets)
        if form is not None:
            own = adapter_tensors(model, name)
            layers = {n: tensor for n, tensor in own.items() if n not in adapter.replaced}
            tensors = form.placed(model, layers, tensors)
        fill_adapter(model, name, tensors)
        _fill_shared(adapter, stored.shared)
        adapter.corrects = stored.corrects
    except DeltafitError:
        remove_adapter(model, name)
        activate(model, active)
        raise
    for tensor in trained_tensors(model, name).values():
        tensor.requires_grad_(trainable)


def _check_rounding(model: nn.Module, corrects: Quantisation | None) -> None:
    present = quantisation_of(model)
    if corrects is not None and present != corrects:
        stored = f"stored in {present}" if present is not None else "not quantised"
        first = "Load the base again and store" if present is not None else "Store"
        raise DeltafitError(
            f"The adapter makes up for what storing the base's weights in {corrects} takes from "
            f"them (LoftQ), and this base's are {stored}, which takes something else or nothing. "
            f"{first} them so first: deltafit.adapters.quantise(model, {corrects!r})."
        )


def _check_base(model: nn.Module, expected: Mapping[str, Tensor]) -> None:
    present = base_parameters(model)
    for parameter, value in expected.items():
        if parameter not in present or not torch.equal(value, present[parameter].cpu().to(value)):
            raise DeltafitError(
                f"The adapter was made on a base with another {parameter!r} (it may have more "
                "tokens). Load that base."
            )


def fill_adapter(model: nn.Module, name: str, tensors: dict[str, Tensor]) -> None:
    """Copy values into an adapter's tensors; nothing is changed unless all fit.

    Raises:
        DeltafitError: a tensor is missing, left over or of another shape.
    """
    own = adapter_tensors(model, name)
    problems = [f"{n!r} is missing" for n in own if n not in tensors]
    problems += [f"{n!r} has no place in the model" for n in tensors if n not in own]
    problems += [
        f"{n!r} has shape {list(tensors[n].shape)} and not {list(own[n].shape)}"
        for n in own
        if n in tensors and tensors[n].shape != own[n].shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DeltafitError(
            f"The adapter does not fit this base: {'; '.join(problems[:3])}{more}. Is it the base "
            "model that the adapter was made on?"
        )
    for n, parameter in own.items():
        parameter.data.copy_(tensors[n])


def _fill_shared(adapter: Adapter, given: Mapping[str, Tensor]) -> None:
    """Let an adapter's layers share the given tensors, if there are any."""
    own = adapter.shared.tensors
    shapes = {name: list(tensor.shape) for name, tensor in given.items()}
    wanted = {name: list(tensor.shape) for name, tensor in own.items()}
    if given and shapes != wanted:
        raise DeltafitError(
            f"The adapter does not fit this base: the tensors that its layers share have the "
            f"shapes {shapes} and not {wanted}. Is it the base model that the adapter was made on?"
        )
    if given:
        adapter.shared.replace(given)


def _as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return half-precision tensors as float32, in which adapters are kept; others as they are."""
    half = (torch.float16, torch.bfloat16)
    return {n: t.float() if t.dtype in half else t for n, t in tensors.items()}
