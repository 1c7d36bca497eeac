"""``duovisor vm set-limits|set-cpus|set-memory``: what a VM may use of the host, and what it has."""

from __future__ import annotations

from typing import Any

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json

NONE = "none"


@click.command("set-limits")
@click.argument("name", metavar="VM", shell_complete=complete_vm)
@click.option("--cpu-weight", metavar="N", help="Share where processors are short; everybody has 100.")
@click.option("--cpu-limit", metavar="X", help="Processors that it uses at most: 1.5.")
@click.option("--cpu-reservation", metavar="X", help="Processors that are kept for it.")
@click.option(
    "--memory-limit", metavar="SIZE", help="Host memory that it uses at most, its guest's included."
)
@json_option
def set_limits(name: str, as_json: bool, **given: str | None) -> None:
    """Limit what a VM uses of the host's processors and memory: its VMM and all that serves it, together.

    It takes effect at once under a running guest, and stays. What is not given stays as it is; `none` is no
    limit. systemd and cgroup v2 keep it: a host without them refuses (exit code 5), and so does one whose
    processors are reserved already, or a limit below what the VM uses now (exit code 4).

    \b
    duovisor vm set-limits web --cpu-limit 1.5 --cpu-weight 50
    duovisor vm set-limits web --cpu-limit none
    """
    from duovisor.client.service import vm_path
    from duovisor.controlling.vms.resource_actions import describe_resources
    from duovisor.spec.vm import VirtualMachineSpec

    if all(value is None for value in given.values()):
        raise click.UsageError(
            "say what to limit: --cpu-weight, --cpu-limit, --cpu-reservation, --memory-limit"
        )
    document: dict[str, Any] = {
        ("memory_limit_mib" if key == "memory_limit" else key): None if value == NONE else value
        for key, value in given.items()
        if value is not None
    }
    vm = connect().request("POST", f"{vm_path(name)}/set-limits", document).document
    if as_json:
        print_json(vm)
        return
    click.echo(f"{name}: {describe_resources(VirtualMachineSpec.model_validate(vm['record']['spec']))}")


@click.command("set-cpus")
@click.argument("name", metavar="VM", shell_complete=complete_vm)
@click.argument("cpus", metavar="N", type=click.IntRange(1, 255))
@json_option
def set_cpus(name: str, cpus: int, as_json: bool) -> None:
    """Give a VM N processors: under its running guest, if it has room, and from then on.

    Room is what `cpus_max` of its definition said when it was started (`--cpus-max` of `vm create`). Linux
    has new processors offline until somebody switches them on:

    \b
    duovisor vm set-cpus web 4
    echo 1 | tee /sys/devices/system/cpu/cpu[23]/online     # in the guest

    A VM that runs keeps those that it has: fewer come with a restart. The thin VMM takes none (exit code 4).
    """
    from duovisor.client.service import vm_path

    vm = connect().request("POST", f"{vm_path(name)}/set-cpus", {"cpus": cpus}).document
    if as_json:
        print_json(vm)
        return
    click.echo(f"{name}: {vm['record']['spec']['cpus']} processors")


@click.command("set-memory")
@click.argument("name", metavar="VM", shell_complete=complete_vm)
@click.argument("memory", metavar="SIZE")
@json_option
def set_memory(name: str, memory: str, as_json: bool) -> None:
    """Give a VM memory of this SIZE (4G, or MiB): under its running guest, if it has room, and from then on.

    Room is what `memory_max` of its definition said when it was started (`--memory-max` of `vm create`). More
    comes in multiples of 128 MiB, up to 8 times until its next start, which gives it all in one piece.

    \b
    duovisor vm set-memory web 4G
    for f in /sys/devices/system/memory/memory*/state; do echo online > $f; done     # in the guest

    Linux may have new memory switched off, as Debian's has. A guest agent (`guest_agent` of its definition)
    is asked to switch it on; without one somebody in the guest does. What is known of that is said here and
    by `vm show`; the same command asks again.

    A VM that runs keeps what it has: less comes with a restart. The thin VMM takes none (exit code 4).
    """
    from duovisor.cli.table import format_mib
    from duovisor.client.service import vm_path

    vm = connect().request("POST", f"{vm_path(name)}/set-memory", {"memory_mib": memory}).document
    if as_json:
        print_json(vm)
        return
    note = vm["status"]["memory_note"]
    click.echo(f"{name}: {format_mib(vm['record']['spec']['memory_mib'])}{note and f'; {note}'}")
