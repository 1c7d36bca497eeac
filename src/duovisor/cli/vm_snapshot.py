"""``duovisor vm snapshot``: devices, memory and disks of one moment, and back to it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from duovisor.cli.completion import complete_snapshot, complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json
from duovisor.cli.progress import follow
from duovisor.cli.table import format_table, format_time, format_values
from duovisor.cli.watching import show as show_document
from duovisor.cli.watching import watch_option
from duovisor.client.service import vm_path
from duovisor.spec.sizes import format_bytes

HEADER = ("NAME", "TAKEN", "MEMORY", "DISKS", "TAKES", "PAUSE")
RIGHT = ("MEMORY", "DISKS", "TAKES", "PAUSE")


@click.group()
def command() -> None:
    """Save a running VM whole, and go back to where it was.

    \b
    A snapshot holds the registers, the memory and a copy of each disk that the guest can write to:
      duovisor vm snapshot create web before-update
      duovisor vm stop web
      duovisor vm snapshot restore web before-update

    VMs on the thin VMM have snapshots, with raw disks that are files or volumes; `duovisor vm show` says
    which VMM runs. What cannot be saved whole is refused before anything is touched (exit code 4).
    """


@command.command()
@click.argument("vm", shell_complete=complete_vm)
@click.argument("name")
@json_option
def create(vm: str, name: str, as_json: bool) -> None:
    """Save the running VM as NAME; its guest goes on after a pause.

    It stands still while its memory and disks are copied: some 0.1 s and more with little memory in use;
    seconds for each GiB that its disks take, unless they are on btrfs or XFS, which share the blocks.
    """
    act(vm, "POST", "", {"name": name}, f"snapshot {name} of {vm}", as_json=as_json)


@command.command()
@click.argument("vm", shell_complete=complete_vm)
@click.argument("name", shell_complete=complete_snapshot)
@json_option
def restore(vm: str, name: str, as_json: bool) -> None:
    """Run the VM, which must be stopped, on from the snapshot.

    What was written to its disks since is lost. The guest goes on in the middle of what it did; its clock of
    the day is that of the snapshot until it is set. A host with another kind of processor is refused.
    """
    act(vm, "POST", f"/{quote(name, safe='')}/restore", None, vm, as_json=as_json)


@command.command()
@click.argument("vm", shell_complete=complete_vm)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_snapshot)
@json_option
def delete(vm: str, names: tuple[str, ...], as_json: bool) -> None:
    """Delete snapshots; the VM may run."""
    client, done = connect(), []
    for name in names:
        operation = client.request("DELETE", snapshot_path(vm, name)).document
        done.append(follow(client, operation, quiet=as_json))
        if not as_json:
            click.echo(f"snapshot {name} of {vm} is deleted")
    if as_json:
        print_json(done)


@command.command("list")
@click.argument("vm", shell_complete=complete_vm)
@watch_option
@json_option
def list_command(vm: str, watch: bool, as_json: bool) -> None:
    """List a VM's snapshots, oldest first.

    MEMORY is what its guest had used, DISKS their number, TAKES what all is on the host, PAUSE how long the
    guest stood still for it.
    """
    client = connect()
    show_document(
        client,
        lambda: client.get(f"{vm_path(vm)}/snapshots")["items"],
        lambda snapshots: render_list(vm, snapshots),
        as_json=as_json,
        watch=watch,
    )


@command.command()
@click.argument("vm", shell_complete=complete_vm)
@click.argument("name", shell_complete=complete_snapshot)
@json_option
def show(vm: str, name: str, as_json: bool) -> None:
    """Show a snapshot."""
    client = connect()
    show_document(
        client, lambda: client.get(snapshot_path(vm, name)), render_snapshot, as_json=as_json, watch=False
    )


def snapshot_path(vm: str, name: str) -> str:
    """Where a snapshot is in the API."""
    return f"{vm_path(vm)}/snapshots/{quote(name, safe='')}"


def act(vm: str, method: str, path: str, document: Any, title: str, *, as_json: bool) -> None:
    """Begin an operation, follow it to its end and say what it came to."""
    client = connect()
    operation = client.request(method, f"{vm_path(vm)}/snapshots{path}", document).document
    operation = follow(client, operation, quiet=as_json)
    if as_json:
        print_json(operation)
    else:
        click.echo(f"{title}: {operation['message']}")


def render_list(vm: str, snapshots: list[dict[str, Any]]) -> str:
    """Snapshots as a table."""
    if not snapshots:
        return f"no snapshots; try: duovisor vm snapshot create {vm} NAME"
    rows = [
        (
            snapshot["name"],
            format_time(snapshot["created_at"]),
            format_bytes(snapshot["memory_bytes"]),
            str(len(snapshot["disks"])),
            format_bytes(snapshot["host_bytes"]),
            f"{snapshot['pause_ms']:.1f} ms",
        )
        for snapshot in snapshots
    ]
    return format_table(HEADER, rows, right=RIGHT)


def render_snapshot(snapshot: dict[str, Any]) -> str:
    """All of a snapshot."""
    disks = [f"{name}: {format_bytes(size)}" for name, size in snapshot["disks"].items()]
    memory = f"{format_bytes(snapshot['memory_bytes'])} of {snapshot['memory_mib']} MiB in use"
    return format_values(
        {
            "name": snapshot["name"],
            "taken": format_time(snapshot["created_at"]),
            "memory": memory,
            "disks": ", ".join(disks) or "none",
            "takes": format_bytes(snapshot["host_bytes"]),
            "processor": snapshot["processor"] or "unknown",
            "guest paused": f"{snapshot['pause_ms']:.1f} ms",
        }
    )
