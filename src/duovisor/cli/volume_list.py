"""``duovisor volume list`` and ``show``."""

from __future__ import annotations

from typing import Any

import click

from duovisor.cli.completion import complete_pool, complete_volume
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option
from duovisor.cli.pool import format_size
from duovisor.cli.table import format_state, format_table, format_time, format_values
from duovisor.cli.volume_path import volume_path
from duovisor.cli.watching import show as show_document
from duovisor.cli.watching import watch_option

HEADER = ("NAME", "STATE", "FORMAT", "SIZE", "TAKES", "BASE", "VMS")
RIGHT = ("SIZE", "TAKES")


@click.command("list")
@click.option("--pool", shell_complete=complete_pool, help="Only volumes of this pool.")
@watch_option
@json_option
def list_command(pool: str | None, watch: bool, as_json: bool) -> None:
    """List volumes by pool and name.

    SIZE is what a guest sees, TAKES what the file takes on the host.
    """
    client = connect()
    show_document(
        client,
        lambda: list(client.list_all("/v1/volumes", pool=pool)),
        render_list,
        as_json=as_json,
        watch=watch,
    )


@click.command()
@click.argument("volume", shell_complete=complete_volume)
@watch_option
@json_option
def show(volume: str, watch: bool, as_json: bool) -> None:
    """Show a volume: its size, its file, and who needs it."""
    client = connect()
    show_document(
        client, lambda: client.get(volume_path(volume)), render_volume, as_json=as_json, watch=watch
    )


def render_list(volumes: list[dict[str, Any]]) -> str:
    """Volumes as a table."""
    if not volumes:
        return "no volumes; try: duovisor volume create NAME --size 10G"
    rows = [
        (
            f"{volume['pool']}/{volume['name']}",
            format_state(volume["state"]) + (" ro" if volume["read_only"] else ""),
            volume["format"],
            format_size(volume["size_bytes"]),
            format_size(volume["allocated_bytes"]),
            volume["base"] or "-",
            ", ".join(volume["vms"]) or "-",
        )
        for volume in volumes
    ]
    return format_table(HEADER, rows, right=RIGHT)


def render_volume(volume: dict[str, Any]) -> str:
    """All of a volume."""
    return format_values(
        {
            "name": f"{volume['pool']}/{volume['name']}",
            "state": format_state(volume["state"]) + (", read-only" if volume["read_only"] else ""),
            "format": volume["format"],
            "size": f"{format_size(volume['size_bytes'])} ({volume['size_bytes']} bytes)",
            "takes": format_size(volume["allocated_bytes"]),
            "base": volume["base"] or "none",
            "linked clones": ", ".join(volume["clones"]) or "none",
            "disk of": ", ".join(volume["vms"]) or "no VM",
            "sha256": volume["sha256"] or "not computed since it changed",
            "file": volume["path"],
            "made": format_time(volume["created_at"]),
        }
    )
