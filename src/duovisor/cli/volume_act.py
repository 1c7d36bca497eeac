"""``duovisor volume create``, ``resize``, ``clone`` and ``delete``."""

from __future__ import annotations

from typing import Any

import click

from duovisor.cli.completion import complete_volume
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json
from duovisor.cli.progress import follow
from duovisor.cli.volume_path import parse_volume, volume_path

FORMATS = ("qcow2", "raw")


def read_size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A size as people write it, in bytes; none where none was given."""
    from duovisor.spec.sizes import parse_bytes

    if value is None:
        return None
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, parameter) from error


@click.command()
@click.argument("volume")
@click.option(
    "--size",
    "size_bytes",
    callback=read_size,
    metavar="SIZE",
    required=True,
    help="What a guest sees: 10G, 512M.",
)
@click.option(
    "--format", "volume_format", type=click.Choice(FORMATS), help="[default: qcow2, or raw in a pool on LVM]"
)
@json_option
def create(volume: str, size_bytes: int, volume_format: str | None, as_json: bool) -> None:
    """Make an empty volume; it takes space only as its guest writes.

    raw is the fastest and can be encrypted; qcow2 can be a linked clone. In a pool on LVM, all are raw, and
    as large as whole extents.
    """
    ref = parse_volume(volume)
    document = {"pool": ref.pool, "name": ref.name, "size_bytes": size_bytes, "format": volume_format}
    act("POST", "/v1/volumes", document, f"volume {ref} is made", as_json=as_json)


@click.command()
@click.argument("volume", shell_complete=complete_volume)
@click.argument("size_bytes", metavar="SIZE", callback=read_size)
@json_option
def resize(volume: str, size_bytes: int, as_json: bool) -> None:
    """Make a volume larger; it cannot become smaller.

    The guest of a running VM of the monolithic design sees the new size at once. A microkernelized VM has
    to be shut down for it.
    """
    path = f"{volume_path(volume)}/resize"
    act("POST", path, {"size_bytes": size_bytes}, f"volume {parse_volume(volume)}", as_json=as_json)


@click.command()
@click.argument("source", shell_complete=complete_volume)
@click.argument("volume")
@click.option("--linked", is_flag=True, help="Hold only what differs; SOURCE cannot be changed any more.")
@click.option("--format", "volume_format", type=click.Choice(FORMATS), help="[default: that of SOURCE]")
@json_option
def clone(source: str, volume: str, linked: bool, volume_format: str | None, as_json: bool) -> None:
    """Copy a volume that no VM writes to, or base a new one on it.

    A linked clone is made at once, whatever the size, and stays in need of SOURCE: that cannot be deleted,
    resized or written to by a VM until its linked clones are gone. In a pool on LVM it is a snapshot in the
    same pool, and needs nothing of SOURCE.
    """
    ref = parse_volume(volume)
    document = {"pool": ref.pool, "name": ref.name, "linked": linked, "format": volume_format}
    act("POST", f"{volume_path(source)}/clone", document, f"volume {ref}", as_json=as_json)


@click.command()
@click.argument("volumes", metavar="VOLUME...", nargs=-1, required=True, shell_complete=complete_volume)
@json_option
def delete(volumes: tuple[str, ...], as_json: bool) -> None:
    """Delete volumes with their files; refused while a VM or a linked clone needs one."""
    client, done = connect(), []
    for volume in volumes:
        operation = client.request("DELETE", volume_path(volume)).document
        done.append(follow(client, operation, quiet=as_json))
        if not as_json:
            click.echo(f"volume {parse_volume(volume)} is deleted")
    if as_json:
        print_json(done)


def act(method: str, path: str, document: Any, title: str, *, as_json: bool) -> None:
    """Begin an operation, follow it to its end and say what it came to."""
    client = connect()
    operation = follow(client, client.request(method, path, document).document, quiet=as_json)
    if as_json:
        print_json(operation)
    else:
        click.echo(f"{title}: {operation['message']}")
