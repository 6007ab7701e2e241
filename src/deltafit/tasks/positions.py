"""How long a text a model can take: absolute positions have an end, others have none."""

import re

from torch import nn

from deltafit.tasks.inference import encoder_of

_POSITION_TABLE = re.compile(r"wpe|(.*_)?positions?(_.*)?")


def usable_length(model: nn.Module, max_length: int) -> int:
    """Return ``max_length``, or the most tokens that the model has positions for if that is less.

    Rotary and relative positions have no table that could run out.

    Args:
        model: a classifier's; without weights will do.
        max_length: tokens of a text.
    """
    tables = [
        module
        for name, module in encoder_of(model).named_modules()
        if isinstance(module, nn.Embedding) and _POSITION_TABLE.fullmatch(name.rpartition(".")[2])
    ]
    return min([max_length, *map(_places, tables)])


def _places(table: nn.Embedding) -> int:
    """Return for how many tokens a table of positions is enough."""
    # RoBERTa's family counts on from the pad token; OPT and BART leave a few rows out.
    before = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - before - int(getattr(table, "offset", 0))
