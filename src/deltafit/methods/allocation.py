"""AdaLoRA's allocation of rank: which triplets of all layers are worth keeping."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deltafit.methods.base import StepHook, Tensors

_NAMES = ("lora_A", "lora_B", "lora_E")


class RankAllocator(StepHook):
    """Penalises what is not orthonormal, and zeroes the least important triplets' λ.

    The importance of a value w is the product of two moving averages, of I = |w·∂loss/∂w| and of
    how far I is from its own average (section 3.2, equations 9 to 11); a triplet's is that of its λ
    plus the means over its vectors (equation 8). How many are left falls along a cubic (section
    3.3, equation 12).

    Args:
        layers: the tensors of each layer.
        start: the last step at which all triplets are left.
        end: the first step with no more than ``kept`` left; the choice stands from then on.
        kept: triplets of all layers in the end.
        interval: steps between two choices.
        sensitivity: β₁.
        uncertainty: β₂.
        orthogonality: the penalty's weight γ.
    """

    def __init__(
        self,
        layers: Sequence[Tensors],
        *,
        start: int,
        end: int,
        kept: int,
        interval: int,
        sensitivity: float,
        uncertainty: float,
        orthogonality: float,
    ) -> None:
        self._layers = layers
        self._start, self._end = start, max(1, start, end)  # the first step is 1
        self._kept, self._interval = kept, interval
        self._sensitivity, self._uncertainty = sensitivity, uncertainty
        self._orthogonality = orthogonality
        self._all = sum(len(layer["lora_E"]) for layer in layers)
        self.state = {
            f"{kind}/{number}/{name}": torch.zeros_like(layer[name], requires_grad=False)
            for number, layer in enumerate(layers)
            for name in _NAMES
            for kind in ("importance", "deviation")
        }
        device = layers[0]["lora_E"].device
        self.state["left"] = torch.ones(self._all, dtype=torch.bool, device=device)

    def budget(self, step: int) -> int:
        """Return how many triplets are left after a step, 1 being the first."""
        if step >= self._end:
            return self._kept
        if step <= self._start:
            return self._all
        share = 1 - (step - self._start) / (self._end - self._start)
        return int((self._all - self._kept) * share**3 + self._kept)

    def penalty(self) -> Tensor:
        """Return γ times the mean of ‖PᵀP - I‖ and ‖QQᵀ - I‖, Frobenius norms."""
        matrices = [m for layer in self._layers for m in (layer["lora_A"], layer["lora_B"].T)]
        norms = [
            torch.linalg.matrix_norm(m @ m.T - torch.eye(len(m), dtype=m.dtype, device=m.device))
            for m in matrices
        ]
        return self._orthogonality * torch.stack(norms).mean()

    def settled(self, step: int) -> bool:
        """Return whether no more than ``kept`` triplets are left after a step."""
        return step >= self._end

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Update the averages and zero what the budget does not hold."""
        if step < self._end:
            self._update()
        if step == self._end or (self._start < step < self._end and step % self._interval == 0):
            scores = self._scores()
            order = scores.argsort(descending=True, stable=True)
            self.state["left"].zero_()
            self.state["left"][order[: self.budget(step)]] = True
        elif step < self._end:
            return  # between two choices a triplet may come back
        lambdas = [layer["lora_E"] for layer in self._layers]
        for values, left in zip(
            lambdas, self.state["left"].split([len(v) for v in lambdas]), strict=True
        ):
            values.masked_fill_(~left.unsqueeze(1), 0)

    def _update(self) -> None:
        for number, layer in enumerate(self._layers):
            for name in _NAMES:
                tensor = layer[name]
                if tensor.grad is None:
                    continue
                now = (tensor * tensor.grad).abs()
                importance = self.state[f"importance/{number}/{name}"]
                deviation = self.state[f"deviation/{number}/{name}"]
                importance.lerp_(now, 1 - self._sensitivity)
                deviation.lerp_((now - importance).abs(), 1 - self._uncertainty)

    def _scores(self) -> Tensor:
        """Return the importance of every triplet, layer by layer, ``[triplets]``."""
        scores = []
        for number in range(len(self._layers)):
            a, b, e = (
                self.state[f"importance/{number}/{name}"] * self.state[f"deviation/{number}/{name}"]
                for name in _NAMES
            )
            scores.append(e.flatten() + a.mean(1) + b.mean(0))
        return torch.cat(scores)
