"""An adapter from a fine-tuned model and its base: each Δ cut to a rank, or kept whole."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltafit.adapters.layers import view_of
from deltafit.adapters.low_rank import (
    Change,
    MatrixLoss,
    RankChoice,
    cut,
    spectrum_of_dense,
    stored_of,
)
from deltafit.adapters.model import base_parameters
from deltafit.adapters.peft_format import expression_for
from deltafit.adapters.saving import StoredAdapter
from deltafit.adapters.structure import is_excluded, layer_kind
from deltafit.errors import DeltafitError
from deltafit.methods import Sparse
from deltafit.methods.sparse import tensors_of


@dataclass(frozen=True)
class Extraction:
    """What a fine-tuned model changed, as far as an adapter holds it.

    Attributes:
        changes: low-rank changes by module; none if each is kept whole.
        dense: the changes kept whole, by module, each in its weight's view and in float32.
        losses: what the rank loses of each.
        whole: parameters that changed and are no matrices, to be stored whole, by name.
        left_out: the energy ‖ΔP‖² of parameters that changed and are left to the base.
    """

    changes: dict[str, Change]
    dense: dict[str, Tensor]
    losses: tuple[MatrixLoss, ...]
    whole: dict[str, Tensor]
    left_out: dict[str, float]

    @property
    def energy_lost(self) -> float:
        """The share of the energy of all changes, heads apart, that is lost, 0 to 1."""
        kept = sum(loss.energy - loss.lost for loss in self.losses)
        lost = sum(loss.lost for loss in self.losses) + sum(self.left_out.values())
        return lost / (kept + lost) if kept + lost > 0 else 0.0

    def stored(self, head: Mapping[str, Tensor]) -> StoredAdapter:
        """Return the adapter, a LoRA or, of whole changes, a sparse update that trains all entries.

        Args:
            head: parameters to store whole beside what changed, by name.
        """
        whole = dict(head) | self.whole
        if not self.dense:
            return stored_of(self.changes, whole)
        tensors = {
            f"{name}.{leaf}": tensor
            for name, delta in self.dense.items()
            for leaf, tensor in tensors_of(delta).items()
        }
        method = Sparse(target_modules=expression_for(self.dense), density=1.0)
        return StoredAdapter(method, tensors | whole, tuple(whole))


@torch.no_grad()
def extracted(
    base: nn.Module,
    tuned: nn.Module,
    choice: RankChoice | None,
    *,
    head: Collection[str],
    keep_others: bool,
) -> Extraction:
    """Return what changed between two models of one architecture: the matrices, and the rest.

    The matrices are the weights of linear layers, Conv1D, embeddings and convolutions. A module
    that holds none, such as a norm, can be stored whole; the bias of an adapted layer cannot, since
    PEFT's format stores whole modules or none, and is left out.

    Args:
        base: with no adapter.
        tuned: with no adapter, or with its parameters in the base's places.
        choice: the rank; None keeps each change whole.
        head: names of the head's parameters, which are not looked at.
        keep_others: whether to store whole what can be.

    Raises:
        DeltafitError: the two are not of one architecture, a value is not finite, or no matrix
            changed.
    """
    _check_alike(base, tuned, head)
    outside = {name.rpartition(".")[0] for name in head}
    changes: dict[str, Change] = {}
    dense: dict[str, Tensor] = {}
    losses: list[MatrixLoss] = []
    weights: set[str] = set()
    for name, module in base.named_modules():
        if layer_kind(module) is None or is_excluded(name, outside):
            continue
        weights.add(f"{name}.weight")
        view = view_of(module)
        # In float64, which holds the difference of two float32 values.
        delta = _weight(tuned.get_submodule(name)) - _weight(module)
        if not delta.any():
            continue
        if choice is None:
            dense[name], rank = delta.float(), min(delta.shape)
            loss = MatrixLoss(name, rank, rank, float(delta.square().sum()), 0.0)
        else:
            spectrum = spectrum_of_dense(delta.T if view.lookup else delta)
            changes[name], loss = cut(name, spectrum, choice, 1.0, torch.float32)
        losses.append(loss)
    if not losses:
        raise DeltafitError(
            "No matrix differs between the fine-tuned model and its base, so there is nothing to "
            "extract. Are they the right two?"
        )
    whole, left_out = _others(base, tuned, {*weights, *head}, keep_others)
    return Extraction(changes, dense, tuple(losses), whole, left_out)


def _weight(module: nn.Module) -> Tensor:
    """Return a weight in its view, in float64 on the CPU."""
    return view_of(module).view().cpu().double()


def _check_alike(base: nn.Module, tuned: nn.Module, head: Collection[str]) -> None:
    before, after = base_parameters(base), base_parameters(tuned)
    problems = [f"the base alone has {name!r}" for name in before if name not in after]
    problems += [f"the fine-tuned model alone has {name!r}" for name in after if name not in before]
    problems += [
        f"{name!r} has shape {list(after[name].shape)} and not {list(parameter.shape)}"
        for name, parameter in before.items()
        if name in after and after[name].shape != parameter.shape
    ]
    problems += [
        f"{name!r} of the fine-tuned model holds values that are not finite"
        for name, parameter in after.items()
        if not bool(parameter.isfinite().all())
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DeltafitError(
            f"The fine-tuned model does not come from this base: {'; '.join(problems[:3])}{more}. "
            "Name the base that it was fine-tuned from."
        )


def _others(
    base: nn.Module, tuned: nn.Module, known: Collection[str], keep: bool
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the changed parameters that are stored whole, and the energy of those that are not."""
    before, after = base_parameters(base), base_parameters(tuned)
    whole: dict[str, Tensor] = {}
    left_out: dict[str, float] = {}
    for name, parameter in before.items():
        change = after[name].cpu().double() - parameter.cpu().double()
        if name in known or not change.any():
            continue
        module_name = name.rpartition(".")[0]
        module = base.get_submodule(module_name)
        alone = layer_kind(module) is None and next(module.children(), None) is None
        if keep and module_name and alone:
            whole |= {
                f"{module_name}.{leaf}": after[f"{module_name}.{leaf}"].detach().cpu().clone()
                for leaf, own in module.named_parameters(recurse=False)
                if f"{module_name}.{leaf}" in after
            }
        else:
            left_out[name] = float(change.square().sum())
    return whole, left_out
