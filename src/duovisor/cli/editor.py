"""Changes a definition in the user's editor, as often as it takes until the service accepts it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.definition import parse_definition, render_definition
from duovisor.errors import DuovisorError
from duovisor.process import ProgramFailedError, ProgramNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    Document = dict[str, Any]

EDITORS = ("sensible-editor", "nano", "vi")
RETRYABLE = frozenset({"spec-invalid", "spec-unreadable", "request-invalid", "vm-change-refused"})


def edit_document(name: str, document: Document, write: Callable[[Document], Document]) -> Document | None:
    """Let the user change a document, and hand it to ``write`` until that accepts it.

    A text that comes back as it was gives up: nothing is written, and what ``write`` said last is raised.
    What it refuses for another reason, such as somebody else's change, is kept in a file.
    """
    text = render_definition(document)
    problem: DuovisorError | None = None
    while True:
        edited = run_editor(name, add_problem(text, problem))
        if strip_comments(edited) == strip_comments(text):
            if problem is not None:
                raise problem
            return None
        text = strip_comments(edited)
        try:
            return write(parse_definition(text))
        except DuovisorError as error:
            if error.code not in RETRYABLE:
                keep(name, text)
                raise
            problem = error


def add_problem(text: str, problem: DuovisorError | None) -> str:
    """The text under what is wrong with it, as comments."""
    lines = ["a VM's definition; save and leave to change it, leave it as it is to give up"]
    if problem is not None:
        lines = ["", f"refused: {problem}", "", *lines]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + text


def strip_comments(text: str) -> str:
    """The text without the lines that are comments."""
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("#"))


def run_editor(name: str, text: str) -> str:
    """Open a text in the user's editor and return what was saved. Raises ``ProcessError``."""
    command = find_editor()
    with tempfile.TemporaryDirectory(prefix="duovisor-edit-") as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(text)
        done = subprocess.run([*command, str(path)], check=False)  # it has the terminal: not through the gate
        if done.returncode:
            raise ProgramFailedError(command, done.returncode, "", remedy="nothing was changed")
        return path.read_text(errors="replace")


def find_editor() -> list[str]:
    """``$VISUAL``, ``$EDITOR``, or what is installed. Raises ``ProgramNotFoundError``."""
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    command = shlex.split(chosen) if chosen else [name for name in EDITORS if shutil.which(name)][:1]
    if not command or shutil.which(command[0]) is None:
        raise ProgramNotFoundError(
            f"cannot start the editor {chosen!r}" if chosen else "there is no editor",
            remedy="set EDITOR, or use --set KEY=VALUE",
        )
    return command


def keep(name: str, text: str) -> None:
    """Save what the user wrote and say where."""
    with tempfile.NamedTemporaryFile("w", prefix=f"duovisor-{name}-", suffix=".yaml", delete=False) as file:
        file.write(text)
    click.echo(f"what you wrote is kept in {file.name}", err=True)
