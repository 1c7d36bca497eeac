"""``duovisor vm switch`` and ``update-vmm``: another VMM for a running VM, under its guest."""

from __future__ import annotations

from typing import Any

import click

from duovisor.cli.vm_act import act, action_options

DESIGNS = ("monolithic", "microkernelized")


@click.command()
@action_options
@click.option("--design", type=click.Choice(DESIGNS), required=True, help="The design to have from now on.")
def switch(names: tuple[str, ...], design: str, no_wait: bool, as_json: bool) -> None:
    """Give VMs the other design: drivers move into the hypervisor or out of it, under a running guest.

    A second VMM is started beside the first. The guest stands still for 20 to 30 ms, while the state of its
    devices (about 400 KiB) is handed over; its memory stays where it is, whatever its size. Then the first
    VMM ends. The guest keeps its disks, network connections and clock; it notices nothing but the pause.

    \b
    Until the guest goes on, whatever fails leaves it running as it was (exit code 6).
    What cannot be carried over is refused before anything is touched (exit code 4):
      - a VM that is paused, runs on the thin VMM, or has a driver that is just being replaced
      - disks that are not raw images, cards that are not on a bridge, devices such as rng
    A VM that does not run has the design at its next start.
    """
    act(
        names,
        "switch",
        no_wait=no_wait,
        as_json=as_json,
        document={"design": design},
        describe=describe_switch,
    )


@click.command("update-vmm")
@action_options
def update_vmm(names: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Replace running VMs' VMMs by new processes of what is installed now, without a restart.

    As with switch, the guest stands still for 20 to 30 ms and keeps all it has; the design stays, and so does
    the program: a QEMU makes room for a QEMU, a thin VMM for a thin VMM. This is how running VMs get a VMM
    with a security fix, or are rid of a process that has grown. The virtual hardware stays what the guest
    booted on, also under a newer QEMU.

    What cannot be carried over is refused (exit code 4); if anything fails, the VM runs on in its old VMM
    (exit code 6).
    """
    act(names, "update-vmm", no_wait=no_wait, as_json=as_json, describe=describe_update)


def describe_switch(operation: dict[str, Any]) -> str:
    """``is microkernelized now: paused 18.2 ms, …``, or that it will be."""
    return f"is {operation['message']}"


def describe_update(operation: dict[str, Any]) -> str:
    """``has a new VMM, QEMU 7.2.22 → 10.0.3: paused 18.2 ms, …``."""
    return f"has a new VMM, {operation['message']}"
