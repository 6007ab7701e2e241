"""Packed models under torch.compile, and in two processes; last blocks for first tokens too."""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from deltafit.adapters import adapt
from deltafit.adapters.structure import main_stack
from deltafit.engine import find_reading, first_tokens, packed
from deltafit.files import read_tensors, write_tensors_atomically
from deltafit.methods import LoRA
from deltafit.tasks.classification import logits_of
from tests.adapters.adapted import head_of, randomise
from tests.engine.ragged import (
    PACKABLE,
    assert_same,
    classifier,
    in_training,
    outputs_and_gradients,
    ragged,
    shapes_in_blocks,
)

SCRIPT = """
import sys
from tests.engine.test_packing_elsewhere import go
go(*sys.argv[1:])
"""
NEEDS_COMPILER = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="inductor compiles C++"
)
# With "reads" the last block runs for first tokens alone.
WAYS = (*PACKABLE, "bert reads")
# Each process's half of a batch has other lengths, and so another sheet.
BATCHES = tuple(ragged(lengths, seed=s) for s, lengths in enumerate([(9, 5, 1, 7), (2, 8, 8, 3)]))


def adapted(architecture: str = "bert") -> nn.Module:
    """A tiny model with LoRA, in training without dropout."""
    model = in_training(classifier(architecture))
    adapt(model, LoRA(rank=2), head=head_of(model))
    randomise(model, std=0.1)  # small, or rounding grows
    return model


def steps(model: nn.Module, part: slice) -> dict[str, Tensor]:
    """Take a step on a part of every batch; return what was trained."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD(trained.values(), lr=0.1)
    for batch in BATCHES:
        mine = {name: tensor[part] for name, tensor in batch.items()}
        optimiser.zero_grad()
        logits_of(model, mine).log_softmax(-1)[:, 0].neg().mean().backward()
        optimiser.step()
    return {n.removeprefix("module."): p.detach() for n, p in trained.items()}


def go(folder: str) -> None:
    """One of two processes: every second row, of every model in turn."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for how in WAYS:
        architecture, *reads = how.split()
        model = adapted(architecture)
        layers = find_reading(model, BATCHES[0]) if reads else None
        reading = nullcontext() if layers is None else first_tokens(model, layers)
        with packed(model), reading, shapes_in_blocks(model) as shapes:
            trained = steps(DistributedDataParallel(model), slice(rank, None, 2))
        lengths = [int(batch["attention_mask"][rank::2].sum()) for batch in BATCHES]
        assert shapes == [(1, 2 if reads else tokens) for tokens in lengths], how
        if rank == 0:
            write_tensors_atomically(Path(folder) / f"{how}.safetensors", trained)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes trained of every model, a file each."""
    folder = tmp_path_factory.mktemp("trained")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(str(script), str(folder)),
    ]
    path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    subprocess.run(command, check=True, env=environment, timeout=250)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_two_processes_step_as_one_with_the_whole_batch(trained_by_two: Path, how: str) -> None:
    model = adapted(how.split(maxsplit=1)[0])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with packed(model):
        expected = steps(model, slice(None))
    found = read_tensors(trained_by_two / f"{how}.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)
    assert max(float((value - before[n]).abs().max()) for n, value in expected.items()) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "backend", "count"),
    [
        ("bert", "aot_eager", 1),
        pytest.param("bert", "inductor", 1, marks=NEEDS_COMPILER),
        # A second batch is compiled anew, which is slow.
        *((a, "eager", 2 if a in ("bert", "t5") else 1) for a in PACKABLE),
    ],
)
def test_a_compiled_model_gives_the_same_packed(
    architecture: str, backend: str, count: int
) -> None:
    # What depends on the lengths of a batch breaks the graph, and runs uncompiled.
    model = adapted(architecture)
    del model.get_submodule(main_stack(model).name)[1:]  # compiling is slow
    batches = BATCHES[:count]
    expected = [outputs_and_gradients(model, batch) for batch in batches]
    torch.compiler.reset()
    counters.clear()
    model.compile(backend=backend)
    with packed(model), shapes_in_blocks(model) as shapes:
        found = [outputs_and_gradients(model, batch) for batch in batches]
    assert shapes == [(1, int(batch["attention_mask"].sum())) for batch in batches]
    assert counters["stats"]["unique_graphs"] > 0, "something was compiled"
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_for_first_tokens() -> None:
    model = adapted()
    del model.bert.encoder.layer[1:]
    expected = [outputs_and_gradients(model, batch) for batch in BATCHES]
    layers = find_reading(model, BATCHES[0])
    assert layers is not None
    torch.compiler.reset()
    model.compile(backend="eager")
    with packed(model), first_tokens(model, layers):
        found = [outputs_and_gradients(model, batch) for batch in BATCHES]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
