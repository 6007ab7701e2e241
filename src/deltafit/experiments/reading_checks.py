"""What the doctor asks of how texts are read: padding, pad tokens, and texts that are cut."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from deltafit.data import across_lengths
from deltafit.engine import evaluating
from deltafit.experiments.findings import Case, Finding
from deltafit.experiments.model_checks import UNCUT, Loaded, ModelCheck
from deltafit.tasks.classification import Classifier, collate, logits_of
from deltafit.tasks.inference import encoder_of
from deltafit.tasks.pooling import PooledClassifier
from deltafit.training.preparation import longest_text

_BATCH, _SHORT = 4, 32  # texts, and tokens of the longest: a second's work on a CPU
_ROUNDING = 1e-3  # of the largest value; other positions or masks lie far above
_OFTEN_CUT = 0.1  # share of texts


def padding(case: Case, model: Loaded) -> Iterator[Finding]:
    """Whether a text gives the same alone, filled up on the right, and on the left."""
    classifier = model.classifier
    known = encoder_of(classifier.model).get_input_embeddings().num_embeddings  # type: ignore[operator]  # every transformers model has it
    if classifier.pad_token_id >= known:
        yield Finding(
            "error",
            "pad token",
            f"The pad token is {classifier.pad_token_id}, and the model knows {known:,} tokens: "
            "it was added to the tokenizer alone, and there is no end-of-text token in its place.",
            "model.resize_token_embeddings(len(tokenizer)), and save both again",
        )
        return
    longest = min([_SHORT, *model.lengths.values()])
    # Cut so that no two are alike in length, however long the texts are.
    rows = [
        row[: max(1, longest * number // _BATCH)]
        for number, row in enumerate(across_lengths(model.rows, _BATCH), start=1)
    ]
    with evaluating(classifier.model), torch.inference_mode():
        alone = torch.cat([_read(classifier, [row]) for row in rows])
        right = _read(classifier, rows)
        # Encoders count places from the left edge; only decoders are padded there by anyone.
        left = _read(classifier, rows, left=True) if classifier.decoder else alone
    if not bool(alone.isfinite().all()):
        yield Finding(
            "error",
            "model",
            "The untouched model gives something that is not a number for your texts.",
            "Download or save the checkpoint again; its weights may be damaged.",
        )
        return
    for side, padded in (("right", right), ("left", left)):
        share = float((padded - alone).abs().max()) / max(float(alone.abs().max()), 1e-12)
        if share <= _ROUNDING:
            continue
        ours = (
            "deltafit pads there wherever it pads, so what is said of a text depends on the texts "
            "beside it"
            if side == "right"
            else "deltafit never pads there; whoever uses the merged model should not either"
        )
        yield Finding(
            "warning",
            "padding",
            f"A text gives something else (by {share:.1%} of the largest value) when it is filled "
            f"up on the {side}: {ours}.",
            f"{case.change('settings.batch_size', '1')}, or another model"
            if side == "right"
            else "",
        )


def pad_token(case: Case, model: Loaded) -> Iterator[Finding]:
    """A tokenizer without a pad token of its own, and texts that end with what fills up."""
    classifier = model.classifier
    tokenizer, pad = classifier.tokenizer, classifier.pad_token_id
    if pad != tokenizer.eos_token_id or not classifier.decoder:
        return
    own = classifier.head.kind == "architecture"
    ends = sum(row[-1] == pad for row in model.rows)
    if own and ends:
        yield Finding(
            "warning",
            "pad token",
            f"{ends:,} of {len(model.rows):,} texts end with {tokenizer.pad_token!r}, which also "
            "fills up: the architecture's head takes it for padding, and reads the token before.",
            case.change("head.head", "last"),
        )
        return
    reads = {
        "architecture": "the head reads the last token that is another one",
        "last": "the head reads the last token that is not masked",
        "mean": "the head reads the mean of those that are not masked",
    }[classifier.head.kind]
    yield Finding(
        "note",
        "pad token",
        f"Batches are filled up on the right with {tokenizer.pad_token!r}, which is the "
        f"end-of-text token too: the tokenizer has no other. It is masked, and {reads}.",
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
            else f"{case.recipe.model} takes no more tokens; choose a model that does.",
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
