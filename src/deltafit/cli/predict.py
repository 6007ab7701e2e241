"""``deltafit predict``."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import typer

from deltafit.cli.options import Base, BatchTokens, Run, TextColumn
from deltafit.cli.running import console, explained, json_line, reporting
from deltafit.errors import UsageError
from deltafit.files import refuse_existing, written_atomically


def predict(
    folder: Run,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; none reads --data, or standard input, one a line."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="A table or .txt file of texts.")
    ] = None,
    text_column: TextColumn = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write this file instead of standard output."),
    ] = None,
    model: Base = None,
    batch_tokens: BatchTokens = 2048,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="float32, or bf16 where the machine has it.")
    ] = "float32",
) -> None:
    """Classify texts; prints one JSON object a line, in order.

    Example: deltafit predict runs/imdb "A wonderful film."

    Example: deltafit predict runs/imdb --data reviews.csv --output labelled.jsonl
    """
    with explained():
        from deltafit.prediction.location import adapter_folder

        if texts and data:
            raise UsageError("Give texts or --data, not both.")
        if text_column and not data:
            raise UsageError("--text-column is a column of --data, which is not given.")
        adapter_folder(folder)
        if output is not None:
            refuse_existing(output)
        source = _begun(_texts(texts, data, text_column))
        from deltafit.cli.show import say, what_was_cut
        from deltafit.prediction.using import predict as run
        from deltafit.training.progress import Followed

        # Beside lines that appear in the same terminal a bar would only be in the way.
        beside = output is None and sys.stdout is not None and sys.stdout.isatty()
        with reporting("texts", silent=beside) as reporter, _written_to(output) as write:
            progress = Followed(reporter, "prediction")
            for prediction in run(
                folder, source,
                model=model, batch_tokens=batch_tokens,
                precision=precision,  # type: ignore[arg-type]  # checked there
                progress=progress,
            ):  # fmt: skip
                write(vars(prediction))
        last = progress.last
        if last is not None and last.truncated:
            say(console(stderr=True), what_was_cut(last.texts, last.truncated, last.max_length))


@contextmanager
def _written_to(output: Path | None) -> Iterator[Callable[[dict[str, Any]], object]]:
    """Yield what writes one object a line, to a file that appears when all are in it."""
    if output is None:
        yield lambda content: typer.echo(json_line(content))
        return
    with written_atomically(output) as file:
        yield lambda content: file.write(json.dumps(content, ensure_ascii=False) + "\n")


def _begun(texts: Iterable[str]) -> Iterator[str]:
    """Read the first text at once: what cannot be read is said before a model is loaded."""
    remaining = iter(texts)
    first = list(islice(remaining, 1))
    return chain(first, remaining)


def _texts(texts: list[str] | None, data: str | None, column: str | None) -> Iterable[str]:
    if texts:
        for number, text in enumerate(texts, 1):
            try:
                text.encode()
            except UnicodeEncodeError as error:  # the shell gave bytes that are no text
                raise UsageError(f"Text {number} is not UTF-8 text.") from error
        return texts
    if data is not None:
        from deltafit.cli.show import say
        from deltafit.data import iterate_texts

        def note(sentence: str) -> None:
            say(console(stderr=True), sentence)

        return (text for _, text in iterate_texts(data, text_column=column, note=note))
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("Give texts, --data FILE, or texts on standard input, one a line.")
    return _lines()


def _lines() -> Iterator[str]:
    """Yield the lines of standard input that hold a text."""
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # type: ignore[union-attr]  # a text stream, seen above
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"Standard input is not UTF-8 text (byte {error.start}).") from error
