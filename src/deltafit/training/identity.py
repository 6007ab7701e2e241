"""What a run is told apart by: everything that decides its result, and a hash of that."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltafit.data import Splits, resolve_model
from deltafit.files import sha256_of_file
from deltafit.training.config import RunConfig

_LEFT_OPEN = ("precision", "packing")  # of the settings: found out on the machine
_MODEL_FILES = (  # that transformers and tokenizers read
    *(".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab"),
    *(".safetensors", ".bin", ".gguf"),
)
_PLACES = ("data", "test_data", "validation")  # in the configuration of the data


def run_content(config: RunConfig, splits: Splits) -> dict[str, Any]:
    """Return what ``run.json`` holds: the configuration and the texts it was run on."""
    hashes = {name: part.content_hash() for name, part in splits.parts().items()}
    return {"config": config.to_dict(), "data": splits.facts, "content_hash": hashes}


def deciding(content: dict[str, Any]) -> dict[str, Any]:
    """Return what decides a run: the texts by their hash, wherever the files lie now.

    Args:
        content: of a ``run.json``.

    Raises:
        AttributeError, KeyError, TypeError: it is none.
    """
    config = content["config"]
    data = {key: value for key, value in config["data"].items() if key not in _PLACES}
    return {**content, "config": {**config, "data": data}, "data": None}


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
    content = deciding(run_content(config, splits))
    asked = content["config"]["settings"]
    settings = {key: value for key, value in asked.items() if key not in _LEFT_OPEN}
    run = {**content["config"], "model": None, "settings": settings}
    text = json.dumps({**content, "config": run, "found": found}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def model_hash(model: str) -> str:
    """Return what tells a base model apart before it is loaded, wherever it lies.

    That is the SHA-256 of its files, in hexadecimal digits; or of a model on the hub its name
    with the commit that lies in the cache, if one does.

    Raises:
        DeltafitError: there is no such model, or a file of it cannot be read.
    """
    source = resolve_model(model)
    folder = Path(source.location)
    if not folder.is_dir():
        return f"{source.location}@{_cached_commit(source.location)}"
    if source.gguf_file is not None:
        return sha256_of_file(folder / source.gguf_file)
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _MODEL_FILES:
            digest.update(json.dumps([path.name, sha256_of_file(path)]).encode())
    return digest.hexdigest()


def _cached_commit(hub_id: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json")
    return Path(found).parent.name if isinstance(found, str) else None


def address(config: RunConfig, base: str, texts: Mapping[str, str]) -> str:
    """Return the SHA-256 of all that is asked for in a run, before anything of it is done.

    Where texts and model lie, and how the texts were cut out of what, is no part of it.

    Args:
        config: the run.
        base: its model's `model_hash`.
        texts: the content's hash of each part.
    """
    asked = {
        "model": base,
        "texts": dict(texts),
        **{key: config.to_dict()[key] for key in ("method", "head", "settings")},
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
