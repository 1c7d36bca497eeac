"""What speaks against a move, before anything is touched; and what the successor is planned from."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from duovisor.controlling.disk_files import open_disk, open_image_file
from duovisor.controlling.formats.chain import read_chain
from duovisor.controlling.machine_checks import CheckedStart
from duovisor.controlling.machine_drivers import open_device
from duovisor.controlling.machine_networks import check_networks
from duovisor.controlling.media.server import check_media
from duovisor.controlling.moving.errors import MoveRefusedError
from duovisor.controlling.preflight import check_boot_files, find_sandbox_tools
from duovisor.controlling.supervision.records import DeviceState
from duovisor.hypervisor.lifecycle import State
from duovisor.hypervisor.qemu.machine import read_machine_type
from duovisor.spec.vm import Design, DiskFormat, VmmKind

if TYPE_CHECKING:
    from duovisor.controlling.disk_files import OpenDisk
    from duovisor.controlling.machine import Machine
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.hypervisor.qemu.images import ImageFile
    from duovisor.spec.vm import DiskSpec, VirtualMachineSpec


def check_move(machine: Machine, design: Design, capabilities: HostCapabilities) -> CheckedStart:
    """Check that a VM can move to a VMM of ``design`` and of the QEMU in ``capabilities``.

    Raises ``MoveRefusedError`` or another ``DuovisorError``, with nothing left open.
    """
    machine.vmm.lifecycle.require({State.RUNNING}, "move")
    spec = machine.spec.model_copy(update={"design": design})
    kind = machine.current.decision.kind
    check_carried(machine.spec, design, kind)
    if kind is VmmKind.THIN and design is not machine.spec.design:
        raise MoveRefusedError(
            f"{spec.name} runs on the thin VMM, whose state no QEMU understands",
            remedy="start it with vmm: qemu to move it between the designs",
        )
    if machine.current.paging.is_loading:
        raise MoveRefusedError(
            f"{spec.name} was restored, and its memory is still being loaded", remedy="try again in a moment"
        )
    for device in machine.devices.values():
        if device.state is not DeviceState.RUNNING:
            raise MoveRefusedError(
                f"{spec.name} does not move while {device.plan.device} is {device.state}",
                remedy=f"duovisor driver list {spec.name} shows its drivers",
            )
    check_boot_files(spec)
    check_networks(spec)
    check_media(spec, capabilities)
    with ExitStack() as stack:
        disks: tuple[OpenDisk, ...] = ()
        if (machine.spec.design, design) == (Design.MONOLITHIC, Design.MICROKERNELIZED):
            disks = tuple(stack.enter_context(open_disk(disk, lock=False)) for disk in spec.disks)
        chains = tuple(map(_look_at, spec.disks))
        devices = tuple(open_device(each, stack) for each in spec.devices) if kind is VmmKind.THIN else ()
        return CheckedStart(
            spec=spec,
            capabilities=pin_machine(machine, capabilities),
            decision=machine.decision,
            vmm=machine.current.decision,
            tools=find_sandbox_tools(design, capabilities),
            disks=disks,
            open_disks=stack.pop_all(),
            block_devices=frozenset(each[0].path for each in chains if each and each[0].is_block_device),
            chains=chains,
            devices=devices,
            modules_mib=machine.vmm.plan.modules_mib,
        )


def pin_machine(machine: Machine, capabilities: HostCapabilities) -> HostCapabilities:
    """The guest keeps the machine that it booted on, whatever newer ones a newer QEMU has."""
    if machine.current.decision.kind is VmmKind.THIN:
        return capabilities
    _, qemu = capabilities.require_qemu()
    pinned = replace(qemu, q35_machine=read_machine_type(machine.vmm.plan.argv))
    return replace(capabilities, qemu=pinned)


def check_carried(spec: VirtualMachineSpec, design: Design, kind: VmmKind) -> None:
    """What of a VM's devices cannot be carried to a VMM of ``design``. Raises ``MoveRefusedError``."""
    outside = Design.MICROKERNELIZED in (spec.design, design)
    for index, nic in spec.numbered_nics():
        if not nic.is_bridged:
            raise MoveRefusedError(
                f"nic{index} is on user networking, where the guest's connections end in a process that a "
                "move replaces",
                remedy="put it on a bridge, or stop the VM",
            )
    if spec.tpm:
        raise MoveRefusedError(
            "its TPM cannot be carried over: the process that has it serves one VMM, and holds its state",
            remedy="stop the VM, or leave tpm out",
        )
    for index, device in enumerate(spec.devices if outside else ()):
        if kind is VmmKind.QEMU:
            reason = "QEMU does not move vhost-user-rng and its like"
        elif device.file is not None:
            reason = "what a driver of your own knows of its guest ends with its process"
        else:
            continue  # an entropy source knows nothing; what its guest asked for is in the in-flight log
        raise MoveRefusedError(
            f"device{index} cannot be carried over: {reason}", remedy="stop the VM, or leave its devices out"
        )


def _look_at(disk: DiskSpec) -> tuple[ImageFile, ...]:
    if disk.format is not DiskFormat.RAW:
        return tuple(read_chain(disk.path, disk.format))
    if not disk.path:
        return ()
    with open_image_file(disk, lock=False) as opened:
        return opened.chain
