"""The project's source files, parsed once for every style test."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/duovisor"
LAYERS = ("hardware", "hypervisor", "channel", "controlling")


class Module(NamedTuple):
    """One source file: its dotted name below ``duovisor``, its path and its syntax tree."""

    name: str
    path: Path
    tree: ast.Module


@functools.cache
def read_modules() -> tuple[Module, ...]:
    """Every module under ``src/duovisor``."""
    return tuple(
        Module(
            ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"),
            path,
            ast.parse(path.read_text()),
        )
        for path in sorted(SOURCE.rglob("*.py"))
    )


def list_imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a file, inside functions and for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
