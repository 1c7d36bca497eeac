"""What every command does with its result: JSON for programs, a designed text for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def print_json(value: Any) -> None:
    """Print a JSON document, two spaces deep, keys in the order given."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_result(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print ``value`` as JSON, or call ``show`` for people."""
    if as_json:
        print_json(value)
    else:
        show()


def print_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print aligned columns under a dim header; no frame, so that awk and grep can read it too."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
