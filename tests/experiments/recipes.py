"""A small recipe on a tiny model, as text to be changed.

Import as ``from tests.experiments.recipes import tiny_recipe``.
"""

from pathlib import Path

from tests.training.tiny_runs import save_model, write_table

TEXT = """\
about: Three rows on a tiny model.
model: MODEL
data:
  data: TRAIN
  test_data: TEST
  validation: 0.2
settings:
  epochs: 2
  batch_size: 8
  max_length: 12
  learning_rate: 1e-2
seeds: [0, 1]
runs:
  - method: head
  - method: lora
    name: r={rank}
    grid:
      rank: [2, 4]
published:
  source: nobody, on nothing
  figures:
    head: {accuracy: 0.5, trainable: 1e5, minutes: 2}
    r=2: {accuracy: 0.6}
twins:
  minilm:
    changes: One epoch.
    settings: {epochs: 1}
"""


def tiny_recipe(folder: Path) -> Path:
    """Write the recipe with its model and texts; return its path."""
    path = folder / "tiny.yaml"
    text = TEXT.replace("MODEL", save_model(folder / "model", dropout=True))
    text = text.replace("TRAIN", write_table(folder / "train.csv"))
    path.write_text(text.replace("TEST", write_table(folder / "test.csv", 20, seed=5)))
    return path
