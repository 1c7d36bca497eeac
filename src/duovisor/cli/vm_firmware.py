"""``duovisor vm reset-nvram``."""

from __future__ import annotations

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json


@click.command("reset-nvram")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_vm)
@json_option
def reset_nvram(names: tuple[str, ...], as_json: bool) -> None:
    """Forget the UEFI variables of VMs that do not run: boot entries, enrolled keys, settings.

    The next start begins with fresh ones. It is for a guest whose firmware finds nothing to start any more,
    and for one whose keys were changed.
    """
    from duovisor.client.service import vm_path

    client = connect()
    for name in names:
        client.request("POST", f"{vm_path(name)}/reset-nvram")
        if not as_json:
            click.echo(f"{name} begins with fresh UEFI variables at its next start")
    if as_json:
        print_json({"reset": list(names)})
