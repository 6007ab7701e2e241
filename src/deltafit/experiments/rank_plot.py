"""The rank of each matrix's update, or another figure of it, as a picture: blocks by matrices."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deltafit.adapters import read_adapter
from deltafit.adapters.saving import CONFIG_FILE
from deltafit.experiments.drawing import wrapped
from deltafit.files import read_json

_INDEX = re.compile(r"\.(\d+)\.")
OUTSIDE = "–"  # the column of what is in no block


def learned_ranks(adapter: Path) -> dict[str, int]:
    """Return the rank of each adapted module's update; empty where all have the same.

    Of a module that lost all of its rank, the file holds one row of zeros: that is rank 0.

    Args:
        adapter: a folder with a saved adapter.

    Raises:
        DeltafitError: the folder holds no whole adapter.
    """
    config = adapter / CONFIG_FILE
    # A replacement has no such file, and may be as large as the model.
    if not config.is_file() or not read_json(config).get("rank_pattern"):
        return {}
    tensors = read_adapter(adapter).tensors
    ranks = {
        name.removesuffix(".lora_A"): int((rows != 0).any(1).sum())
        for name, rows in tensors.items()
        if name.endswith(".lora_A")
    }
    return ranks if len(set(ranks.values())) > 1 else {}


def rank_plot(ranks: Mapping[str, int], title: str) -> Figure:
    """Draw ranks as a table of numbers and shades: a row for each matrix, a column for each block.

    Args:
        ranks: by full module name, such as "encoder.layer.3.attention.self.query"; at least one.
        title: what was trained.
    """
    return matrix_plot(ranks, title, "rank", lambda rank: f"{rank:.0f}", whole=True)


def matrix_plot(
    values: Mapping[str, float],
    title: str,
    unit: str,
    shown: Callable[[float], str],
    *,
    whole: bool = False,
) -> Figure:
    """Draw a figure of each matrix as `rank_plot` does.

    Args:
        values: by full module name; at least one, none negative.
        title: what was trained.
        unit: of the values, beside the bar of shades.
        shown: how a value is written.
        whole: whether the bar counts in whole numbers.
    """
    places = {module: matrix_and_block(module) for module in values}
    matrices = list(dict.fromkeys(matrix for matrix, _ in places.values()))
    blocks = sorted({block for _, block in places.values()}, key=block_order)
    table = np.full((len(matrices), len(blocks)), np.nan)
    for module, (matrix, block) in places.items():
        table[matrices.index(matrix), blocks.index(block)] = values[module]
    wide = max(len(shown(value)) for value in values.values())
    width = 2.6 + 0.075 * max(map(len, matrices)) + max(0.42, 0.1 * wide) * len(blocks)
    figure = Figure(figsize=(width, 1.5 + 0.36 * len(matrices)), layout="constrained")
    axes = figure.subplots()
    highest = max(*values.values(), 1) if whole else max(values.values()) or 1.0
    image = axes.imshow(table, cmap="Blues", vmin=0, vmax=highest, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if not np.isnan(value):
            colour = "white" if value > 0.6 * highest else "black"
            text = shown(value)
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(blocks)), blocks, fontsize=8)
    axes.set_yticks(range(len(matrices)), matrices, fontsize=8)
    axes.set_xlabel("block")
    axes.set_ylabel("matrix")
    figure.suptitle(wrapped(title, round(9 * width)), fontsize=10)
    bar = figure.colorbar(image, ax=axes, ticks=MaxNLocator(4, integer=whole, min_n_ticks=1))
    bar.set_label(unit)
    return figure


def adapted_matrices(adapter: Path) -> list[str] | None:
    """Return the names within a block of what an adapter sits in, if a file of PEFT's says it.

    Args:
        adapter: a folder with a saved adapter.
    """
    config = adapter / CONFIG_FILE
    named = read_json(config).get("target_modules") if config.is_file() else None
    return None if named is None else sorted({matrix_and_block(module)[0] for module in named})


def matrix_and_block(module: str) -> tuple[str, str]:
    """Return the matrix's name within a block, and the block's index; ``OUTSIDE`` if in none."""
    found = _INDEX.search(module)
    return (module[found.end() :], found[1]) if found else (module, OUTSIDE)


def block_order(block: str) -> tuple[bool, int]:
    """Return what sorts the indices of blocks, the last being ``OUTSIDE``."""
    return (block == OUTSIDE, 0 if block == OUTSIDE else int(block))
