"""The examples in docstrings, run on the package as it is installed (which need not be the folder beside this one)."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import moldiff

MODULES = [module.name for module in pkgutil.walk_packages(moldiff.__path__, "moldiff.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0
