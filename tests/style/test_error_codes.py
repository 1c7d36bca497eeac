"""Every error has a line in the table of exit codes, and every line an error."""

from __future__ import annotations

import ast

from tests.style.source_tree import read_modules

from duovisor.cli.exit_codes import EXIT_CODES


def list_codes() -> dict[str, str]:
    """Code → class name of every class that sets ``code``, but for the roots of the error tree."""
    found = {}
    for module in read_modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and (code := find_code(node)) and not is_root(node):
                found[code] = node.name
    return found


def find_code(node: ast.ClassDef) -> str | None:
    """The value of ``code = "…"`` in an error class."""
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code))):
                return code
            case ast.AnnAssign(target=ast.Name(id="code"), value=ast.Constant(value=str(code))):
                return code
    return None


def is_root(node: ast.ClassDef) -> bool:
    """A layer's root, or the root of all: what is raised is one of their children."""
    return node.name == "DuovisorError" or any(
        isinstance(base, ast.Name) and base.id == "DuovisorError" for base in node.bases
    )


def list_root_codes() -> set[str]:
    return {
        code
        for module in read_modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and is_root(node) and (code := find_code(node))
    }


def test_every_code_has_an_exit_code() -> None:
    assert {code: name for code, name in list_codes().items() if code not in EXIT_CODES} == {}


def test_every_exit_code_belongs_to_an_error() -> None:
    assert set(EXIT_CODES) - set(list_codes()) - list_root_codes() == set()
