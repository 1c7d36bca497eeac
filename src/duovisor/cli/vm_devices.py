"""``duovisor vm attach-disk|detach-disk|attach-nic|detach-nic``: devices that come and go."""

from __future__ import annotations

from typing import Any

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json
from duovisor.cli.vm_act import act, no_wait_option

vm_argument = click.argument("name", metavar="VM", shell_complete=complete_vm)
timeout_option = click.option(
    "--timeout", "timeout_s", default=30.0, show_default=True, help="Seconds the guest may take."
)


@click.command("attach-disk")
@vm_argument
@click.argument("disk", metavar="PATH|volume=NAME[,KEY=VALUE…]")
@no_wait_option
@json_option
def attach_disk(name: str, disk: str, no_wait: bool, as_json: bool) -> None:
    """Give a VM a disk: under its running guest, which sees it at once, and in its definition.

    The disk is written as for `duovisor vm create --disk`. It gets the first free slot, which is its name
    (disk3) and its PCI address from then on, also after a restart or a switch of the design. A VM that does
    not run has it at its next start. Whatever fails leaves the VM as it was.

    The thin VMM has no hot-plug (exit code 4).

    \b
    duovisor volume create data --size 10G
    duovisor vm attach-disk web volume=data,serial=data
    """
    from duovisor.cli.vm_options import parse_disk

    document = {"disk": parse_disk(disk)}
    act_alone(name, "attach-disk", document, no_wait=no_wait, as_json=as_json)


@click.command("limit-disk")
@vm_argument
@click.argument("device", metavar="DISK")
@click.option("--iops", type=click.IntRange(1), help="Requests in a second, at most.")
@click.option("--bandwidth", metavar="SIZE", help="Bytes in a second, at most: 50M. At least 1M.")
@json_option
def limit_disk(name: str, device: str, iops: int | None, bandwidth: str | None, as_json: bool) -> None:
    """Limit what a disk (disk0, see `duovisor vm show`) does in a second, from now on.

    It takes effect at once under a running guest, in both designs, and stays: in the definition it is
    iops_limit and bandwidth_limit of the disk. What is not given has no limit; with neither, the disk has
    none any more. Reads, writes and flushes count together.
    """
    from duovisor.client.service import vm_path
    from duovisor.controlling.vms.limits import describe_limits

    document = {"device": device, "iops_limit": iops, "bandwidth_limit": bandwidth}
    vm = connect().request("POST", f"{vm_path(name)}/limit-disk", document).document
    if as_json:
        print_json(vm)
        return
    limits = [disk for slot, disk in number(vm["record"]["spec"]["disks"]) if f"disk{slot}" == device]
    for disk in limits:
        said = describe_limits(disk["iops_limit"], disk["bandwidth_limit"])
        click.echo(f"{device} of {name}: {said}")


@click.command("limit-nic")
@vm_argument
@click.argument("device", metavar="NIC")
@click.option("--in", "in_limit", metavar="SIZE", help="Bytes a second that the guest gets, at most: 50M.")
@click.option("--out", "out_limit", metavar="SIZE", help="Bytes a second that it sends, at most: 500K.")
@json_option
def limit_nic(name: str, device: str, in_limit: str | None, out_limit: str | None, as_json: bool) -> None:
    """Limit what a guest gets and sends through a NIC (nic0, see `duovisor vm show`), from now on.

    It takes effect at once under a running guest, in both designs, and stays: in the definition it is
    in_limit and out_limit of the NIC, at least 64K. What is not given has no limit; with neither, the NIC has
    none any more. It is for NICs on a bridge or a network of duovisor's.

    \b
    duovisor vm limit-nic web nic0 --in 50M --out 5M
    """
    from duovisor.client.service import vm_path
    from duovisor.controlling.vms.limits import describe_card_limits

    document = {"device": device, "in_limit": in_limit, "out_limit": out_limit}
    vm = connect().request("POST", f"{vm_path(name)}/limit-nic", document).document
    if as_json:
        print_json(vm)
        return
    for slot, nic in number(vm["record"]["spec"]["nics"]):
        if f"nic{slot}" == device:
            said = describe_card_limits(nic["in_limit"], nic["out_limit"])
            click.echo(f"{device} of {name}: {said}")


def number(disks: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Each disk with its slot."""
    return [(at if disk["slot"] is None else disk["slot"], disk) for at, disk in enumerate(disks)]


@click.command("detach-disk")
@vm_argument
@click.argument("device", metavar="DISK")
@timeout_option
@no_wait_option
@json_option
def detach_disk(name: str, device: str, timeout_s: float, no_wait: bool, as_json: bool) -> None:
    """Take a disk (disk1, see `duovisor vm show`) from a VM and from its definition; its content stays.

    A running guest is asked to let go of it, as when somebody opens the drive's bay: unmount it in the guest
    first. If the guest does not within the time, it keeps the disk (exit code 7).
    """
    document = {"device": device, "timeout_s": timeout_s}
    act_alone(name, "detach-disk", document, no_wait=no_wait, as_json=as_json)


@click.command("attach-nic")
@vm_argument
@click.argument("nic", metavar="user|bridge=NAME[,KEY=VALUE…]")
@no_wait_option
@json_option
def attach_nic(name: str, nic: str, no_wait: bool, as_json: bool) -> None:
    """Give a VM a NIC: under its running guest, which sees it at once, and in its definition.

    The NIC is written as for `duovisor vm create --nic`; the rest is as with attach-disk.
    """
    from duovisor.cli.vm_options import parse_nic

    document = {"nic": parse_nic(nic)}
    act_alone(name, "attach-nic", document, no_wait=no_wait, as_json=as_json)


@click.command("detach-nic")
@vm_argument
@click.argument("device", metavar="NIC")
@timeout_option
@no_wait_option
@json_option
def detach_nic(name: str, device: str, timeout_s: float, no_wait: bool, as_json: bool) -> None:
    """Take a NIC (nic1, see `duovisor vm show`) from a VM and from its definition, as detach-disk does."""
    document = {"device": device, "timeout_s": timeout_s}
    act_alone(name, "detach-nic", document, no_wait=no_wait, as_json=as_json)


def act_alone(name: str, action: str, document: Any, *, no_wait: bool, as_json: bool) -> None:
    """An action on one VM, which says itself what it came to."""
    act((name,), action, no_wait=no_wait, as_json=as_json, document=document, describe=describe_change)


def describe_change(operation: dict[str, Any]) -> str:
    """``: disk1 attached``."""
    return f"has changed: {operation['message']}"
