"""What storing the base weights in few bits saves of memory, and what it costs of time.

    python benchmarks/quantised.py [--threads N] [--steps N]

loads MiniLM and SmolLM2-135M (packages) with base weights in float32, int8 and nf4, each in a
process of its own, trains LoRA on all linear layers for a few steps on random tokens, and prints a
table and one line of JSON. Run it when nothing else runs.
"""

import argparse
import json
import statistics
import time
from typing import Any, get_args

import torch

from measuring import in_another_process, machine

MODELS = ("minilm", "smollm2")
ROWS, LENGTH, WARM_UP = 16, 64, 2
MEGABYTE = 1e6


def main() -> None:
    """Measure every model with every kind of weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    from deltafit.training.settings import BaseWeights

    records = [
        {"model": model, "base_weights": kind}
        | in_another_process(measured, model, kind, options.steps, options.threads)
        for model in MODELS
        for kind in get_args(BaseWeights)
    ]
    print("| model | base weights | stored MB | of it blocks MB | process MB | peak MB | step s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for record in records:
        sizes = ("stored", "blocks", "process", "loading_peak", "peak")
        stored, blocks, process, _, peak = (f"{record[size] / MEGABYTE:.0f}" for size in sizes)
        print(
            f"| {record['model']} | {record['base_weights']} | {stored} | {blocks} | {process} | "
            f"{peak} | {record['step_seconds']:.3f} |"
        )
    print(json.dumps({"records": records, "machine": machine(options.threads)}))


def measured(name: str, kind: str, steps: int, threads: int) -> dict[str, Any]:
    """Return what one model takes with one kind of weights.

    Returns:
        Bytes: ``stored``, of the base's tensors; ``blocks``, of the linear layers in the blocks
        alone; ``process``, what the process grew by when the base was loaded (and quantised);
        ``loading_peak``, by how much at most meanwhile; ``peak``, by how much at most while it
        trained. ``step_seconds``: the median step.
    """
    import psutil

    from deltafit.adapters import adapt, quantise
    from deltafit.data import resolve_model
    from deltafit.methods import LoRA
    from deltafit.tasks.classification import HeadSettings, load_classifier
    from deltafit.training.memory import measured_memory

    torch.set_num_threads(threads)
    process = psutil.Process()
    torch.randn(8, 8, requires_grad=True).matmul(torch.randn(8, 8)).sum().backward()
    if kind != "float32":  # imported before the floor is taken, as torch and transformers are
        import bitsandbytes  # noqa: F401  # for its libraries
    floor = process.memory_info().rss
    with measured_memory() as loading:
        classifier = load_classifier(resolve_model(name), ("a", "b"), HeadSettings("mean"), seed=0)
        model = classifier.model
        if kind != "float32":
            quantise(model, kind)  # type: ignore[arg-type]  # of BaseWeights
    grown = process.memory_info().rss - floor
    stored, blocks = _stored(model)
    adapt(model, LoRA("all-linear"), head=classifier.head_parameters)
    with measured_memory() as training:
        seconds = _steps(model, steps)
    return {
        "stored": stored,
        "blocks": blocks,
        "process": grown,
        "loading_peak": loading.process - floor,
        "peak": training.process - floor,
        "step_seconds": statistics.median(seconds[WARM_UP:]),
    }


def _stored(model: torch.nn.Module) -> tuple[int, int]:
    """Return the bytes of all tensors, and of those of the blocks' linear layers."""
    from deltafit.adapters.quantised import QuantisedLinear
    from deltafit.adapters.structure import is_matrix, main_stack, within

    name = main_stack(model).name
    extra = {
        module_name: _bytes(module.statistics)
        for module_name, module in model.named_modules()
        if isinstance(module, QuantisedLinear)
    }
    inside = [n for n, m in model.named_modules() if within(n, name) and is_matrix(m)]
    matrices = sum(model.get_parameter(f"{n}.weight").nbytes for n in inside)
    whole = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return whole + sum(extra.values()), matrices + sum(extra.values())


def _bytes(statistics_of_layer: Any) -> int:
    """Return the bytes of what dequantising takes: a tensor, or bitsandbytes' nested state."""
    if isinstance(statistics_of_layer, torch.Tensor):
        return statistics_of_layer.nbytes
    values = vars(statistics_of_layer).values()
    tensors = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
    return tensors + (_bytes(statistics_of_layer.state2) if statistics_of_layer.nested else 0)


def _steps(model: torch.nn.Module, steps: int) -> list[float]:
    """Train on random tokens; return the seconds of each step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 5000, (ROWS, LENGTH), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels, seconds = torch.arange(ROWS) % 2, []
    model.train()
    for _ in range(WARM_UP + steps):
        began = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(model(**batch), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
