"""What a run is told apart by: everything that decides its result, and a hash of that."""

import hashlib
import json
from typing import Any

from deltafit.data import Splits
from deltafit.training.config import RunConfig

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


def run_hash(
    config: RunConfig, splits: Splits, base_fingerprint: dict[str, Any], precision: str | None
) -> str:
    """Return the SHA-256 of all that decides a run, in hexadecimal digits.

    Two runs of one hash differ by nothing that was asked for, and by nothing that was decided on a
    machine and changes results by more than the order of sums.

    Args:
        config: the run.
        splits: its texts, counted by their content.
        base_fingerprint: of the base's tensors, which count wherever the checkpoint lies.
        precision: what its frozen products were computed in, by request or by measurement.
    """
    content = deciding(run_content(config, splits))
    settings = {**content["config"]["settings"], "precision": precision}
    config_of_run = {**content["config"], "model": base_fingerprint, "settings": settings}
    text = json.dumps({**content, "config": config_of_run}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
