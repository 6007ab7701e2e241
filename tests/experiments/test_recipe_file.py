"""Recipes in files: what they say, and what a person is told who wrote one wrong."""

from pathlib import Path

import pytest
import yaml

from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.recipe import Entry, Published, Recipe, arms_of
from deltafit.experiments.recipe_file import read_recipe
from deltafit.experiments.yaml_tree import parse_yaml
from deltafit.training.settings import DataConfig, HeadConfig, TrainingSettings
from tests.experiments.recipes import TEXT


def written(folder: Path, text: str = TEXT) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_the_recipe_that_it_says(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT + "head: {head: mean, head_start: probe}\nbudget: 2000\n")
    assert read_recipe(path) == Recipe(
        name="tiny",
        model="MODEL",
        data=DataConfig("TRAIN", "TEST", "0.2"),
        runs=(Entry("head"), Entry("lora", "r={rank}", grid={"rank": [2, 4]})),
        about="Three rows on a tiny model.",
        head=HeadConfig("mean", "probe"),
        settings=TrainingSettings(epochs=2, batch_size=8, max_length=12, learning_rate=0.01),
        seeds=(0, 1),
        budget=2000,
        published=Published(
            "nobody, on nothing",
            {"head": {"accuracy": 0.5, "trainable": 1e5, "minutes": 2.0}, "r=2": {"accuracy": 0.6}},
        ),
    )


def test_a_twin_and_changes_go_over_it(tmp_path: Path) -> None:
    path = written(tmp_path)
    twin = read_recipe(path, ["model=minilm"])
    assert (twin.name, twin.model, twin.changes) == ("tiny-minilm", "minilm", "One epoch.")
    assert twin.settings == TrainingSettings(
        epochs=1, batch_size=8, max_length=12, learning_rate=0.01
    )
    changed = read_recipe(
        path,
        [
            *("settings.epochs=5", "model=minilm", "runs.1.grid.rank=[16]", "data=mine.csv"),
            *("head.head=cls", "name=mine", "seeds=[7]", "settings.warmup=0"),
        ],
    )
    assert changed.settings.epochs == 5 and changed.settings.warmup == 0
    assert changed.runs[1].grid == {"rank": [16]}
    assert changed.data == DataConfig("mine.csv", "TEST", "0.2")
    assert (changed.head.head, changed.name, changed.seeds) == ("cls", "mine", (7,))
    other = read_recipe(path, ["model=elsewhere"])
    assert (other.model, other.settings.epochs) == ("elsewhere", 2)


def test_the_example_of_the_document_is_a_recipe(tmp_path: Path) -> None:
    document = Path(__file__).parents[2] / "docs" / "recipes.md"
    example = document.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    recipe = read_recipe(written(tmp_path, example))
    assert len(arms_of(recipe)) == 8 and recipe.data == DataConfig("reviews.csv")
    said = document.read_text(encoding="utf-8").split("yaml, line 6: ")[1].split(" There are")[0]
    with pytest.raises(UsageError) as error:
        read_recipe(written(tmp_path, example.replace("  epochs:", "  epoch:")))
    assert f"line 6: {said}" in str(error.value)


def test_data_may_be_a_name(tmp_path: Path) -> None:
    text = "model: m\ndata: imdb\nruns: [{method: head}]\n"
    assert read_recipe(written(tmp_path, text)).data == DataConfig("imdb")
    limited = read_recipe(written(tmp_path, text), ["data.limit=9"])
    assert limited.data == DataConfig("imdb", limit=9)


# What is put in place of what, with the line that the sentence must name.
WRONG = {
    "a key": ("  epochs: 2", "  epoch: 2", 8, "settings.epoch: There is no such key here. Did you"),
    "a type": ("  epochs: 2", "  epochs: two", 8, "epochs: It takes a whole number; got 'two'"),
    "true": ("  epochs: 2", "  epochs: true", 8, "It takes a whole number; got True"),
    "a fraction": ("  epochs: 2", "  epochs: 2.5", 8, "It takes a whole number; got 2.5"),
    "a range": ("  epochs: 2", "  epochs: 0", 8, "must be a whole number of at least 1; got 0"),
    "none": ("  epochs: 2", "  epochs:", 8, "It takes a whole number; got None"),
    "a choice": ("  epochs: 2", "  schedule: flat", 8, "one of linear, cosine, constant; got"),
    "nothing there": ("runs:", "rnus:", 13, "Did you mean 'runs'?"),
    "no model": ("model: MODEL\n", "", 1, "The key 'model' is missing."),
    "no method": ("- method: head", "- name: head", 14, "runs.0: The key 'method' is missing."),
    "an entry's key": ("    grid:", "    gird:", 17, "runs.1.gird: There is no such key here. Did"),
    "a method": ("- method: head", "- method: haed", 14, "Did you mean 'head'?"),
    "a rank": ("[2, 4]", "[2, 0.5]", 18, "sparse:density=0.5"),
    "no list": ("[2, 4]", "2", 18, "runs.1.grid.rank: It takes a list; got 2"),
    "a grid's type": ("rank: [2, 4]", "epochs: [2, x]", 18, "grid.epochs.1: It takes a whole"),
    "a name": ("r={rank}", "r={alpha}", 16, "{alpha} stands for nothing; its grid has rank"),
    "twice": ("  epochs: 2", "  epochs: 2\n  epochs: 3", 9, "'epochs' stands there twice; the"),
    "syntax": ("seeds: [0, 1]", "seeds: [0, 1", 13, "not valid YAML"),
    "a tab": ("  epochs: 2", "\tepochs: 2", 8, "not valid YAML"),
    "a tag": ("  epochs: 2", "  epochs: !!python/name:os.system x", 8, "not valid YAML"),
    "a key's type": ("  epochs: 2", "  1: 2", 8, "the key '1' is not text"),
    "an alias in itself": ("about: Three", "about: &a [*a] # Three", 1, "an alias lies in what"),
    "a row": ("    r=2: {", "    r=3: {", 23, "published.figures.r=3: There is no such key"),
    "a figure": ("r=2: {accuracy", "r=2: {acuracy", 23, "Did you mean 'accuracy'?"),
    "a twin": ("settings: {epochs: 1}", "settings: {epoch: 1}", 27, "Did you mean 'epochs'?"),
    "a silent twin": ("    changes: One epoch.\n", "", 25, "twins.minilm has to say in words"),
    "twins": ("  minilm:\n    changes: One epoch.\n", "  - minilm\n", 24, "twins takes the name"),
    "seeds": ("seeds: [0, 1]", "seeds: [1, 1]", 12, "seeds: The seed 1 is given twice"),
    "a seed": ("  epochs: 2", "  seed: 2", 8, "A recipe has its seeds under the key 'seeds'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_error_names_file_line_key_and_the_nearest(what: str, tmp_path: Path) -> None:
    old, new, line, sentence = WRONG[what]
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    if what == "twins":
        text = text.partition("    settings: {epochs: 1}")[0]
    path = written(tmp_path, text)
    with pytest.raises(DeltafitError) as error:
        read_recipe(path)
    assert str(error.value).startswith(f"{path}, line {line}: "), error.value
    assert sentence in str(error.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = TEXT.replace("epochs: 2", "epoch: 2").replace("seeds: [0, 1]", "seeds: no")
    text = text.replace("rank: [2, 4]", "batch_size: [two]")
    with pytest.raises(UsageError) as error:
        read_recipe(written(tmp_path, text))
    told = str(error.value).splitlines()
    assert [line.split(", ")[1].split(":")[0] for line in told] == ["line 8", "line 12", "line 18"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["settings.epoch=1"], "--set settings.epoch=1: settings.epoch: There is no such key"),
        (["settings.epochs=x"], "--set settings.epochs=x: settings.epochs: It takes a whole"),
        (["settings.epochs=0"], "--set settings.epochs=0: settings.epochs: epochs must be"),
        (["runs.1.grid.rank=[0.5]"], "--set runs.1.grid.rank=[0.5]: runs.1.grid.rank: rank must"),
        (["runs.2.method=full"], "runs is a list of 2, so there is no '2' in it"),
        (["model.x=1"], "--set model.x=1: model is 'MODEL', so there is no 'x' in it"),
        (["settings.epochs=["], "--set settings.epochs=[: not valid YAML"),
        (["model=[1]"], "--set model=[1]: model: It takes text; got [1]"),
        (["twins.minilm.changes=no"], "a twin is chosen by its model"),
        (["settings"], "--set takes key=value"),
        (["settings..epochs=1"], "--set takes key=value"),
        (["=1"], "--set takes key=value"),
    ],
)
def test_an_error_says_that_it_came_from_the_command_line(
    changes: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        read_recipe(written(tmp_path), changes)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["a: !!int x", "a: !!float x", "a: " + 2000 * "["])
def test_what_pyyaml_fails_at_is_one_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(DeltafitError, match=r"tiny.yaml.*: not valid YAML"):
        read_recipe(written(tmp_path, text))


@pytest.mark.parametrize("text", ["", "# nothing\n", "a text", "- a\n- list\n", "3"])
def test_what_holds_no_keys_is_one_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no recipe: it takes keys such as name"):
        read_recipe(written(tmp_path, text))


def test_what_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff")
    (tmp_path / "control.yaml").write_bytes(b"a: \x00")
    for name, sentence in {
        "bytes.yaml": "not UTF-8", "control.yaml": "not valid YAML",
        "none.yaml": "No such file", ".": "Could not read",
    }.items():  # fmt: skip
        with pytest.raises(DeltafitError, match=sentence):
            read_recipe(tmp_path / name)


WORDS = ("a", "1", "-7", "+3", "0.5", ".5", "5.", "1.5e+3", "true", "False", "null", "~", "x y")


@pytest.mark.parametrize("word", WORDS)
def test_plain_words_are_what_pyyaml_reads(word: str) -> None:
    assert parse_yaml(f"- {word}", "it").content == yaml.safe_load(f"- {word}")


def test_where_yaml_1_1_surprises_1_2_is_read() -> None:
    words = {"5e-4": 5e-4, "1E3": 1000.0, "on": "on", "off": "off", "yes": "yes", "no": "no",
             "010": 10, "1:30": "1:30", "2024-01-01": "2024-01-01", "1_0": "1_0"}  # fmt: skip
    assert parse_yaml("\n".join(f"- {w}" for w in words), "it").content == [*words.values()]


def test_an_alias_stands_for_what_it_names() -> None:
    content = parse_yaml("a: &x {k: [1, 2]}\nb: *x\n", "it").content
    assert content == {"a": {"k": [1, 2]}, "b": {"k": [1, 2]}}
