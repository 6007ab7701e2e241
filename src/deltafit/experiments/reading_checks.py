"""What the doctor asks of how texts are read: padding, pad tokens, and texts that are cut."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

import numpy as np
import torch
from torch import Tensor

from deltafit.data import ModelSource, across_lengths
from deltafit.engine import evaluating
from deltafit.experiments.findings import Case, Finding, Severity
from deltafit.experiments.model_checks import UNCUT, Loaded, ModelCheck
from deltafit.tasks.classification import Classifier, collate, logits_of
from deltafit.tasks.inference import encoder_of
from deltafit.tasks.pooling import PooledClassifier
from deltafit.training.preparation import longest_text

_BATCH, _SHORT = 4, 32  # texts, and tokens of the longest: a second's work on a CPU
_ROUNDING = 1e-3  # of the largest value; other positions or masks lie far above
_OFTEN_CUT = 0.1  # share of texts
Rows = Sequence[Sequence[int]]
_GIVES = (
    "A text gives something else (by {:.1%} of the largest value) when it is filled up on the {}"
)


def padding(case: Case, model: Loaded) -> Iterator[Finding]:
    """Whether a text gives the same filled up as alone, on each side where anyone pads."""
    classifier = model.classifier
    known = encoder_of(classifier.model).get_input_embeddings().num_embeddings  # type: ignore[operator]  # every transformers model has it
    if classifier.pad_token_id >= known:
        yield Finding(
            "error",
            "pad token",
            f"The pad token is {classifier.pad_token_id}, and the model knows {known:,} tokens: "
            "it was added to the tokenizer alone, and there is no end-of-text token in its place.",
            _embed_pad_token(classifier.source.location),
        )
        return
    rows = _short(model)
    alone = _alone(classifier, rows)
    if not bool(alone.isfinite().all()):
        yield Finding(
            "error",
            "model",
            "The untouched model gives something that is not a number for your texts.",
            _anew(classifier.source),
        )
        return
    if (share := _changed(classifier, rows, alone, left=False)) > _ROUNDING:
        yield Finding(
            "warning",
            "padding",
            f"{_GIVES.format(share, 'right')}: deltafit pads there wherever it pads, so what is "
            "said of a text depends on the texts beside it.",
            f"{case.change('model', 'minilm')} or another model that does not see padding",
        )
    if _padded_left_by_others(classifier):
        yield from _on_the_left(classifier, rows, alone, "warning", "")


def left_padding(case: Case, model: Loaded) -> Iterator[Finding]:
    """Whether an encoder, which nobody pads on the left unasked, gives the same there.

    By design those do not that count places, or whose head reads the first one, from the left edge.
    """
    if not _padded_left_by_others(model.classifier):
        by_design = "by design it counts places, or its head reads the first, from the left edge; "
        rows = _short(model)
        alone = _alone(model.classifier, rows)
        yield from _on_the_left(model.classifier, rows, alone, "note", by_design)


def _padded_left_by_others(classifier: Classifier) -> bool:
    return classifier.decoder or classifier.tokenizer.padding_side == "left"


def _on_the_left(
    classifier: Classifier, rows: Rows, alone: Tensor, severity: Severity, why: str
) -> Iterator[Finding]:
    if (share := _changed(classifier, rows, alone, left=True)) > _ROUNDING:
        yield Finding(
            severity,
            "padding",
            f"{_GIVES.format(share, 'left')}: {why}deltafit never pads there; whoever uses the "
            "merged model should not either.",
            'tokenizer.padding_side = "right" (in whatever uses the merged model)',
        )


def _short(model: Loaded) -> Rows:
    """Return some texts, cut so that no two are alike in length, however long they are."""
    longest = min([_SHORT, *model.lengths.values()])
    return [
        row[: max(1, longest * number // _BATCH)]
        for number, row in enumerate(across_lengths(model.rows, _BATCH), start=1)
    ]


def _alone(classifier: Classifier, rows: Rows) -> Tensor:
    """Return what is read of texts by themselves."""
    with evaluating(classifier.model), torch.inference_mode():
        return torch.cat([_read(classifier, [row]) for row in rows])


def _changed(classifier: Classifier, rows: Rows, alone: Tensor, *, left: bool) -> float:
    """Return by how much else is read of padded texts, as a share of the largest value."""
    with evaluating(classifier.model), torch.inference_mode():
        padded = _read(classifier, rows, left=left)
    return float((padded - alone).abs().max()) / max(float(alone.abs().max()), 1e-12)


def _embed_pad_token(folder: str) -> str:
    """Return the command that gives a checkpoint's model the tokens that its tokenizer has."""
    code = (
        f"import transformers as h; f = {folder!r}; t = h.AutoTokenizer.from_pretrained(f); "
        "m = getattr(h, h.AutoConfig.from_pretrained(f).architectures[0]).from_pretrained(f); "
        "m.resize_token_embeddings(len(t)); m.save_pretrained(f); t.save_pretrained(f)"
    )
    return f"python -c {quote(code)}"


def _anew(source: ModelSource) -> str:
    """Say how a checkpoint whose weights are damaged is had anew."""
    if Path(source.location).is_dir():
        return f"Save the model in {source.location} again: its weights are damaged"
    return f"hf download {source.location} --force-download"


def pad_token(case: Case, model: Loaded) -> Iterator[Finding]:
    """Texts that end with what fills up, as the tokenizer has no pad token of its own.

    Where no text does, such padding does no harm: it is masked, and the head reads what is not.
    """
    classifier = model.classifier
    tokenizer, pad = classifier.tokenizer, classifier.pad_token_id
    if pad != tokenizer.eos_token_id or not classifier.decoder:
        return
    ends = sum(row[-1] == pad for row in model.rows)
    if classifier.head.kind == "architecture" and ends:
        yield Finding(
            "warning",
            "pad token",
            f"{ends:,} of {len(model.rows):,} texts end with {tokenizer.pad_token!r}, which also "
            "fills up: the architecture's head takes it for padding, and reads the token before.",
            case.change("head.head", "last"),
        )


def truncation(case: Case, model: Loaded) -> Iterator[Finding]:
    """Texts that are longer than runs read, and lengths that the model does not have."""
    lengths = np.array([len(row) for row in model.rows])
    seen = set()
    for row, longest in model.lengths.items():
        wanted = case.configs[row].settings.max_length
        if (wanted, longest) in seen:
            continue
        seen.add((wanted, longest))
        if longest < wanted:
            yield Finding(
                "note",
                "length",
                f"max_length is {wanted}, and {case.recipe.model} takes texts of at most {longest} "
                "tokens: it is lowered to that.",
                case.flag(row, "max_length", longest),
            )
        cut = float((lengths > longest).mean())
        if not cut:
            continue
        half, most, all_ = (int(np.quantile(lengths, q)) for q in (0.5, 0.95, 1))
        limit = _limit(case, row, model)
        better = min(all_, limit) if cut < _OFTEN_CUT else min(most, limit)
        yield Finding(
            "warning" if cut >= _OFTEN_CUT else "note",
            "truncation",
            f"{cut:.1%} of texts are cut to {longest} tokens. Half of them have {half} or fewer, "
            f"95 % have {most} or fewer, and the longest has {all_}.",
            case.flag(row, "max_length", better)
            if better > longest
            else f"{case.recipe.model} takes no more tokens: shorter texts, or a model that does",
        )


def _limit(case: Case, row: int, model: Loaded) -> int:
    """Return how long a text of a row could be at most, whatever it asks for."""
    config = case.configs[row]
    settings = replace(config.settings, max_length=UNCUT)
    return longest_text(replace(config, settings=settings), model.classifier.model)


def _read(classifier: Classifier, rows: Sequence[Sequence[int]], *, left: bool = False) -> Tensor:
    """Return what is read of each text: its logits, or what a linear head is given.

    A linear head starts at zero, so its logits would show nothing.
    """
    network = classifier.model
    device = next(network.parameters()).device
    batch = collate(rows, classifier.pad_token_id, positions=classifier.positions, left=left)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    if isinstance(network, PooledClassifier):
        return network.features(**batch)
    return logits_of(network, batch).float()


READING_CHECKS: tuple[ModelCheck, ...] = (padding, pad_token, truncation)
THOROUGH_READING_CHECKS: tuple[ModelCheck, ...] = (left_padding,)
"""What is worth knowing when one asks, and stands in no run's way."""
