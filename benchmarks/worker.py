"""One side of one work in a process of its own; `benchmarks/speed.py` calls it.

    python benchmarks/worker.py WORK SIDE DATA THREADS

prints one JSON object. Timing begins after the warm-up steps and ends with the last step. The
states of frozen layers that deltafit computes ahead of its first step are work of the steps, and
added to their time; its checks, once a run, are told beside it. Real tokens are counted, as the
sides may meet other rows.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from measuring import in_another_process, memory
from works import FLOAT32, HELD_OUT, LORALIB, OURS, WITHOUT_DROPOUT, WORKS, Work


def main() -> None:
    """Run one side of one work and print what it took."""
    name, side, data, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(run(WORKS[name], side, Path(data))))


def run(work: Work, side: str, data: Path) -> dict[str, Any]:
    """Return times, losses, accuracy on held-out rows and memory of one side of a work.

    Args:
        work: what is to be done.
        side: who does it.
        data: the folder that holds the data sets.
    """
    # All of every side, so that no side's floor holds more code than another's.
    import many_adapters
    import ours
    import plain_loop
    import predicting
    import rivals
    import sweep

    infer = {"predict": predicting.predict, "mixed": many_adapters.run}.get(work.method)
    splits = splits_of(work, data, judged=infer is not None)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        arguments = (work, side, location_of(work.model, place), splits, place)
        if infer is not None:
            return infer(*arguments)
        floor = memory()
        own = dict.fromkeys((OURS, WITHOUT_DROPOUT, FLOAT32), ours.train)
        own[LORALIB] = plain_loop.train
        train = sweep.train if work.method == "sweep" else own.get(side, rivals.train)
        judged = min(HELD_OUT, len(splits.parts()["validation"].labels))
        return train(*arguments).record(floor) | {"held_out": judged}


def splits_of(work: Work, data: Path, *, judged: bool = False) -> Any:
    """Return the rows of a work: to train on with a part to judge on, or those to be judged."""
    from deltafit.data import load_splits

    folder = data / work.data
    return load_splits(
        str(folder / "train.csv") if folder.is_dir() else work.data,
        test_data=str(folder / "test.csv") if judged else None,
        validation="none" if judged else "0.2",
        limit=work.rows,
    )


def location_of(model: str, folder: Path) -> str:
    """Return where every side loads a model; random weights for ``bert-base`` are written first.

    What is GGUF is unpacked: the rival would do it at every start.
    """
    from deltafit.data import resolve_model

    if model == "bert-base":
        return in_another_process(write_bert_base, folder / model)
    source = resolve_model(model)
    return source.location if source.gguf_file is None else in_another_process(unpacked, model)


def write_bert_base(folder: Path) -> str:
    """Write an encoder in BERT-base's shape with random weights, and MiniLM's tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from deltafit.data import resolve_model

    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model("minilm").location).save_pretrained(folder)
    return str(folder)


def unpacked(model: str) -> str:
    """Return the folder of a GGUF model's weights in float32."""
    from deltafit.data import resolve_model
    from deltafit.tasks.gguf import as_checkpoint

    return as_checkpoint(resolve_model(model)).location


if __name__ == "__main__":
    main()
