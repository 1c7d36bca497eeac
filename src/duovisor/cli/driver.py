"""``duovisor driver``: the drivers that run beside VMs, in the controlling layer."""

from __future__ import annotations

from typing import Any

import click

from duovisor.cli.connection import connect
from duovisor.cli.output import json_option
from duovisor.cli.table import format_state, format_table
from duovisor.cli.watching import show as show_document
from duovisor.cli.watching import watch_option

HEADER = ("VM", "DEVICE", "DRIVER", "PID", "STATE", "MEMORY", "CPU")


@click.group()
def command() -> None:
    """List the drivers that run beside VMs."""


@command.command("list")
@watch_option
@json_option
def list_command(watch: bool, as_json: bool) -> None:
    """List every driver outside a VMM, and what it takes of the host."""
    client = connect()
    show_document(
        client, lambda: client.get("/v1/drivers")["items"], render_list, as_json=as_json, watch=watch
    )


def render_list(drivers: list[dict[str, Any]]) -> str:
    """Drivers as a table."""
    if not drivers:
        return "no drivers beside VMs; microkernelized VMs have some while they run"
    rows = [
        (
            driver["vm"],
            driver["device"] or "-",
            driver["role"],
            str(driver["pid"]),
            format_state(driver["state"]),
            f"{driver['resident_bytes'] / (1 << 20):.1f} MiB"
            if driver["resident_bytes"] is not None
            else "-",
            f"{driver['cpu_s']:.1f} s" if driver["cpu_s"] is not None else "-",
        )
        for driver in drivers
    ]
    return format_table(HEADER, rows, right=("PID", "MEMORY", "CPU"))
