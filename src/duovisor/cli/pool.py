"""``duovisor pool``: the folders and thin pools in which volumes lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from duovisor.cli.completion import complete_pool
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_result
from duovisor.cli.table import format_table, format_time, format_values
from duovisor.cli.watching import show as show_document
from duovisor.cli.watching import watch_option

HEADER = ("NAME", "KIND", "VOLUMES", "CAPACITY", "FREE", "PATH")
RIGHT = ("VOLUMES", "CAPACITY", "FREE")
KINDS = ("directory", "lvm-thin", "nfs")


@click.group()
def command() -> None:
    """Make, list and forget pools, the folders and LVM thin pools in which volumes lie.

    \b
    The pool named default is made in the state folder with its first volume; others by you:
      duovisor pool create fast /srv/nvme/duovisor
      duovisor pool create nas /mnt/nas/duovisor --kind nfs
      duovisor pool create thin --kind lvm-thin --vg vg0 --thin-pool pool0
    """


@command.command("list")
@watch_option
@json_option
def list_command(watch: bool, as_json: bool) -> None:
    """List the pools of the host, with their space."""
    client = connect()
    show_document(client, lambda: client.get("/v1/pools")["items"], render_list, as_json=as_json, watch=watch)


@command.command()
@click.argument("name", shell_complete=complete_pool)
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a pool."""
    pool = connect().get(pool_path(name))
    print_result(pool, as_json, lambda: click.echo(render_pool(pool)))


@command.command()
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--kind",
    "--type",
    type=click.Choice(KINDS),
    default="directory",
    show_default=True,
    help="What the pool is.",
)
@click.option("--vg", metavar="GROUP", help="With --kind lvm-thin: the volume group.")
@click.option("--thin-pool", metavar="LV", help="With --kind lvm-thin: the thin pool in it, which is there.")
@json_option
def create(
    name: str, path: Path | None, kind: str, vg: str | None, thin_pool: str | None, as_json: bool
) -> None:
    """Make a pool of a folder, which is made too if it is missing, or of an LVM thin pool.

    Files that lie there already stay and are no volumes.

    With --kind nfs the folder is on NFS, mounted hard, and exported with all_squash. Its volumes are used
    only while it is mounted and its server answers, and by one host.

    With --kind lvm-thin, --vg and --thin-pool take the place of PATH. Volumes are thin logical volumes, raw,
    with the tag duovisor; nothing else in the group is touched, but that the thin pool is told to fail when
    it is full (lvchange --errorwhenfull y), which makes VMs stand still until there is room.
    """
    document = {"name": name, "path": find_place(path, kind, vg, thin_pool), "kind": kind}
    pool = connect().request("POST", "/v1/pools", document).document
    print_result(pool, as_json, lambda: click.echo(f"pool {name} is in {pool['path']}"))


@command.command()
@click.argument("name", shell_complete=complete_pool)
@click.option("--forget", is_flag=True, help="Forget its volumes too; their files stay.")
@json_option
def delete(name: str, forget: bool, as_json: bool) -> None:
    """Forget a pool that has no volumes; its folder, or thin pool, stays."""
    query = "?forget=true" if forget else ""
    connect().request("DELETE", pool_path(name) + query)
    print_result(
        {"deleted": name}, as_json, lambda: click.echo(f"pool {name} is forgotten; what it lay in stays")
    )


def find_place(path: Path | None, kind: str, vg: str | None, thin_pool: str | None) -> str:
    """Where a new pool is to be, as the API wants it. Raises ``click.UsageError``."""
    if kind == "lvm-thin":
        if path is not None or not vg or not thin_pool:
            raise click.UsageError("--kind lvm-thin needs --vg and --thin-pool, and no PATH")
        return f"/dev/{vg}/{thin_pool}"
    if vg or thin_pool:
        raise click.UsageError("--vg and --thin-pool go with --kind lvm-thin")
    if path is None:
        raise click.UsageError("Missing argument 'PATH'.")
    return str(path.absolute())


def pool_path(name: str) -> str:
    """Where a pool is in the API."""
    return f"/v1/pools/{quote(name, safe='')}"


def render_list(pools: list[dict[str, Any]]) -> str:
    """Pools as a table."""
    if not pools:
        return "no pools; duovisor volume create NAME --size 10G makes the pool default"
    rows = [
        (
            pool["name"],
            pool["kind"],
            str(pool["volumes"]),
            format_size(pool["capacity_bytes"]),
            format_size(pool["free_bytes"]),
            pool["path"] + (click.style(" (unavailable)", fg="red") if pool["problem"] else ""),
        )
        for pool in pools
    ]
    return format_table(HEADER, rows, right=RIGHT)


def render_pool(pool: dict[str, Any]) -> str:
    """All of a pool."""
    values = {
        "name": pool["name"],
        "kind": pool["kind"],
        "path": pool["path"],
        "capacity": format_size(pool["capacity_bytes"]),
        "free": format_size(pool["free_bytes"]),
        "volumes": str(pool["volumes"]),
        "made": format_time(pool["created_at"]),
    }
    if pool.get("free_metadata") is not None:
        values["metadata"] = f"{pool['free_metadata']:.0%} free"
    if pool["problem"]:
        values["problem"] = click.style(pool["problem"], fg="red")
    return format_values(values)


def format_size(size_bytes: int | None) -> str:
    """A size with its unit; a dash where it is not known."""
    from duovisor.spec.sizes import format_bytes

    return "-" if size_bytes is None else format_bytes(size_bytes)
