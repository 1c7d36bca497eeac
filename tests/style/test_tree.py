"""The tree a newcomer opens: short laws, small files, names that say something."""

from __future__ import annotations

import ast

import pytest
from tests.style.source_tree import LAYERS, SOURCE, Module, read_modules

README_LINES = 15
FILE_LINES = 500
EMPTY_NAMES = {"util", "utils", "common", "base", "helper", "helpers", "misc"}

MODULES = pytest.mark.parametrize("module", read_modules(), ids=lambda module: module.name or "duovisor")


@pytest.mark.parametrize("layer", [*LAYERS, "spec", "client", "comparison", "cli"])
def test_each_layer_has_a_short_law(layer: str) -> None:
    lines = (SOURCE / layer / "README.md").read_text().splitlines()
    assert lines[0].startswith(f"# {layer}: ")
    assert len(lines) <= README_LINES


@MODULES
def test_module_says_what_it_is_for(module: Module) -> None:
    assert ast.get_docstring(module.tree)


@MODULES
def test_file_is_small(module: Module) -> None:
    assert len(module.path.read_text().splitlines()) <= FILE_LINES


@MODULES
def test_name_says_what_is_in_it(module: Module) -> None:
    assert not EMPTY_NAMES & set(module.name.split("."))
