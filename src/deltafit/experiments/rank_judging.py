"""Variants of one adapter, cut or without some of its ΔW, on its base and on the same rows."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
from torch import nn

from deltafit.adapters import (
    StoredAdapter,
    activate,
    load_adapter,
    model_adapters,
    remove_adapter,
)
from deltafit.adapters.low_rank import RankChoice, changes_of, energy_lost
from deltafit.adapters.movement import layer_changes
from deltafit.adapters.truncation import truncated, without
from deltafit.data import LabelledTexts
from deltafit.experiments.rank_plot import OUTSIDE, block_order, matrix_and_block
from deltafit.experiments.rank_rows import (
    Dispensable,
    MatrixRow,
    Measured,
    PartKind,
    PartRow,
    RankRow,
    compared_parts,
    compared_ranks,
    measured,
)
from deltafit.prediction.canaries import canary_logits, largest_difference
from deltafit.prediction.folder import SavedClassifier
from deltafit.prediction.merged import compute_logits_merged
from deltafit.tasks.inference import tokenise_for
from deltafit.training.progress import Counted, Reporter

_VARIANT = "variant"  # the name under which one stands on the model
_ALL_UP_TO = 32


@contextmanager
def wearing(model: nn.Module, stored: StoredAdapter) -> Iterator[None]:
    """Let a model carry another adapter within the block; its own is active again after it."""
    active = model_adapters(model).active
    load_adapter(model, stored, _VARIANT)
    try:
        yield
    finally:
        remove_adapter(model, _VARIANT)
        activate(model, active)


def tried_ranks(full: int) -> list[int]:
    """Return the ranks to look at, from 0: all up to 32, then 48, 64, 96, ... and the full one.

    Args:
        full: the largest rank of a matrix.
    """
    grown = {factor * 2**power for power in range(full.bit_length()) for factor in (2, 3)}
    low = min(full, _ALL_UP_TO)
    return [*range(low + 1), *sorted(r for r in {*grown, full} if low < r <= full)]


def parts_of(modules: Collection[str], matrices: bool) -> dict[tuple[PartKind, str], list[str]]:
    """Return the modules of each block and of each kind of matrix, where there are several.

    Args:
        modules: names of all that are adapted.
        matrices: return each single one as well, where a block has several.
    """
    by_kind: dict[PartKind, dict[str, list[str]]] = {"block": {}, "matrix type": {}, "matrix": {}}
    blocks = sorted({matrix_and_block(module)[1] for module in modules}, key=block_order)
    by_kind["block"] = {block: [] for block in blocks}
    for module in modules:
        matrix, block = matrix_and_block(module)
        by_kind["block"][block].append(module)
        by_kind["matrix type"].setdefault(matrix, []).append(module)
        by_kind["matrix"][module] = [module]
    if not matrices or len(by_kind["matrix type"]) == 1 or len(blocks) == 1:
        del by_kind["matrix"]
    return {
        (kind, name): members
        for kind, parts in by_kind.items()
        if len(parts) > 1
        for name, members in parts.items()
    }


def titles_of(modules: Collection[str]) -> dict[str, str]:
    """Return what a person calls each matrix, kind of matrix and block among the modules.

    What the kinds' names begin with alike is left out: "attention.self.value" of block 5 is
    "value, block 5" where only such names are adapted.
    """
    places = {module: matrix_and_block(module) for module in modules}
    kinds = {matrix: matrix.split(".") for matrix, _ in places.values()}
    common = 0
    while all(len(names) > common + 1 for names in kinds.values()) and (
        len({names[common] for names in kinds.values()}) == 1
    ):
        common += 1
    titles = {matrix: ".".join(names[common:]) for matrix, names in kinds.items()}
    in_blocks = {block: f"block {block}" for _, block in places.values() if block != OUTSIDE}
    for module, (matrix, block) in places.items():
        suffix = f", {in_blocks[block]}" if block in in_blocks else ""
        titles[module] = titles[matrix] + suffix
    return titles | {OUTSIDE: "what is outside the blocks"} | in_blocks


class Judge:
    """A base with an adapter in memory, and labelled rows to measure variants of the adapter on.

    Args:
        saved: the classifier; between calls it is as it was.
        stored: its adapter, of which the variants are made.
        part: the rows.
        where: the adapter's folder, for sentences.
        batch_tokens: the most tokens in one forward pass, padding counted.
    """

    def __init__(
        self,
        saved: SavedClassifier,
        stored: StoredAdapter,
        part: LabelledTexts,
        where: str,
        batch_tokens: int,
    ) -> None:
        self.saved, self.part = saved, part
        self._stored, self._where, self._batch_tokens = stored, where, batch_tokens
        self._model = saved.classifier.model
        self._changes = changes_of(stored, where)
        self._titles = titles_of(self._changes)
        self._seen: dict[frozenset[str], Measured] = {}
        self.tokens = tokenise_for(saved.classifier, part.texts, saved.max_length, part.place)
        self._labels = np.asarray(part.labels)
        self._whole: np.ndarray | None = None

    @property
    def full_rank(self) -> int:
        """The largest rank of a matrix."""
        return max(change.rank for change in self._changes.values())

    def ranks(self, reporter: Reporter) -> list[RankRow]:
        """Return what the adapter does at each rank of ``tried_ranks``, compared with the best."""
        tried = tried_ranks(self.full_rank)
        advance = Counted(reporter, "ranks", len(self.part) * len(tried))
        # From the highest on: that is the whole adapter, with which the others are compared.
        return compared_ranks([self._rank_row(rank, advance) for rank in reversed(tried)])

    def _rank_row(self, rank: int, advance: Callable[[int], None]) -> RankRow:
        variant, energy_kept = self.cut(rank)
        # Rank 0 needs no factors; the model is given factors of zeros.
        kept = variant.tensors if rank > 0 else variant.replaced
        stored = [variant.tensors[name] for name in kept]
        return RankRow(
            rank,
            sum(tensor.numel() for tensor in stored),
            sum(tensor.nbytes for tensor in stored),
            energy_kept,
            self.measure(variant, advance),
        )

    def cut(self, rank: int) -> tuple[StoredAdapter, float]:
        """Return the adapter cut to a rank, and the share of ‖ΔW‖² that it keeps."""
        if rank == 0:
            return self.without(self._changes), 0.0
        if rank >= self.full_rank:
            return self._stored, 1.0
        variant, losses = truncated(self._stored, RankChoice(rank), self._where)
        return variant, 1 - energy_lost(losses)

    def without(self, modules: Collection[str]) -> StoredAdapter:
        """Return the adapter without the ΔW of some modules."""
        return without(self._stored, modules, self._where)

    def parts(self, matrices: bool, reporter: Reporter) -> list[PartRow]:
        """Return what each part of ``parts_of`` is worth, what matters most of a kind first."""
        grouped = parts_of(self._changes, matrices)
        if not grouped:
            return []
        shares = {row.name: row.energy for row in self.matrices}
        advance = Counted(reporter, "layers and matrices", 2 * len(self.part) * len(grouped))
        rows = []
        for (kind, name), modules in grouped.items():
            others = [module for module in self._changes if module not in modules]
            rows.append(
                PartRow(
                    kind,
                    name,
                    self._titles[name],
                    tuple(modules),
                    sum(shares[module] for module in modules),
                    self._measure_without(modules, advance),
                    self._measure_without(others, advance),
                )
            )
        return compared_parts(rows)

    def dispensable(self, parts: Sequence[PartRow], reporter: Reporter) -> Dispensable | None:
        """Return the most parts of one kind that are left out together within noise.

        One after the other is left out, that which matters least first, until the loss is more
        than noise or a single part is left.

        Args:
            parts: of one kind, what matters most first.
            reporter: told how the work goes.
        """
        advance = Counted(reporter, f"without several ({parts[0].kind})", None)
        dropped: tuple[PartRow, ...] = ()
        found = None
        for row in reversed(parts[1:]):
            dropped = (*dropped, row)
            modules = [module for part in dropped for module in part.modules]
            figures = self._measure_without(modules, advance)
            if figures.against_whole.high < 0:
                break
            found = Dispensable(dropped, figures)
        return found

    @cached_property
    def matrices(self) -> list[MatrixRow]:
        """How far each matrix moved, and in how many directions."""
        active = model_adapters(self._model).active
        assert active is not None
        changes = layer_changes(self._model, active)
        total = sum(change.delta_norm**2 for change in changes)
        return [
            MatrixRow(
                change.name,
                self._titles[change.name],
                change.shape,
                self._changes[change.name].rank,
                change.effective_rank,
                change.delta_norm,
                change.share,
                change.delta_norm**2 / total if total > 0 else 0.0,
            )
            for change in changes
        ]

    def _measure_without(
        self, modules: Collection[str], progress: Callable[[int], None]
    ) -> Measured:
        """Return the figures without some modules' ΔW; of the same modules they are kept."""
        key = frozenset(modules)
        if key in self._seen:
            progress(len(self.part))
        else:
            self._seen[key] = self.measure(self.without(modules), progress)
        return self._seen[key]

    def measure(self, variant: StoredAdapter, progress: Callable[[int], None]) -> Measured:
        """Return the figures of a variant beside those of the whole adapter."""
        if variant is self._stored:
            logits = self._whole = self.logits_of(variant, progress)
        else:
            logits = self.logits_of(variant, progress)
        if self._whole is None:
            self._whole = self.logits_of(self._stored, lambda _: None)
        names = self.saved.classifier.label_names
        return measured(logits, self._whole, self._labels, names)

    def logits_of(self, variant: StoredAdapter, progress: Callable[[int], None]) -> np.ndarray:
        """Return what a variant says of the rows, ``[rows, labels]``, as ``evaluate`` would."""
        with wearing(self._model, variant):
            return self._logits(progress)

    def _logits(self, progress: Callable[[int], None]) -> np.ndarray:
        return compute_logits_merged(
            self.saved.classifier,
            self.tokens.input_ids,
            batch_tokens=self._batch_tokens,
            progress=progress,
        )

    def canary_change(self, variant: StoredAdapter) -> float:
        """Return how far a variant moves the canaries' logits; see ``largest_difference``."""
        classifier, sentences = self.saved.classifier, self.saved.facts["canaries"]
        expected = canary_logits(classifier, sentences, self.saved.max_length)
        with wearing(self._model, variant):
            actual = canary_logits(classifier, sentences, self.saved.max_length)
        return largest_difference(actual, expected)
