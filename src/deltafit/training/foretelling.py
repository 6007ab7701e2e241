"""What a run will need and take, foretold from its model and texts before anything is trained."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from deltafit.adapters.structure import is_matrix, layer_kind, layer_shape, repeated_blocks
from deltafit.data import Splits, across_lengths
from deltafit.engine import CannotFeedError, find_prefix
from deltafit.tasks.classification import Classifier, batch_of
from deltafit.tasks.inference import compute_logits
from deltafit.training.accelerator import processes
from deltafit.training.config import RunConfig
from deltafit.training.costs import expected_memory, may_pack
from deltafit.training.features import FrozenFeatures
from deltafit.training.memory import give_back_memory
from deltafit.training.preparation import prepare
from deltafit.training.progress import Reporter
from deltafit.training.run import adapt_run, with_new_head
from deltafit.training.workload import work_of_epochs

_ROWS = 8  # of a timed pass
_PASSES = 3
_BOTH_WAYS = 2  # of the products, those of a block's backward pass that lead to its inputs too

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Foretold:
    """What a run is expected to need and take.

    Attributes:
        memory: bytes by part; see ``expected_memory``.
        seconds: of training alone, roughly: see ``_training_seconds``.
    """

    memory: dict[str, int]
    seconds: float


def foretell(config: RunConfig, splits: Splits, reporter: Reporter) -> Foretold:
    """Return what training a run will need and take.

    The model is loaded and adapted as for the run; its head starts anew, which takes as much.

    Args:
        config: the run.
        splits: its texts, of which the training part counts.
        reporter: told how the work goes.

    Raises:
        DeltafitError: the model cannot be loaded, or a text cannot be used.
    """
    give_back_memory()
    config = with_new_head(config)
    splits = replace(splits, validation=None, test=None)
    features = FrozenFeatures(config.model, splits, config.settings.max_length, reporter)
    run = prepare(config, splits, features, reporter)
    run.classifier.model.to(processes().device)  # where it is trained
    adapt_run(config, run, reporter)
    rows = run.examples["train"].rows
    # Before anything runs through the model, which would count as memory of the process.
    memory = expected_memory(run.classifier, config, rows)
    return Foretold(memory, _training_seconds(run.classifier, config, rows))


def _training_seconds(classifier: Classifier, config: RunConfig, rows: Rows) -> float:
    """Return the products that training takes, at the speed of a timed forward pass.

    Blocks that are trained through multiply a token once forward and once backward, and trained
    matrices once more for their gradients; blocks below all of them forward alone, and once where
    there are several epochs, if there is room for their states. Not in it: the optimiser's own
    work, that attention costs more in longer texts, and that products in half precision may cost
    less.
    """
    model, settings = classifier.model, config.settings
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    lengths = [len(row) for row in rows]
    epochs = work_of_epochs(
        lengths, settings, packed=may_pack(model, settings), longer=config.method.added_tokens
    )
    tokens = sum(of_epoch for _, of_epoch, _ in epochs)
    below = _share_below(classifier, tuple(trained), rows)
    through = tokens * ((1 - below) * _BOTH_WAYS + _share_updated(classifier, trained))
    forward = below * (sum(lengths) if settings.epochs > 1 else tokens)
    return _token_seconds(classifier, rows) * (through + forward)


def _share_below(classifier: Classifier, trained: tuple[str, ...], rows: Rows) -> float:
    """Return the share of the blocks that lie below all that is trained."""
    try:
        prefix = find_prefix(
            classifier.model, trained, batch_of(classifier, across_lengths(rows, 2))
        )
    except CannotFeedError:
        return 0.0
    stacks = repeated_blocks(classifier.model)
    return len(prefix.blocks) / sum(len(stack.blocks) for stack in stacks) if prefix else 0.0


def _share_updated(classifier: Classifier, trained: dict[str, int]) -> float:
    """Return trained values for each one that a token is multiplied with.

    Embeddings are in neither: they are looked up.
    """
    kinds = {name: layer_kind(module) for name, module in classifier.model.named_modules()}
    updated = sum(
        count for name, count in trained.items() if kinds[name.rpartition(".")[0]] != "embedding"
    )
    matrices = [m for m in classifier.model.modules() if is_matrix(m)]
    return updated / sum(math.prod(layer_shape(module)) for module in matrices)


def _token_seconds(classifier: Classifier, rows: Rows) -> float:
    """Return what a token takes forward, in texts of ordinary length."""
    mean = fmean(map(len, rows))
    chosen = sorted(rows, key=lambda row: abs(len(row) - mean))[:_ROWS]
    seconds = []
    for _ in range(1 + _PASSES):  # the first is to warm up
        began = time.perf_counter()
        compute_logits(classifier, chosen)
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:]) / sum(map(len, chosen))
