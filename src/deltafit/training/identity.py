"""What a run is told apart by: everything that decides its result, and a hash of that."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from deltafit.data import Splits
from deltafit.training.config import RunConfig

_LEFT_OPEN = ("precision", "packing")  # of the settings: found out on the machine
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
