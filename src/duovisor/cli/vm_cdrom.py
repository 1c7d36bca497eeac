"""``duovisor vm cdrom``: what is in a VM's CD-ROM drives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json
from duovisor.cli.progress import follow
from duovisor.cli.vm_options import parse_cdrom

if TYPE_CHECKING:
    from collections.abc import Callable

drive_option = click.option("--drive", default=0, show_default=True, help="Number of the drive.")
force_option = click.option("--force", is_flag=True, help="Although the guest has it mounted.")


@click.group()
def command() -> None:
    """Put a medium into a CD-ROM drive of a VM, or take it out, whether or not it runs."""


@command.command()
@click.argument("name", shell_complete=complete_vm)
@click.argument("medium", metavar="FILE|volume=[POOL/]NAME")
@drive_option
@force_option
@json_option
def insert(name: str, medium: str, drive: int, force: bool, as_json: bool) -> None:
    """Put an ISO image into a drive in place of what is in it."""
    document = {"medium": parse_cdrom(medium), "force": force}
    _act(name, drive, "insert", document, as_json, lambda: f"{medium} is in cdrom{drive} of {name}")


@command.command()
@click.argument("name", shell_complete=complete_vm)
@drive_option
@force_option
@json_option
def eject(name: str, drive: int, force: bool, as_json: bool) -> None:
    """Take out what is in a drive. A guest that has it mounted is asked to let go, and has 5 s."""
    _act(name, drive, "eject", {"force": force}, as_json, lambda: f"cdrom{drive} of {name} is empty")


def _act(
    name: str, drive: int, action: str, document: dict[str, Any], as_json: bool, say: Callable[[], str]
) -> None:
    client = connect()
    operation = follow(client, client.act(name, f"cdroms/{drive}/{action}", document), quiet=as_json)
    if as_json:
        print_json(operation)
    else:
        click.echo(say())
