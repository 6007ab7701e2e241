"""Texts to classify are read as they are needed: a file of any size takes the same memory."""

import csv
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltafit.data import iterate_texts

LENGTH = 1000  # characters of a text
SAMPLE = 1000  # rows by which columns are told apart
FEW, MANY = 2 * SAMPLE, 4 * SAMPLE


def texts(count: int) -> Iterator[str]:
    return (f"{number} ".ljust(LENGTH, "x") for number in range(count))


def write(path: Path, count: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".txt":
            file.writelines(f"{text}\n" for text in texts(count))
        elif path.suffix == ".jsonl":
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts(count))
        else:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(["text", "source"])
            writer.writerows((text, "here") for text in texts(count))


def peak(path: Path, count: int) -> int:
    write(path, count)
    tracemalloc.start()
    try:
        assert sum(1 for _ in iterate_texts(path)) == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    few, many = (peak(tmp_path / f"{count}{suffix}", count) for count in (FEW, MANY))
    assert few < 2 * SAMPLE * LENGTH  # what is sampled, and no more
    assert many - few < 0.05 * (MANY - FEW) * LENGTH
