"""A folder for each label, with a file for each text in it."""

from collections.abc import Iterator
from pathlib import Path

from deltafit.data.rows import Row, Table
from deltafit.data.text_files import TextFile, open_text
from deltafit.errors import DeltafitError

_TEXTS = (".txt", ".txt.gz")
# As in IMDb's own archive, and of parts.
_NO_LABELS = ("unsup", "unlabeled", "unlabelled", "train", "validation", "valid", "test")


def is_text(path: Path) -> bool:
    """Say whether a path is a file with the name of plain text, packed or not; no hidden one."""
    name = path.name.lower()
    return name.endswith(_TEXTS) and not name.startswith(".") and path.is_file()


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
    # All of them before any is read.
    by_label = [(label.name, _texts_of(label)) for label in _label_folders(folder)]
    files = [(label, open_text(path)) for label, paths in by_label for path in paths]

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
        found = [
            each
            for each in folder.iterdir()
            if each.is_dir() and not each.name.startswith(".") and any(map(is_text, each.iterdir()))
        ]
        # By name: how paths compare differs between systems.
        return sorted(found, key=lambda path: path.name)
    except OSError as error:
        raise DeltafitError(f"Could not read {folder}: {error.strerror or error}.") from error


def _texts_of(label: Path) -> list[Path]:
    """Return the files of a label, in the order of their names.

    Raises:
        DeltafitError: the name is that of texts without a label or of a part, or some files would
            be passed over.
    """
    if label.name.lower() in _NO_LABELS:
        raise DeltafitError(
            f"{label} holds texts, and its name is of no label but of texts that have none or "
            "of a part. Move it elsewhere, or rename it if it is a label."
        )
    every = sorted(label.iterdir(), key=lambda path: path.name)
    texts: list[Path] = []
    others: list[str] = []
    for path in every:
        if is_text(path):
            texts.append(path)
        elif not path.name.startswith("."):
            others.append(path.name)
    if others:
        raise DeltafitError(
            f"{label} holds {len(others):,} files that do not end in .txt, such as "
            f"{others[0]!r}. Give texts that ending, and move others elsewhere."
        )
    return texts


def _notes(folder: Path, files: list[TextFile]) -> tuple[str, ...]:
    others = [file for file in files if file.note]
    if len(others) < 2:
        return tuple(note for file in others for note in file.notes)
    return (
        f"{folder}: {len(others):,} of {len(files):,} files were read as Windows-1252 (Latin-1), "
        f"since they are not UTF-8; the first is {others[0]}.",
    )
