"""``duovisor operation``: what takes time, who asked for it, how far it is, how it ended."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Any

import click

from duovisor.cli.completion import complete_operation
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_result
from duovisor.cli.progress import follow, title_of
from duovisor.cli.table import (
    format_age,
    format_seconds,
    format_state,
    format_table,
    format_time,
    format_values,
)
from duovisor.cli.watching import show as show_document
from duovisor.cli.watching import watch_option

STATES = ("pending", "running", "done", "failed", "cancelled", "interrupted")
HEADER = ("ID", "ACTION", "OBJECT", "STATE", "DONE", "BY", "AGE", "TOOK", "MESSAGE")


@click.group()
def command() -> None:
    """List, follow and cancel operations."""


@command.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only operations in this state.")
@click.option("--limit", default=50, show_default=True, help="How many, the newest first.")
@watch_option
@json_option
def list_command(state: str | None, limit: int, watch: bool, as_json: bool) -> None:
    """List operations, the newest first."""
    client = connect()

    def read() -> list[dict[str, Any]]:
        return list(islice(client.list_all("/v1/operations", state=state), limit))

    show_document(client, read, render_list, as_json=as_json, watch=watch)


@command.command()
@click.argument("id", shell_complete=complete_operation)
@json_option
def show(id: str, as_json: bool) -> None:
    """Show an operation."""
    operation = connect().get(f"/v1/operations/{id}")
    print_result(operation, as_json, lambda: click.echo(render_operation(operation)))


@command.command()
@click.argument("id", shell_complete=complete_operation)
@json_option
def cancel(id: str, as_json: bool) -> None:
    """Ask an operation to end and undo what it did."""
    operation = connect().request("POST", f"/v1/operations/{id}/cancel").document
    print_result(operation, as_json, lambda: click.echo(f"{id} is asked to end"))


@command.command()
@click.argument("id", shell_complete=complete_operation)
@json_option
def watch(id: str, as_json: bool) -> None:
    """Follow an operation to its end; fails as the operation does."""
    client = connect()
    operation = follow(client, client.get(f"/v1/operations/{id}"), quiet=as_json)
    print_result(operation, as_json, lambda: click.echo(f"{title_of(operation)}: {operation['state']}"))


def render_list(operations: list[dict[str, Any]]) -> str:
    """Operations as a table."""
    rows = [
        (
            operation["id"],
            operation["action"],
            operation["object"],
            format_state(operation["state"]),
            f"{operation['progress']} %",
            operation["actor"],
            format_age(operation["created_at"]),
            format_took(operation),
            describe_end(operation),
        )
        for operation in operations
    ]
    return format_table(HEADER, rows, right=("DONE", "AGE", "TOOK")) if rows else "no operations"


def render_operation(operation: dict[str, Any]) -> str:
    """All of an operation."""
    values = {
        "id": operation["id"],
        "action": f"{operation['action']} {operation['object']}",
        "by": operation["actor"],
        "state": format_state(operation["state"]),
        "progress": f"{operation['progress']} %",
        "message": describe_end(operation),
        "begun": format_time(operation["created_at"]),
        "ended": format_time(operation["finished_at"]),
    }
    if operation["error"] is not None and operation["error"]["remedy"]:
        values["try"] = operation["error"]["remedy"]
    return format_values(values)


def describe_end(operation: dict[str, Any]) -> str:
    """Why it failed, or what it said last."""
    return str(operation["error"]["message"] if operation["error"] else operation["message"])


def format_took(operation: dict[str, Any]) -> str:
    """How long it took."""
    if not operation["finished_at"]:
        return "-"
    begun, ended = (datetime.fromisoformat(operation[key]) for key in ("created_at", "finished_at"))
    seconds = (ended - begun).total_seconds()
    return f"{seconds:.2f} s" if seconds < 10 else format_seconds(seconds)
