"""Loading pretrained models through transformers: safetensors or GGUF only, never remote code."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from deltafit.adapters import generator_for
from deltafit.adapters.structure import repeated_blocks, within
from deltafit.data import MODELS, ModelSource
from deltafit.errors import DeltafitError
from deltafit.tasks.gguf import as_checkpoint

Loaded = TypeVar("Loaded")


def load_tokenizer(source: ModelSource) -> tuple[PreTrainedTokenizerBase, bool]:
    """Return the tokenizer, and whether the model is a decoder, which reads from left to right.

    A tokenizer without a pad token gets the end-of-text token in its place.
    """
    tokenizer = _explained(
        source, lambda: AutoTokenizer.from_pretrained(as_checkpoint(source).location)
    )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise DeltafitError(
                f"The tokenizer of {source.name} has neither a pad token nor an end-of-text token."
            )
        tokenizer.pad_token = tokenizer.eos_token
    kind = load_config(source).model_type
    decoder = (
        kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    return tokenizer, decoder


def load_config(source: ModelSource) -> PreTrainedConfig:
    """Return the model's configuration."""
    config: PreTrainedConfig = _explained(
        source, lambda: AutoConfig.from_pretrained(as_checkpoint(source).location)
    )
    return config


def load_architecture_classifier(
    source: ModelSource,
    label_names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return the architecture's own sequence classifier, and the names of its head's parameters.

    The head is what the checkpoint lacks. A checkpoint that brings a whole classifier keeps its
    values where the number of labels agrees; then the head is all that lies outside the encoder.

    Raises:
        DeltafitError: the model cannot be loaded, or the checkpoint lacks more than a head.
    """
    names = {str(index): name for index, name in enumerate(label_names)}
    model, report = _explained(
        source,
        lambda: AutoModelForSequenceClassification.from_pretrained(
            as_checkpoint(source).location,
            num_labels=len(label_names),
            id2label={int(index): name for index, name in names.items()},
            label2id={name: int(index) for index, name in names.items()},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
        ),
    )
    _configure(model, tokenizer)
    new = _missing_parameters(source, model, report)
    _initialise_anew(model, new, seed)
    prefix = f"{model.base_model_prefix}."
    outside = (name for name, _ in model.named_parameters() if not name.startswith(prefix))
    return model, new or tuple(outside)


def _configure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.config.pad_token_id = tokenizer.pad_token_id
    # A classifier reads each text once; decoders would copy their keys and values for a next time.
    model.config.get_text_config().use_cache = False


def _missing_parameters(
    source: ModelSource, model: PreTrainedModel, report: dict[str, Any]
) -> tuple[str, ...]:
    """Return the parameters that the checkpoint lacks, or holds in another shape.

    Raises:
        DeltafitError: one is of the blocks or the embeddings, which no head can replace.
    """
    missing = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    new = tuple(name for name, _ in model.named_parameters() if name in missing)
    stacks = [stack.name for stack in repeated_blocks(model)]
    lost = [
        name
        for name in new
        if any(within(name, stack) for stack in stacks)
        or isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
    ]
    if lost:
        raise DeltafitError(
            f"The checkpoint of {source.name} at {source.location} lacks {len(lost)} tensors of "
            f"the pretrained model, or holds them in another shape: {', '.join(lost[:3])}"
            f"{', …' if len(lost) > 3 else ''}. Do config.json and the weights belong together?"
        )
    return new


def _initialise_anew(model: PreTrainedModel, names: Sequence[str], seed: int) -> None:
    """Give new parameters the architecture's own starting values, keyed by seed and name."""
    for module_name in dict.fromkeys(name.rpartition(".")[0] for name in names):
        module = model.get_submodule(module_name)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator_for(seed, module_name).get_state())
            for leaf, parameter in module.named_parameters(recurse=False):
                # transformers' own initialisers skip what carries this mark.
                loaded = f"{module_name}.{leaf}" not in names
                parameter._is_hf_initialized = loaded
            model._init_weights(module)


def load_encoder(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the model without any head, giving ``last_hidden_state``.

    What the checkpoint lacks (a pooler, which that state does not need) always starts from the
    same values, so that a base is the same base whenever it is loaded.

    Raises:
        DeltafitError: the model cannot be loaded, or the checkpoint lacks more than a pooler.
    """
    model, report = _explained(
        source,
        lambda: AutoModel.from_pretrained(
            as_checkpoint(source).location,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
        ),
    )
    _initialise_anew(model, _missing_parameters(source, model, report), seed=0)
    _configure(model, tokenizer)
    encoder: PreTrainedModel = model
    return encoder


def _explained(source: ModelSource, load: Callable[[], Loaded]) -> Loaded:
    """Run a loader quietly; its failures become one sentence."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return load()
    except ImportError as error:
        raise DeltafitError(f"Loading {source.name} needs another package: {error}") from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DeltafitError(
            f"Could not load the model {source.name!r} from {source.location}: {reason}"
            f"{_suggestion(source.name)} Give a folder with a transformers checkpoint in "
            f"safetensors, a catalogue name ({', '.join(MODELS)}), or the name of a model on the "
            "hub (which needs a connection)."
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def _suggestion(name: str) -> str:
    close = get_close_matches(name, MODELS, n=1)
    return f" Did you mean {close[0]!r}?" if close and close[0] != name else ""
