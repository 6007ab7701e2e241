"""Small models with convolutions, and convolutions of every geometry, for the tests of adapters."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Of four channels in and six out; positions of 7, or 7 × 6.
GEOMETRIES: dict[str, Callable[[], nn.Conv1d | nn.Conv2d]] = {
    "a line": lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1),
    "a line of points": lambda: nn.Conv1d(4, 6, 1, bias=False),
    "a line as long": lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=2),
    "a plane": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)),
    "points": lambda: nn.Conv2d(4, 6, 1, bias=False),
    "patches": lambda: nn.Conv2d(4, 6, 3, stride=3),
    "dilated": lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=(1, 2)),
    "round": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "mirrored": lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"),
    "in groups": lambda: nn.Conv2d(4, 6, (2, 3), groups=2, padding=1),
    "channel by channel": lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2),
    "a line in groups": lambda: nn.Conv1d(4, 6, 3, groups=2, stride=2, padding_mode="replicate"),
}


def one_convolution(name: str, seed: int = 0) -> nn.Sequential:
    """A model of one convolution, called 0, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(GEOMETRIES[name]()).double().eval()


def its_input(model: nn.Sequential, rows: int = 3) -> Tensor:
    """What such a model can be called with."""
    generator = torch.Generator().manual_seed(1)
    shape = (rows, 4, 7, 6)[: model[0].weight.ndim]
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Pictures(nn.Module):
    """A classifier of pictures: ``[rows, 3, 12, 10]`` → ``[rows, 4]``."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.point = nn.Conv2d(8, 12, 1, bias=False)
            self.line = nn.Conv1d(12, 8, 3, padding="same")
            self.head = nn.Linear(8, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.point(torch.tanh(self.depth(torch.tanh(self.stem(x))))))
        logits: Tensor = self.head(torch.tanh(self.line(x.flatten(2))).mean(2))
        return logits


def pictures(rows: int = 5) -> Tensor:
    """What ``Pictures`` classifies."""
    return torch.randn(rows, 3, 12, 10, generator=torch.Generator().manual_seed(2))
