"""``duovisor vm screenshot`` and ``vnc``: the screen of a VM with ``graphics``."""

from __future__ import annotations

from pathlib import Path

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_result


@click.command()
@click.argument("name", shell_complete=complete_vm)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
def screenshot(name: str, file: Path, as_json: bool) -> None:
    """Save what a running VM's screen shows as a PNG file.

    The VM needs a screen: `graphics: true` in its definition, or `vm create --graphics`.
    """
    from duovisor.client.service import vm_path

    picture = connect().request("GET", f"{vm_path(name)}/screenshot").body
    try:
        file.write_bytes(picture)
    except OSError as error:
        raise click.ClickException(f"cannot write {file}: {error.strerror}") from error
    document = {"vm": name, "file": str(file), "bytes": len(picture)}
    print_result(document, as_json, lambda: click.echo(f"{file}: {len(picture)} bytes"))


@click.command()
@click.argument("name", shell_complete=complete_vm)
@json_option
def vnc(name: str, as_json: bool) -> None:
    """Show where a VM's screen can be looked at: the path of a WebSocket, good once and for half a minute.

    A VNC client in a browser, such as noVNC, connects to it at this host's HTTPS address; no token is needed
    besides. Who may only view sees the screen and cannot type.
    """
    from duovisor.client.service import vm_path

    ticket = connect().request("POST", f"{vm_path(name)}/vnc-ticket").document
    print_result(ticket, as_json, lambda: click.echo(ticket["path"]))
