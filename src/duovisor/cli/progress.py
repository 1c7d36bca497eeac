"""What is shown while an operation is under way: a bar on a terminal, a line for each step elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duovisor.client.service import ServiceClient

    Show = Callable[[dict[str, Any]], None]

UNDER_WAY = "running"


def follow(client: ServiceClient, operation: dict[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """Follow an operation to its end and show how far it is. Raises ``ApiError`` when it failed."""
    with show_progress(title_of(operation), quiet=quiet) as show:
        return client.follow(operation, show)


def title_of(operation: dict[str, Any]) -> str:
    """An operation in two words: ``start web``."""
    return f"{operation['action'].partition('.')[2]} {operation['object'].partition('/')[2]}"


@contextmanager
def show_progress(title: str, *, quiet: bool) -> Iterator[Show]:
    """Yields what shows a state of the operation; nothing is drawn for one that ends at once."""
    if quiet:
        yield lambda operation: None
    elif sys.stderr.isatty():
        with _draw_bar(title) as show:
            yield show
    else:
        yield _print_lines(title)


def _print_lines(title: str) -> Show:
    last = ""

    def show(operation: dict[str, Any]) -> None:
        nonlocal last
        if operation["state"] == UNDER_WAY and operation["message"] != last:
            last = operation["message"]
            click.echo(f"{title}: {operation['progress']} % {last}", err=True)

    return show


@contextmanager
def _draw_bar(title: str) -> Iterator[Show]:
    bar: Any = None
    task: Any = None

    def show(operation: dict[str, Any]) -> None:
        nonlocal bar, task
        if bar is None and operation["state"] == UNDER_WAY:
            bar = _build_bar()
            task = bar.add_task(title, total=100, message="")
            bar.start()
        if bar is not None:
            bar.update(task, completed=operation["progress"], message=operation["message"])

    try:
        yield show
    finally:
        if bar is not None:
            bar.stop()


def _build_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}", style="dim"),
        console=Console(stderr=True),
        transient=True,
    )
