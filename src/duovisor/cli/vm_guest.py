"""``duovisor vm guest``, ``fsfreeze`` and ``fsthaw``: what a guest itself is asked, through its agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_result
from duovisor.cli.table import format_values
from duovisor.cli.vm_act import act, action_options

if TYPE_CHECKING:
    from duovisor.client.service import ServiceClient

EPILOG = """
\b
The guest needs qemu-guest-agent, and the VM guest_agent:
  duovisor vm create web.yaml --guest-agent
  duovisor vm edit web --set guest_agent=true
"""


@click.command(epilog=EPILOG)
@click.argument("name", shell_complete=complete_vm)
@json_option
def guest(name: str, as_json: bool) -> None:
    """Ask a VM's guest for its system, its name and its addresses; it may say what it likes."""
    from duovisor.client.service import vm_path

    told = connect().get(f"{vm_path(name)}/guest")
    print_result(told, as_json, lambda: click.echo(render_guest(told)))


@click.command(epilog=EPILOG)
@action_options
@click.option("--for", "for_s", default=60.0, show_default=True, help="Seconds until they are thawed anyway.")
def fsfreeze(names: tuple[str, ...], for_s: float, no_wait: bool, as_json: bool) -> None:
    """Freeze guests' file systems: what is on their disks is consistent, and writes wait.

    For a copy of the disks. They are thawed by fsthaw, or when their time is over, whatever happens.
    """
    act(names, "fsfreeze", no_wait=no_wait, as_json=as_json, document={"for_s": for_s}, describe=describe)


@click.command(epilog=EPILOG)
@action_options
def fsthaw(names: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Thaw guests' file systems: writes go on."""
    act(names, "fsthaw", no_wait=no_wait, as_json=as_json, describe=describe)


def describe(operation: dict[str, Any]) -> str:
    """What became of a guest's file systems, behind its name."""
    return f": {operation['message']}"


def ask_guest(client: ServiceClient, name: str) -> dict[str, Any]:
    """What a guest tells, or as ``error`` why it does not."""
    from duovisor.client.errors import ApiError
    from duovisor.client.service import vm_path

    try:
        told: dict[str, Any] = client.get(f"{vm_path(name)}/guest")
    except ApiError as error:
        return {"error": error.message}
    return told


def render_guest(told: dict[str, Any]) -> str:
    """All that a guest tells."""
    values = {
        "hostname": told["hostname"],
        "system": told["system"],
        "kernel": told["kernel"],
        "addresses": describe_addresses(told),
        "file systems": "frozen" if told["frozen"] else "",
        "agent": told["agent_version"],
    }
    return format_values({key: value for key, value in values.items() if value})


def describe_addresses(told: dict[str, Any]) -> str:
    """A line for each interface: its name and its addresses."""
    return "\n".join(
        f"{each['name']}: {', '.join(each['addresses']) or 'none'}" for each in told["interfaces"]
    )
