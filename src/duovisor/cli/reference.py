"""Writes the command reference from the commands themselves; ``docs/cli.md`` is this, and a test says so.

``python -m duovisor.cli.reference > docs/cli.md``
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 100
INTRODUCTION = """\
# Command line

Written by `python -m duovisor.cli.reference` from the commands themselves. Every command that prints takes
`--json`; exit codes are in `src/duovisor/error_table.py`. All but `host`, `image` and `anatomy` speak with
duovisord, which is started when this host's own is absent ([why](decisions/013-cli.md)).
"""


def build_reference() -> str:
    """The reference in Markdown: one section for each command, its help as it is shown."""
    from duovisor.cli.main import cli

    sections = [INTRODUCTION]
    for path, command in walk(cli, "duovisor"):
        mark = "#" * min(2 + path.count(" ") // 2, 3)
        sections.append(f"{mark} {path}\n\n```text\n{describe(path, command)}\n```\n")
    return "\n".join(sections)


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, each with what is typed."""
    yield path, command
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from walk(below, f"{path} {name}")


def describe(path: str, command: click.Command) -> str:
    """A command's help, whatever the terminal."""
    ctx = click.Context(
        command, info_name=path, terminal_width=WIDTH, max_content_width=WIDTH, color=False,
        help_option_names=["-h", "--help"],
    )  # fmt: skip
    return command.get_help(ctx).rstrip()


if __name__ == "__main__":
    print(build_reference(), end="")
