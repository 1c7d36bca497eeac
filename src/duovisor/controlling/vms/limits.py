"""What the manager does to limit a VM's devices: under its guest if it runs, and in its definition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duovisor.controlling.machine_disks import rate_of
from duovisor.controlling.machine_limits import limit_disk
from duovisor.controlling.plugging.changes import name_devices
from duovisor.controlling.vms.errors import DeviceNotFoundError
from duovisor.controlling.vms.records import EventKind
from duovisor.hypervisor.qemu.disks import disk_socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.machine import Machine
    from duovisor.controlling.vms.definitions import Definitions
    from duovisor.controlling.vms.host_vms import HostVms
    from duovisor.controlling.vms.records import VmRecord
    from duovisor.spec.vm import VirtualMachineSpec

    Emit = Callable[[EventKind, str, str, str], None]


class Limits:
    """Limits devices of VMs on which nobody else acts meanwhile; arguments as ``Moves`` has them."""

    def __init__(self, definitions: Definitions, host: HostVms, tell: Emit) -> None:
        self._definitions = definitions
        self._host = host
        self._tell = tell

    async def set_disk(
        self, record: VmRecord, disk: str, iops_limit: int | None, bandwidth_limit: int | None
    ) -> None:
        """Other limits for a disk; ``None`` is no limit. Raises ``DeviceNotFoundError``, or as a driver may.

        The running VM first: what it was told of is what is kept.
        """
        limits = {"iops_limit": iops_limit, "bandwidth_limit": bandwidth_limit}
        vm = self._host.find(record.uuid)
        known = {**name_devices(record.spec), **(name_devices(vm.machine.spec) if vm is not None else {})}
        if disk not in known or not disk.startswith("disk"):
            have = ", ".join(sorted(name for name in known if name.startswith("disk"))) or "none"
            raise DeviceNotFoundError(f"{record.name} has no disk {disk!r}", remedy=f"it has {have}")
        if vm is not None and disk in name_devices(vm.machine.spec):
            await limit_running(vm.machine, disk, limits)
        spec = limit_in_spec(record.spec, disk, limits)
        if spec != record.spec:
            await self._definitions.update(record, spec, record.autostart, None)
        said = f"{disk}: {describe_limits(iops_limit, bandwidth_limit)}"
        self._tell(EventKind.LIMITED, record.name, record.uuid, said)


async def limit_running(machine: Machine, disk: str, limits: dict[str, Any]) -> None:
    """Limit a disk of a running VM. Raises ``PartitionError`` or ``QmpError``; it is as it was then."""
    before, spec = machine.spec, limit_in_spec(machine.spec, disk, limits)
    (wanted,) = [each for slot, each in spec.numbered_disks() if disk_socket(slot) == disk]
    machine.current.spec = spec
    machine.write()
    try:
        await limit_disk(machine.current, disk, rate_of(wanted))
    except BaseException:
        machine.current.spec = before
        machine.write()
        raise


def limit_in_spec(spec: VirtualMachineSpec, disk: str, limits: dict[str, Any]) -> VirtualMachineSpec:
    """The specification with other limits for a disk; the same where it has no such disk."""
    disks = [
        each.model_copy(update=limits) if disk_socket(slot) == disk else each
        for slot, each in spec.numbered_disks()
    ]
    return spec.model_copy(update={"disks": tuple(disks)})


def describe_limits(iops_limit: int | None, bandwidth_limit: int | None) -> str:
    """``at most 500 requests and 50 MiB a second``."""
    parts = [f"{iops_limit} requests"] if iops_limit else []
    parts += [f"{bandwidth_limit / (1 << 20):g} MiB"] if bandwidth_limit else []
    return f"at most {' and '.join(parts)} a second" if parts else "no limit"
