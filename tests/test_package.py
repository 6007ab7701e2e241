"""What ``import deltafit`` promises."""

import importlib
import inspect
import pkgutil
from importlib.metadata import version
from pathlib import Path

import pytest

import deltafit


@pytest.mark.parametrize("name", deltafit.__all__)
def test_every_promised_name_is_there_and_described(name: str) -> None:
    thing = getattr(deltafit, name)
    assert thing.__name__ == name and len(inspect.getdoc(thing) or "") > 20
    assert name in dir(deltafit)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tune'"):
        deltafit.tune  # noqa: B018  # the point


def test_every_module_can_be_imported_alone_and_says_what_it_is() -> None:
    for module in pkgutil.walk_packages(deltafit.__path__, "deltafit."):
        assert inspect.getdoc(importlib.import_module(module.name)), module.name


def test_it_is_typed_and_has_a_version() -> None:
    assert Path(deltafit.__path__[0], "py.typed").is_file()
    assert version("deltafit")
