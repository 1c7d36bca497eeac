"""``duovisor anatomy``: a running VM's three layers, read from the processes themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.output import json_option, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from duovisor.controlling.anatomy import Anatomy, ProcessAnatomy

TITLES = {
    "controlling": "CONTROLLING LAYER",
    "hypervisor": "HYPERVISOR LAYER",
    "hardware": "HARDWARE LAYER",
}
COLOURS = {"controlling": "cyan", "hypervisor": "magenta", "hardware": "yellow"}


@click.command(name="anatomy")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """Show a running VM's three layers: processes, drivers, and what of the host each can reach.

    Everything shown is read from the running processes, not from what was planned. Without NAME: every VM.
    """
    from duovisor.controlling.anatomy import read_anatomy
    from duovisor.controlling.description import list_running, read_description
    from duovisor.directories import find_directories

    vms = find_directories().vms
    names = [name] if name else list_running(vms)
    anatomies = [read_anatomy(read_description(vms, each)) for each in names]
    if as_json:
        print_json([to_document(anatomy) for anatomy in anatomies])
        return
    from rich.console import Console

    console = Console(highlight=False)
    for anatomy in anatomies:
        console.print(draw(anatomy))
    if not anatomies:
        console.print("no VM runs; start one with: duovisor run --image probe")


def to_document(anatomy: Anatomy) -> dict[str, Any]:
    """The anatomy as JSON: ``processes`` is a list of {layer, role, pid, command, host_access, …}."""
    from dataclasses import asdict

    return asdict(anatomy)


def draw(anatomy: Anatomy) -> RenderableType:
    """The three layers, one above the other, each with its processes."""
    from rich.console import Group
    from rich.text import Text

    title = Text.assemble((anatomy.name, "bold"), f"  {anatomy.design} design")
    layers = [_draw_layer(anatomy, layer) for layer in ("controlling", "hypervisor", "hardware")]
    return Group(title, *layers)


def _draw_layer(anatomy: Anatomy, layer: str) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    blocks: list[RenderableType] = [
        _draw_process(process) for process in anatomy.processes if process.layer == layer
    ]
    if layer == "hypervisor" and anatomy.vmm_reason:
        blocks.append(Text(f"vmm {anatomy.vmm}: {anatomy.vmm_reason}", style="dim"))
    if layer == "hardware":
        blocks = [Text(f"processors run the guest through {anatomy.accelerator.upper()}")]
        blocks.append(Text("physical devices: drivers of the host's kernel, in both designs", style="dim"))
    return Panel(
        Group(*blocks), title=TITLES[layer], title_align="left", border_style=COLOURS[layer], padding=(0, 1)
    )


def _draw_process(process: ProcessAnatomy) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, width=24)
    table.add_column(overflow="fold")
    table.add_row(
        Text.assemble((process.role, "bold"), (f"  {process.pid}", "dim")), _describe_drivers(process)
    )
    for access in process.host_access or ("nothing of the host",):
        colour = "green" if not process.host_access else "red" if _is_wide(access) else ""
        table.add_row("", Text(f"· {access}", style=colour))
    table.add_row("", Text(", ".join(process.confinement), style="dim"))
    return table


def _describe_drivers(process: ProcessAnatomy) -> RenderableType:
    from rich.text import Text

    if process.drivers:
        if process.duty == "spare":
            return Text(f"stands by for {', '.join(process.drivers)}")
        return Text(f"drivers: {', '.join(process.drivers)}", style="bold")
    return Text("no device driver inside" if process.role == "vmm" else "", style="green")


def _is_wide(access: str) -> bool:
    return access.startswith("host ")
