"""``duovisor driver list|new|restart|update``: the drivers that run beside VMs, in the controlling layer."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.driver_new import command as new_command
from duovisor.cli.output import json_option, print_json
from duovisor.cli.progress import follow
from duovisor.cli.table import format_state, format_table
from duovisor.cli.watching import show as show_document
from duovisor.cli.watching import watch_option
from duovisor.client.service import vm_path

HEADER = ("VM", "DEVICE", "DRIVER", "DUTY", "PID", "STATE", "CODE", "DIED", "PAUSE", "MEMORY", "CPU")
RIGHT = ("PID", "DIED", "PAUSE", "MEMORY", "CPU")


@click.group()
def command() -> None:
    """See and replace the drivers that run beside VMs.

    Each device of a microkernelized VM has a driver that serves it and a spare that takes over if the driver
    dies; the guest goes on with the same disk either way.
    """


command.add_command(new_command)


@command.command("list")
@watch_option
@json_option
def list_command(watch: bool, as_json: bool) -> None:
    """List every driver outside a VMM: its code, how often it died, how long the guest last waited."""
    client = connect()
    show_document(
        client, lambda: client.get("/v1/drivers")["items"], render_list, as_json=as_json, watch=watch
    )


@command.command()
@click.argument("vm", shell_complete=complete_vm)
@click.argument("devices", metavar="[DEVICE]...", nargs=-1)
@json_option
def restart(vm: str, devices: tuple[str, ...], as_json: bool) -> None:
    """Replace drivers of a running VM by new processes, all of them if none is named.

    Nothing is lost: the old driver finishes what is in flight, then the new one goes on. A device whose
    drivers kept dying is tried again, and its VM runs on.
    """
    replace(vm, devices, "restart", as_json=as_json)


@command.command()
@click.argument("vm", shell_complete=complete_vm)
@click.argument("devices", metavar="[DEVICE]...", nargs=-1)
@json_option
def update(vm: str, devices: tuple[str, ...], as_json: bool) -> None:
    """Replace drivers of a running VM by the code that is installed now; nothing is lost."""
    replace(vm, devices, "update", as_json=as_json)


def replace(vm: str, devices: tuple[str, ...], how: str, *, as_json: bool) -> None:
    """Replace drivers one after the other; stops at the first that cannot be."""
    client = connect()
    drivers = client.get("/v1/drivers")["items"]
    named = devices or tuple(dict.fromkeys(d["device"] for d in drivers if d["vm"] == vm and d["duty"]))
    if not named:
        client.get(vm_path(vm))  # says so if there is no such VM
        raise click.ClickException(f"{vm} has no drivers beside it; microkernelized VMs have, while they run")
    done = []
    for device in named:
        operation = client.request("POST", f"/v1/drivers/{quote(vm)}/{quote(device)}/{how}").document
        done.append(follow(client, operation, quiet=as_json))
        if not as_json:
            click.echo(f"{vm} {done[-1]['message']}")
    if as_json:
        print_json(done)


def render_list(drivers: list[dict[str, Any]]) -> str:
    """Drivers as a table."""
    if not drivers:
        return "no drivers beside VMs; microkernelized VMs have some while they run"
    rows = [
        (
            driver["vm"],
            driver["device"] or "-",
            driver["role"],
            driver["duty"] or "-",
            str(driver["pid"]),
            format_state(driver["device_state"] if driver["state"] == "running" else driver["state"]),
            driver["code"] or "-",
            str(driver["deaths"]),
            f"{driver['last_pause_ms']:.1f} ms" if driver["last_pause_ms"] is not None else "-",
            f"{driver['resident_bytes'] / (1 << 20):.1f} MiB"
            if driver["resident_bytes"] is not None
            else "-",
            f"{driver['cpu_s']:.1f} s" if driver["cpu_s"] is not None else "-",
        )
        for driver in drivers
    ]
    return format_table(HEADER, rows, right=RIGHT)
