"""What a run is told apart by: everything that decides its result, and a hash of that."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltafit.data import ModelSource, Splits, resolve_model
from deltafit.errors import DeltafitError
from deltafit.files import sha256_of_file
from deltafit.methods import METHODS
from deltafit.methods.values import changed, defaults
from deltafit.tasks.loading import load_config
from deltafit.training.config import RunConfig
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings

_LEFT_OPEN = ("precision", "packing")  # of the settings: found out on the machine
_MODEL_FILES = (  # that transformers and tokenizers read
    *(".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab"),
    *(".safetensors", ".bin", ".gguf"),
)
_PLACES = ("data", "test_data", "validation")  # in the configuration of the data
_PARTS: dict[str, Any] = {"data": DataConfig, "head": HeadConfig, "settings": TrainingSettings}


def run_content(config: RunConfig, splits: Splits) -> dict[str, Any]:
    """Return what ``run.json`` holds: the configuration and the texts it was run on."""
    hashes = splits.content_hashes()
    return {"config": config.to_dict(), "data": splits.facts, "content_hash": hashes}


def deciding(content: dict[str, Any]) -> dict[str, Any]:
    """Return what decides a run: the texts by their hash, wherever the files lie now.

    A setting that is not there is one of a later version, and stands at its default.

    Args:
        content: of a ``run.json``.

    Raises:
        AttributeError, KeyError, TypeError: it is none.
    """
    config = content["config"]
    kinds = dict(_PARTS)
    if "method" in config:  # a comparison has several
        kinds["method"] = METHODS[config["method"]["method"]]
    whole = {key: {**defaults(kind), **config[key]} for key, kind in kinds.items()}
    whole["data"] = {key: value for key, value in whole["data"].items() if key not in _PLACES}
    return {**content, "config": {**config, **whole}, "data": None}


def run_hash(config: RunConfig, splits: Splits, found: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that decides a run, in hexadecimal digits.

    Two runs of one hash were asked for alike, read the same texts as the same tokens, started from
    a base of the same shape and values (as far as its fingerprint samples them), and were executed
    in the same way.

    Args:
        config: the run; its model's name counts for nothing.
        splits: its texts, counted by their content.
        found: what the base, the tokens and the machine were found to be, in place of the model's
            name and of the settings that leave them open; of values that JSON can write as text.
    """
    asked = _asked(config)
    for part, names in (("data", _PLACES), ("settings", _LEFT_OPEN)):
        asked[part] = {key: value for key, value in asked[part].items() if key not in names}
    content = {"config": asked, "content_hash": splits.content_hashes(), "found": found}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def model_hash(model: str) -> str:
    """Return what tells a base model apart before it is loaded, wherever it lies.

    That is the SHA-256 of its files, in hexadecimal digits; or of a model on the hub its name
    with its commit, for which its configuration is fetched if that was not done yet: the second
    time it has to be the same as the first.

    Raises:
        DeltafitError: there is no such model, the hub does not give it, or a file of it cannot be
            read.
    """
    source = resolve_model(model)
    folder = Path(source.location)
    if not folder.is_dir():
        return f"{source.location}@{_commit(source)}"
    if source.gguf_file is not None:
        return sha256_of_file(folder / source.gguf_file)
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _MODEL_FILES:
            digest.update(json.dumps([path.name, sha256_of_file(path)]).encode())
    return digest.hexdigest()


def _commit(source: ModelSource) -> str:
    """Return the commit of a model on the hub, as it would be loaded now."""
    from huggingface_hub import try_to_load_from_cache

    load_config(source)  # which fetches it
    found = try_to_load_from_cache(source.location, "config.json")
    if not isinstance(found, str):
        raise DeltafitError(
            f"The hub's cache does not say which commit of {source.location} was fetched, so its "
            "runs could not be told from those of another. Download the model into a folder, and "
            "give that."
        )
    return Path(found).parent.name


def address(config: RunConfig, base: str, texts: Mapping[str, str]) -> str:
    """Return the SHA-256 of all that is asked for in a run, before anything of it is done.

    Where texts and model lie, and how the texts were cut out of what, is no part of it. Nor are
    settings that stand at their default, so that one which a later version adds, with a default
    that means what was done before, leaves every address as it was. A default must never change
    its meaning, therefore.

    Args:
        config: the run.
        base: its model's `model_hash`.
        texts: the content's hash of each part.
    """
    asked = {key: value for key, value in _asked(config).items() if key != "data"}
    content = {"model": base, "texts": dict(texts), **asked}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _asked(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return what a run is asked for other than by default; but for its model."""
    parts = {key: changed(getattr(config, key)) for key in (*_PARTS, "method")}
    # Its default depends on others: told by what it comes to, where that is not the method's rate.
    parts["settings"].pop("head_learning_rate", None)
    if config.head_learning_rate != config.learning_rate:
        parts["settings"]["head_learning_rate"] = config.head_learning_rate
    return {**parts, "method": {"method": config.method.command_line_name, **parts["method"]}}
