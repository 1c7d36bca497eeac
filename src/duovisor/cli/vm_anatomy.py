"""``duovisor vm anatomy``: a running VM's three layers, as the service reads them from its processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json

if TYPE_CHECKING:
    from duovisor.controlling.anatomy import Anatomy


@click.command()
@click.argument("name", shell_complete=complete_vm)
@json_option
def anatomy(name: str, as_json: bool) -> None:
    """Show a running VM's three layers: processes, drivers, and what of the host each can reach."""
    from duovisor.client.service import vm_path

    document = connect().get(f"{vm_path(name)}/anatomy")
    if as_json:
        print_json(document)
        return
    from rich.console import Console

    from duovisor.cli.anatomy import draw

    Console(highlight=False).print(draw(build_anatomy(document)))


def build_anatomy(document: dict[str, Any]) -> Anatomy:
    """An anatomy as the API tells it."""
    from duovisor.controlling.anatomy import Anatomy, ProcessAnatomy
    from duovisor.controlling.description import Duty
    from duovisor.spec.vm import Design

    processes = tuple(
        ProcessAnatomy(
            layer=process["layer"],
            role=process["role"],
            pid=process["pid"],
            command=process["command"],
            host_access=tuple(process["host_access"]),
            confinement=tuple(process["confinement"]),
            drivers=tuple(process["drivers"]),
            duty=Duty(process.get("duty", "")),
        )
        for process in document["processes"]
    )
    return Anatomy(
        name=document["name"],
        design=Design(document["design"]),
        accelerator=document["accelerator"],
        vmm=document["vmm"],
        vmm_reason=document["vmm_reason"],
        processes=processes,
    )
