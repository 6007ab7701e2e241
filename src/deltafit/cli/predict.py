"""``deltafit predict``."""

import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import typer

from deltafit.cli.running import explained, json_line
from deltafit.errors import UsageError


def predict(
    folder: Annotated[Path, typer.Argument(help="A run's folder or its adapter folder.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; none reads --data, or standard input, one a line."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="A table or .txt file of texts.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write this file instead of standard output.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base, if it has moved.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in one forward pass.")] = 32,
) -> None:
    """Classify texts; prints one JSON object a line, in order.

    Example: deltafit predict runs/imdb "A wonderful film."

    Example: deltafit predict runs/imdb --data reviews.csv --output labelled.jsonl
    """
    with explained():
        import json
        from dataclasses import asdict

        from deltafit.files import written_atomically
        from deltafit.prediction.using import predict as run

        if texts and data:
            raise UsageError("Give texts or --data, not both.")
        if text_column and not data:
            raise UsageError("--text-column is a column of --data, which is not given.")
        if output is not None and output.exists():
            raise UsageError(f"{output} exists already. Choose another --output.")
        source = _begun(_texts(texts, data, text_column))
        predictions = run(folder, source, model=model, batch_size=batch_size)
        if output is None:
            for prediction in predictions:
                typer.echo(json_line(asdict(prediction)))
            return
        with written_atomically(output) as file:
            for prediction in predictions:
                file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")


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
        from deltafit.data import iterate_texts

        return (text for _, text in iterate_texts(data, text_column=column))
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
