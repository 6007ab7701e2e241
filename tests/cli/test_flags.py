"""The command line's own laws: flags are the dataclasses', help has examples, start is light."""

import inspect
import re
import subprocess
import sys
from dataclasses import MISSING, fields, make_dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from deltafit import DataConfig, HeadConfig, TrainingSettings
from deltafit.cli import app
from deltafit.cli.flags import attribute_help, flag_name, takes
from tests.cli.commands import WIDTH, deltafit, done
from tests.test_house import example_lines, parsed_command

COMMANDS = {
    command.name or command.callback.__name__: command.callback
    for command in app.registered_commands
    if command.callback is not None
}


def options(command: str) -> dict[str, Any]:
    found = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]  # a group
    return {name: option for option in found for name in option.opts}


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("kind", [TrainingSettings, DataConfig, HeadConfig])
def test_every_field_has_a_flag_with_its_default_and_help(command: str, kind: type) -> None:
    there, helps = options(command), attribute_help(kind)
    for field in fields(kind):
        option = there[flag_name(field.name)]
        assert option.required == (field.default is MISSING)
        if field.default is not MISSING:
            assert option.default == field.default and type(option.default) is type(field.default)
        assert len(option.help) > 15 and option.help.endswith("."), field.name
        assert helps[field.name][1:] in option.help or "One of" in option.help
        assert "`" not in option.help and "None" not in option.help


def test_help_speaks_of_flags_and_lists_choices() -> None:
    there = options("train")
    assert "--lr" in there["--head-lr"].help
    assert "linear, cosine, constant" in there["--schedule"].help
    assert there["--head-start"].help.startswith("new, or probe")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is(command: str) -> None:
    for name, option in options(command).items():
        assert option.help and option.help.endswith("."), name
        if name.startswith("--"):  # what a value is called; flags have none
            assert (option.metavar == "") == option.is_flag, name


def test_help_shows_flags_without_a_value() -> None:
    assert "--help Show this message" in re.sub(r"\s+", " ", done("--help"))
    text = re.sub(r"[\s│]+", " ", done("train", "--help"))
    assert "--balance Downsample" in text and "--help Show this message" in text
    assert "--lr FLOAT|none The highest rate" in text and "--epochs INT Passes" in text
    assert "--schedule SCHEDULE" in text and "--test-data DATA" in text
    assert "<" not in text


def test_a_dataclass_without_a_sentence_for_a_field_is_no_command() -> None:
    kind = make_dataclass("Kind", [("speed", int, 3)])
    with pytest.raises(KeyError):
        takes(kind=kind)(lambda kind: None)


def test_every_command_is_a_function_of_the_same_name() -> None:
    import deltafit as package

    assert set(COMMANDS) == set(package.__all__) & set(COMMANDS)
    assert len(COMMANDS) == 15
    for name in COMMANDS:
        assert callable(getattr(package, name)) and inspect.getdoc(getattr(package, name))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_it_takes(command: str) -> None:
    examples = example_lines(inspect.getdoc(COMMANDS[command]) or "", after="Example: ")
    assert examples
    for words in examples:
        assert parsed_command(words) == command


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_is_not_cut(command: str) -> None:
    text = done(*([command] if command else []), "--help")
    assert "…" not in text and max(map(len, text.splitlines())) <= WIDTH
    assert not command or "Example: deltafit " + command in re.sub(r"\s+", " ", text)


def test_version_and_nothing_at_all() -> None:
    from importlib.metadata import version

    assert done("--version") == f"deltafit {version('deltafit')}\n"
    bare = deltafit()
    assert bare.exit_code in (0, 2) and "Usage: deltafit" in bare.output


HEAVY = ("torch", "transformers", "sklearn", "numpy", "scipy", "pandas", "matplotlib", "accelerate")


REFUSED = [
    *("predict nowhere w1", "evaluate nowhere --data d.csv", "verify nowhere"),
    *("merge nowhere --output out", "inspect no/such/model"),
    *("truncate nowhere", "combine nowhere --output out", "extract no/such/model --output out"),
    *(f"{command} --model {model} --data {data} --output {output}"
      for command in ("train", "compare")
      for model, data, output in (
          ("minilm", "gone.csv", "new"), ("no/such/model", "imdb", "new"), ("minilm", "imdb", "."),
      )),
    "train --model minilm --data imdb --output new --lr -1",
    "compare --model minilm --data imdb --output new --seeds one",
    "plan --model minilm --data gone.csv --minutes 5",
    "plan --model minilm --data imdb --ram 8XB",
]  # fmt: skip


def test_what_is_refused_at_once_loads_little(tmp_path: Path) -> None:
    """A wrong path or value needs neither torch nor transformers, which take seconds."""
    (tmp_path / "file").touch()
    heavy = set(HEAVY) - {"numpy", "scipy"}  # half a second, for data and metrics
    code = f"""
import sys
from deltafit.cli import main
for words in {REFUSED!r}:
    sys.argv = ["deltafit", *words.split()]
    try:
        main()
    except SystemExit as end:
        print(end.code, *({heavy!r} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=tmp_path,
    )
    codes = result.stdout.split("\n")[:-1]
    assert len(codes) == len(REFUSED) and set(codes) <= {"1", "2"}, result.stderr


@pytest.mark.slow
def test_using_a_classifier_loads_no_training_and_no_plots() -> None:
    code = (
        "import sys, deltafit.cli.show, deltafit.cli.show_inspection, deltafit.prediction.using\n"
        "print(*(n for n in ('matplotlib', 'sklearn', 'deltafit.training.run', "
        "'deltafit.experiments.comparison') if n in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout == "\n"


@pytest.mark.parametrize(
    "code",
    [
        "import deltafit",
        "import deltafit; dir(deltafit); deltafit.DataConfig('x.csv')",
        "import deltafit.cli",
        "import sys; sys.argv = ['deltafit', 'train', '--help']\n"
        "import deltafit.cli\ntry:\n    deltafit.cli.main()\nexcept SystemExit:\n    pass",
    ],
)
def test_what_asks_for_little_loads_little(code: str) -> None:
    code += f"\nimport sys\nprint('heavy:', *(n for n in {HEAVY} if n in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.splitlines()[-1] == "heavy:"
