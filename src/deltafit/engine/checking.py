"""Whether a model gives the same packed, or in its first tokens alone: one batch both ways."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deltafit.adapters.activations import attention_matrices
from deltafit.engine.agreement import Results, first_difference
from deltafit.engine.attention import NAMES, PACKED, WRITTEN_OUT
from deltafit.engine.calls import evaluating, weighted_sum
from deltafit.engine.layout import CannotPackError, find_layout
from deltafit.engine.packing import find_stack, packed
from deltafit.engine.reading import KeysAndValues, find_keys_and_values, first_tokens

_logger = logging.getLogger(__name__)

# In mixed precision: how much farther from float32 packed may be than padded, besides one rounding.
_STRAYING = 2.0


def check_packing(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    gradients: bool = True,
    mixed: torch.dtype | None = None,
) -> str | None:
    """Return None if the model may run in ``packed``, and else why not, in a sentence.

    One batch runs both ways without dropout. Compared are the states of its tokens, the output,
    and the gradients of the trainable parameters. Where attention drops weights in training, it
    runs a third time, its attention computed as there. Nothing is changed: gradients, modes and
    the state of torch's CPU generator are as before.

    Args:
        model: as for ``packed``; in float32 and without mixed precision.
        batch: its keywords, ``attention_mask`` among them; best with rows of several lengths.
        gradients: False compares what comes of the forward pass alone.
        mixed: the dtype of the mixed precision that the model will run in, if any. Other kernels
            may run in it, so the batch goes both ways in it too, and packed it may stray from
            float32 about as far as padded.

    Raises:
        ValueError: the model is in ``packed`` already, so that there is no padded run.
    """
    try:
        stack, owner = find_stack(model)
    except CannotPackError as error:
        return str(error)
    if owner.config._attn_implementation in NAMES:
        raise ValueError("check_packing needs a padded run: call it outside packed(model).")
    last = model.get_submodule(stack.blocks[-1])
    with evaluating(model), torch.random.fork_rng(devices=[]):
        exact = _run(model, owner, batch, gradients)
        try:
            found = _run_packed(model, owner, last, batch, gradients)
            reason = first_difference(exact, found)
            if reason is None and gradients and attention_matrices(owner, packed=True):
                found = _run_packed(model, owner, last, batch, gradients, attention=WRITTEN_OUT)
                reason = first_difference(exact, found)
            if reason is None and mixed is not None:
                padded = _run(model, owner, batch, gradients, mixed)
                found = _run_packed(model, owner, last, batch, gradients, mixed)
                reason = _first_straying(exact, padded, found, mixed)
        except CannotPackError as error:
            return str(error)
    if reason is None:
        return None
    return f"{type(owner).__name__} does not give the same packed as padded: {reason}."


def find_reading(
    model: nn.Module, batch: Mapping[str, Tensor], *, gradients: bool = True
) -> KeysAndValues | None:
    """Return what ``first_tokens`` takes if the model gives the same in it, and else None.

    One batch runs padded and so, without dropout. Compared are the states of the first tokens, the
    output, and the gradients of the trainable parameters. All other states are NaN, which spoils
    the output of a head that reads them, be its weights zero. Nothing is changed, as in
    ``check_packing``.

    Args:
        model: a classifier that ``check_packing`` has nothing against; outside of ``packed``.
        batch: its keywords; best with rows of several lengths.
        gradients: False compares what comes of the forward pass alone.
    """
    _, owner = find_stack(model)
    first = torch.zeros_like(batch["attention_mask"], dtype=torch.bool)
    first[:, 0] = True
    if model is owner or first.all():  # it gives all states; or nothing shows what is read of more
        return None
    others: list[Tensor] = []
    with evaluating(model), torch.random.fork_rng(devices=[]):
        try:
            layers = find_keys_and_values(model, batch)
            expected = _run(model, owner, batch, gradients, tokens=first)
            with packed(model), first_tokens(model, layers), ExitStack() as restore:
                watch = owner.register_forward_hook(
                    lambda module, args, output: others.append(output[0][~first])
                )
                restore.callback(watch.remove)
                results = _run(model, owner, batch, gradients, tokens=first)
        except Exception as error:  # what blocks unknown here do with few tokens can end in any
            kind = type(owner).__name__
            _logger.info("The last block of %s runs for all tokens: %s", kind, error)
            return None
    narrowed = all(bool(states.isnan().all()) for states in others)
    return layers if narrowed and first_difference(expected, results) is None else None


def _run_packed(
    model: nn.Module,
    owner: PreTrainedModel,
    last: nn.Module,
    batch: Mapping[str, Tensor],
    backward: bool,
    mixed: torch.dtype | None = None,
    attention: str = PACKED,
) -> Results:
    """Run packed; raise a CannotPackError where that fails, or the last block ran padded."""
    found: list[bool] = []
    watch = last.register_forward_pre_hook(
        lambda block, args, kwargs: found.append(find_layout(args, kwargs) is not None),
        with_kwargs=True,
    )
    kind = type(owner).__name__
    try:
        with packed(model):
            owner.set_attn_implementation(attention)
            results = _run(model, owner, batch, backward, mixed)
    except CannotPackError:
        raise
    except Exception as error:  # what blocks unknown here do with a sheet can end in any
        raise CannotPackError(f"{kind} fails when run packed: {error}") from error
    finally:
        watch.remove()
    if not found or not all(found):
        raise CannotPackError(f"{kind} ran a batch padded that was to be packed.")
    return results


def _first_straying(
    exact: Results, padded: Results, found: Results, mixed: torch.dtype
) -> str | None:
    """Return the first thing that strays farther from float32 packed than padded, and how far.

    All gradients count as one: that of a key's bias is nothing but rounding by itself.
    """
    for name in (*exact[0], *(["the gradient"] if exact[1] else [])):
        value, one, other = (
            results[0][name].flatten().float() if name in results[0] else _joined(results[1], exact)
            for results in (exact, padded, found)
        )
        size = max(float(value.norm()), torch.finfo(torch.float32).tiny)
        allowed = _STRAYING * float((one - value).norm()) / size + torch.finfo(mixed).eps
        distance = float((other - value).norm()) / size
        if not distance <= allowed:  # so that NaN is found
            words = f"{str(mixed).removeprefix('torch.')}, {name} differs by {distance:.1g}"
            return f"in mixed precision with {words} of its size from float32"
    return None


def _joined(gradients: Mapping[str, Tensor], exact: Results) -> Tensor:
    """Return all gradients as one vector; one that is missing is not a number."""
    parts = (
        gradients.get(name, torch.full_like(value, torch.nan)) for name, value in exact[1].items()
    )
    return torch.cat([part.flatten().float() for part in parts])


def _run(
    model: nn.Module,
    owner: PreTrainedModel,
    batch: Mapping[str, Tensor],
    backward: bool,
    mixed: torch.dtype | None = None,
    tokens: Tensor | None = None,
) -> Results:
    """Return the outputs by what they are, and the gradients by their parameters' names.

    Of the states, those of ``tokens`` count, bool ``[rows, length]``; by default all but padding.
    """
    tokens = batch["attention_mask"].bool() if tokens is None else tokens
    states: list[Tensor] = []
    hook = owner.register_forward_hook(lambda module, args, output: states.append(output[0]))
    with torch.set_grad_enabled(backward):
        try:
            with _autocast(batch, mixed):
                output = model(**batch)
        finally:
            hook.remove()
        # A head that starts at zero shows nothing of the states, nor sends gradients to them.
        outputs = {"the states of its tokens": states[-1][tokens]}
        if model is not owner:
            outputs["its output"] = output if isinstance(output, Tensor) else output[0]
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad and backward}
        gradients: tuple[Tensor | None, ...] = ()
        if trainable:
            loss = sum((weighted_sum(value) for value in outputs.values()), start=torch.zeros(()))
            gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    named = zip(trainable, gradients, strict=True)
    return (
        {name: value.detach() for name, value in outputs.items()},
        {f"the gradient of {name}": g for name, g in named if g is not None},
    )


def _autocast(
    batch: Mapping[str, Tensor], mixed: torch.dtype | None
) -> AbstractContextManager[Any]:
    if mixed is None:
        return nullcontext()
    return torch.autocast(batch["attention_mask"].device.type, mixed)
