"""A folder for each label, with a file for each text in it."""

from collections.abc import Iterator
from pathlib import Path

from deltafit.data.rows import Row, Table
from deltafit.data.text_files import TextFile, open_text
from deltafit.errors import DeltafitError

_TEXTS = (".txt", ".txt.gz")


def is_text(path: Path) -> bool:
    """Say whether a file's name is that of plain text, packed or not."""
    return path.name.lower().endswith(_TEXTS)


def has_label_folders(folder: Path) -> bool:
    """Say whether two folders or more in it hold texts."""
    return len(_label_folders(folder)) > 1


def open_label_folders(folder: Path) -> Table:
    """Open a folder that has a folder of texts for each label, such as pos and neg.

    Files are in the order of their labels' names and then of their own, which is the same on all
    systems; a line break at a file's end is no part of its text.

    Raises:
        DeltafitError: a file cannot be read, or is empty.
    """
    files = [
        (label.name, open_text(path))
        for label in _label_folders(folder)
        for path in sorted(filter(is_text, label.iterdir()))
    ]

    def rows() -> Iterator[Row]:
        for number, (label, file) in enumerate(files, 1):
            text = "".join(file.plain_lines()).removesuffix("\n").removesuffix("\r")
            yield Row(number, number, (text, label))

    return Table(
        str(folder),
        ("text", "label"),
        rows,
        _notes(folder, [file for _, file in files]),
        numbered=False,
        files=tuple(str(file) for _, file in files),
    )


def _label_folders(folder: Path) -> list[Path]:
    try:
        return sorted(
            each
            for each in folder.iterdir()
            if each.is_dir() and not each.name.startswith(".") and any(map(is_text, each.iterdir()))
        )
    except OSError as error:
        raise DeltafitError(f"Could not read {folder}: {error.strerror or error}.") from error


def _notes(folder: Path, files: list[TextFile]) -> tuple[str, ...]:
    others = [file for file in files if file.note]
    if len(others) < 2:
        return tuple(note for file in others for note in file.notes)
    return (
        f"{folder}: {len(others):,} of {len(files):,} files were read as Windows-1252 (Latin-1), "
        f"since they are not UTF-8; the first is {others[0]}.",
    )
