"""Watching the gradients of the first steps: what never gets one is not being trained."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from deltafit.errors import TrainingError

WATCHED_STEPS = 3


class GradientWatchdog:
    """Stops a run in which a tensor's gradient has always been zero.

    A tensor may rightly have a zero gradient at first: with B = 0 every A has none, and behind a
    head that starts at zero nothing has. After three applied steps all have had one.

    A tensor outside the graph (a pooler that the head does not read) gets no gradient at all. It
    is named and left out, unless it is everything but the head: then the graph was cut, as
    reentrant checkpointing over a frozen base does (PEFT#1142).

    Args:
        names: of the trained tensors.
        head: those among them that make up the head.

    Attributes:
        outside: names of tensors that take no part in the loss at all, once known.
    """

    def __init__(self, names: tuple[str, ...], head: Collection[str] = ()) -> None:
        self.outside: tuple[str, ...] = ()
        self._head = set(head)
        self._silent = set(names)
        self._unreached = set(names)
        self._steps = 0

    @property
    def watching(self) -> bool:
        """Whether the first steps are not over."""
        return self._steps < WATCHED_STEPS

    def look(self, trainable: Mapping[str, nn.Parameter]) -> None:
        """Look at the gradients of one step that will be applied.

        Raises:
            TrainingError: at the last watched step, a tensor had only zeros.
        """
        self._steps += 1
        for name in tuple(self._silent):
            gradient = trainable[name].grad
            if gradient is not None:
                self._unreached.discard(name)
                if bool(torch.count_nonzero(gradient)):
                    self._silent.discard(name)
        if self.watching:
            return
        self.outside = tuple(name for name in trainable if name in self._unreached)
        stuck = [name for name in trainable if name in self._silent - self._unreached]
        body = set(trainable) - self._head or set(trainable)
        if body <= self._unreached:
            stuck = [name for name in trainable if name in self._unreached]
        if stuck:
            self._refuse(stuck, len(trainable))

    def _refuse(self, stuck: list[str], total: int) -> None:
        shown = ", ".join(stuck[:3])
        more = f" and {len(stuck) - 3} more" if len(stuck) > 3 else ""
        raise TrainingError(
            f"was stopped after {WATCHED_STEPS} steps: the gradient of {len(stuck)} of {total} "
            f"trained tensors has always been zero ({shown}{more}). Usual causes: "
            "gradient checkpointing over frozen inputs, a target that the model's forward never "
            "uses, or gradients too small for fp16."
        )

    def state(self) -> dict[str, object]:
        """Return what a checkpoint keeps."""
        return {
            "steps": self._steps,
            "silent": sorted(self._silent),
            "unreached": sorted(self._unreached),
            "outside": list(self.outside),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave."""
        self._steps = int(state["steps"])
        self._silent = set(state["silent"])
        self._unreached = set(state["unreached"])
        self.outside = tuple(state["outside"])
