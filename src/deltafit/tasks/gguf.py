"""GGUF weights, unpacked once into an ordinary checkpoint.

Reading a GGUF file takes transformers a minute for a small model, three times over (configuration,
tokenizer, weights), every time. So a local one is unpacked to float32 safetensors in the cache that
transformers uses anyway, under the hash of its bytes, and loaded from there.
"""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from deltafit.data import ModelSource
from deltafit.files import sha256_of_file, write_folder_atomically


def as_checkpoint(source: ModelSource) -> ModelSource:
    """Return where to load the model from: the unpacked copy of a GGUF file, else as it is.

    The copy is made when it is not there: as large as the model in float32, kept until deleted.

    Raises:
        DeltafitError: the copy cannot be written.
        OSError, ValueError, ImportError: transformers cannot read the file.
    """
    if source.gguf_file is None:
        return source
    file = Path(source.location) / source.gguf_file
    copy = _cache() / _digest(file, file.stat().st_mtime_ns)[:16]
    if not copy.is_dir():
        # A tokenizer_config.json beside the file may name code.
        gguf = {"gguf_file": source.gguf_file, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(source.location, **gguf)
        model = AutoModel.from_pretrained(source.location, dtype=torch.float32, **gguf)
        # The weights are dense by now; only the mark of what they were forbids saving them.
        if model.hf_quantizer is not None:
            model.hf_quantizer.remove_quantization_config(model)
        with write_folder_atomically(copy) as temporary:
            tokenizer.save_pretrained(temporary)
            model.save_pretrained(temporary)
    return replace(source, location=str(copy), gguf_file=None)


@cache
def _digest(file: Path, changed: int) -> str:
    """Return the file's hash; ``changed`` makes a rewritten file a new one.

    Tokenizer, configuration and weights each ask where the model is, and a file may be gigabytes.
    """
    return sha256_of_file(file)


def _cache() -> Path:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(home).expanduser() / "deltafit" / "gguf"
