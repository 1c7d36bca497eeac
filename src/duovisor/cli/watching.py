"""``--watch``: shows something again whenever an event says that it may have changed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.client.service import ServiceClient

watch_option = click.option("--watch", is_flag=True, help="Show it again at every change, until Ctrl-C.")

_HOME_AND_CLEAR = "\x1b[H\x1b[J"


def show(
    client: ServiceClient,
    read: Callable[[], Any],
    render: Callable[[Any], str],
    *,
    as_json: bool,
    watch: bool,
) -> None:
    """Print what ``read`` returns, for people or as JSON; with ``watch``, again at each change."""
    if not watch:
        value = read()
        click.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else render(value))
        return
    try:
        _watch(
            client, read, lambda value: json.dumps(value, ensure_ascii=False) if as_json else render(value)
        )
    except KeyboardInterrupt:
        return


def _watch(client: ServiceClient, read: Callable[[], Any], render: Callable[[Any], str]) -> None:
    after = int(client.get("/v1/events", limit=1)["last"])
    value = read()
    _draw(render(value))
    for _ in client.events(after):  # silence too: what shows ages is to be drawn again
        changed = read()
        if changed != value or sys.stdout.isatty():
            value = changed
            _draw(render(value))


def _draw(text: str) -> None:
    """On a terminal in the place of the last one, elsewhere below it."""
    click.echo((_HOME_AND_CLEAR if sys.stdout.isatty() else "") + text)
    sys.stdout.flush()
