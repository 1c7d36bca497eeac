"""``duovisor event``: who did what to which object, when, and how it came out."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json
from duovisor.cli.table import format_state, format_table, format_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.client.service import ServiceClient

HEADER = ("AT", "BY", "ACTION", "OBJECT", "OUTCOME", "MESSAGE")
PAGE = 1000

object_option = click.option(
    "--object", "object_name", metavar="KIND/NAME", help="Only of this, as in vm/web."
)


@click.group()
def command() -> None:
    """List and follow events."""


@command.command("list")
@object_option
@click.option("--limit", default=50, show_default=True, help="How many, the latest.")
@json_option
def list_command(object_name: str | None, limit: int, as_json: bool) -> None:
    """List the latest events, oldest first."""
    client = connect()
    events = [
        event for event in read_events(client, None if object_name else limit) if is_of(event, object_name)
    ]
    events = events[-limit:]
    if as_json:
        print_json(events)
    else:
        rows = [build_row(event) for event in events]
        click.echo(format_table(HEADER, rows) if rows else "no events")


@command.command()
@object_option
@click.option("--after", type=int, help="Begin after the event with this number, not with the next one.")
@json_option
def watch(object_name: str | None, after: int | None, as_json: bool) -> None:
    """Print events as they happen, until Ctrl-C; one line of JSON each with --json."""
    try:
        for message in connect().events(after):
            if message is not None and message.kind == "message" and is_of(message.document, object_name):
                event = message.document
                click.echo(json.dumps(event, ensure_ascii=False) if as_json else format_line(event))
                sys.stdout.flush()
    except KeyboardInterrupt:
        return


def read_events(client: ServiceClient, latest: int | None) -> Iterator[dict[str, Any]]:
    """Events that are kept, oldest first; only so many of the latest if that is said."""
    after: int | None = 0
    if latest is not None:
        after = max(0, client.get("/v1/events", limit=1)["last"] - latest)
    while after is not None:
        page = client.get("/v1/events", limit=PAGE, after=after)
        yield from page["items"]
        after = page["after"]


def is_of(event: dict[str, Any], object_name: str | None) -> bool:
    """Whether an event is about an object."""
    return object_name in (None, event["object"])


def build_row(event: dict[str, Any]) -> tuple[str, ...]:
    """One event's line."""
    return (
        format_time(event["at"]),
        event["actor"],
        event["action"],
        event["object"],
        format_state(event["outcome"]),
        event["message"],
    )


def format_line(event: dict[str, Any]) -> str:
    """One event without a table around it: the widths of what is to come are not known."""
    at, actor, action, name, outcome, message = build_row(event)
    return f"{at}  {actor:<12}  {action:<14}  {name:<20}  {outcome}  {message}".rstrip()
