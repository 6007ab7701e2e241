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
    AutoModelForTextEncoding,
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
from deltafit.data import MODELS, ModelSource
from deltafit.errors import DeltafitError
from deltafit.tasks.gguf import as_checkpoint

Loaded = TypeVar("Loaded")
_ENCODERS_ALONE = ("t5", "mt5", "umt5")
_WEIGHTS = {
    "dtype": torch.float32,
    "ignore_mismatched_sizes": True,
    "output_loading_info": True,
    "use_safetensors": True,
}


def load_tokenizer(source: ModelSource) -> tuple[PreTrainedTokenizerBase, bool]:
    """Return the tokenizer, and whether the model is a decoder, which reads from left to right.

    A tokenizer without a pad token gets the end-of-text token in its place.
    """
    tokenizer: PreTrainedTokenizerBase = _from_checkpoint(AutoTokenizer, source)
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
    config: PreTrainedConfig = _from_checkpoint(AutoConfig, source)
    return config


def load_structure(
    source: ModelSource, auto: Any = AutoModelForSequenceClassification
) -> PreTrainedModel:
    """Return a model without weights, on the meta device.

    Args:
        source: the model.
        auto: transformers' Auto class that makes it; the architecture's own sequence classifier
            by default.

    Raises:
        DeltafitError: there is no such model, or transformers has no text classifier for it.
    """
    config = load_config(source)

    def build() -> PreTrainedModel:
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config, trust_remote_code=False)
        return model

    return _explained(source, build)


def load_architecture_classifier(
    source: ModelSource,
    label_names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> tuple[PreTrainedModel, tuple[str, ...], bool]:
    """Return the architecture's own sequence classifier, its head's parameters, and if it is new.

    The head is what the checkpoint lacks. A checkpoint that brings a whole classifier keeps its
    values where the number of labels agrees; then the head is all that lies outside the encoder.

    Raises:
        DeltafitError: the model cannot be loaded, or the checkpoint is of another model than its
            configuration says.
    """
    names = {str(index): name for index, name in enumerate(label_names)}
    model, report = _from_checkpoint(
        AutoModelForSequenceClassification,
        source,
        num_labels=len(label_names),
        id2label={int(index): name for index, name in names.items()},
        label2id={name: int(index) for index, name in names.items()},
        **_WEIGHTS,
    )
    _configure(model, tokenizer)
    new = _missing_parameters(source, model, report)
    _initialise_anew(model, new, seed)
    prefix = f"{model.base_model_prefix}."
    outside = (name for name, _ in model.named_parameters() if not name.startswith(prefix))
    return model, new or tuple(outside), bool(new)


def _configure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    known = model.get_input_embeddings().num_embeddings
    if tokenizer.pad_token_id >= known and (tokenizer.eos_token_id or known) < known:
        # A pad token was added to the tokenizer alone. What fills up is masked, whatever it is.
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    # A classifier reads each text once; decoders would copy their keys and values for a next time.
    model.config.get_text_config().use_cache = False


def _missing_parameters(
    source: ModelSource, model: PreTrainedModel, report: dict[str, Any]
) -> tuple[str, ...]:
    """Return the parameters of heads and poolers that the checkpoint lacks or has otherwise shaped.

    Raises:
        DeltafitError: it lacks more than those, or has layers that the model has no place for.
    """
    missing = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    new = tuple(name for name, _ in model.named_parameters() if name in missing)
    base = model.base_model
    prefix = f"{model.base_model_prefix}."
    within_base = "" if base is model else prefix
    lost = [name for name in new if name.startswith(within_base) and not _is_of_pooler(name)]
    left_over = [
        name
        for name in sorted(report["unexpected_keys"])
        if _is_of_unknown_layer(base, name.removeprefix(prefix))
    ]
    problems = [
        f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (
            ("it lacks, or holds in another shape", lost),
            ("it holds what such a model has no place for", left_over),
        )
        if names
    ]
    if problems:
        raise DeltafitError(
            f"The checkpoint of {source.name} at {source.location} is of another model than its "
            f"config.json says; {'; '.join(problems)}. Bring the two together that belong together."
        )
    return new


def _is_of_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _is_of_unknown_layer(base: nn.Module, name: str) -> bool:
    """Return whether a name that the model does not know is of a layer in one of its own parts.

    Heads of other tasks, and poolers left out here, stand beside the model's parts. Buffers that
    older versions stored (causal masks, places) have other names, or stand in no layer.
    """
    module_name, _, leaf = name.rpartition(".")
    part = name.partition(".")[0]
    if leaf not in ("weight", "bias") or part not in base._modules or _is_of_pooler(name):
        return False
    modules = dict(base.named_modules())
    # A bias that is switched off is registered all the same.
    return module_name not in modules or bool(modules[module_name]._parameters)


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


def encoder_maker(source: ModelSource) -> Any:
    """Return transformers' Auto class that makes the model without any head.

    Of T5's family, encoders with a decoder behind them, that is the encoder alone.
    """
    alone = load_config(source).model_type in _ENCODERS_ALONE
    return AutoModelForTextEncoding if alone else AutoModel


def load_encoder(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the model without any head, giving ``last_hidden_state``.

    What the checkpoint lacks (a pooler, which that state does not need) always starts from the
    same values, so that a base is the same base whenever it is loaded.

    Raises:
        DeltafitError: the model cannot be loaded, or the checkpoint is of another model than its
            configuration says; it may lack a pooler and nothing else.
    """
    model, report = _from_checkpoint(encoder_maker(source), source, **_WEIGHTS)
    _initialise_anew(model, _missing_parameters(source, model, report), seed=0)
    _configure(model, tokenizer)
    encoder: PreTrainedModel = model
    return encoder


def _from_checkpoint(auto: Any, source: ModelSource, **options: Any) -> Any:
    """Load with one of transformers' Auto classes; a checkpoint's own code is never run."""
    # Left open, transformers would ask on the terminal whether to run it, and a pipe may say yes.
    return _explained(
        source,
        lambda: auto.from_pretrained(
            as_checkpoint(source).location, trust_remote_code=False, **options
        ),
    )


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
        raise DeltafitError(
            _sentence(source, str(error).strip() or type(error).__name__)
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def _sentence(source: ModelSource, reason: str) -> str:
    """Return what a person is told where transformers gives ``reason``."""
    if "custom code" in reason:
        return (
            f"The model {source.name!r} brings code of its own, which deltafit never runs; choose "
            "one that transformers knows by itself."
        )
    if "for this kind of AutoModel" in reason:
        return (
            f"The model {source.name!r} is of a kind for which transformers has no text "
            "classifier; choose another."
        )
    return (
        f"Could not load the model {source.name!r} from {source.location}: "
        f"{reason.splitlines()[0]}{_suggestion(source.name)} Give a folder with a transformers "
        f"checkpoint in safetensors, a catalogue name ({', '.join(MODELS)}), or the name of a "
        "model on the hub (which needs a connection)."
    )


def _suggestion(name: str) -> str:
    close = get_close_matches(name, MODELS, n=1)
    return f" Did you mean {close[0]!r}?" if close and close[0] != name else ""
