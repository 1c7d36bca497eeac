"""What the manager does to limit a VM's devices: under its guest if it runs, and in its definition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duovisor.controlling.machine_disks import rate_of
from duovisor.controlling.machine_limits import limit_card, limit_disk
from duovisor.controlling.plugging.changes import name_devices, slot_of
from duovisor.controlling.vms.errors import DeviceNotFoundError, VmChangeError
from duovisor.controlling.vms.records import EventKind
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.nics import nic_socket

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
        """Other limits for a disk; ``None`` is none. Raises ``DeviceNotFoundError``, or as a driver may."""
        limits = {"iops_limit": iops_limit, "bandwidth_limit": bandwidth_limit}
        said = describe_limits(iops_limit, bandwidth_limit)
        await self._set(record, "disk", disk, limits, said)

    async def set_card(
        self, record: VmRecord, card: str, in_limit: int | None, out_limit: int | None
    ) -> None:
        """Other limits for a network card; ``None`` is no limit.

        Raises ``DeviceNotFoundError``, ``VmChangeError``, or as a driver or the packet filter may.
        """
        limits = {"in_limit": in_limit, "out_limit": out_limit}
        await self._set(record, "nic", card, limits, describe_card_limits(in_limit, out_limit))

    async def _set(self, record: VmRecord, kind: str, device: str, limits: dict[str, Any], said: str) -> None:
        """The running VM first: what it was told of is what is kept."""
        vm = self._host.find(record.uuid)
        known = {**name_devices(record.spec), **(name_devices(vm.machine.spec) if vm is not None else {})}
        if device not in known or not device.startswith(kind):
            have = ", ".join(sorted(name for name in known if name.startswith(kind))) or "none"
            what = "disk" if kind == "disk" else "network card"
            raise DeviceNotFoundError(f"{record.name} has no {what} {device!r}", remedy=f"it has {have}")
        if getattr(known[device], "is_bridged", True) is False and any(limits.values()):
            raise VmChangeError(
                f"{device} of {record.name} cannot be limited: it is on no bridge, but on network user",
                remedy="limits are for cards on a bridge or a network of duovisor's",
            )
        if vm is not None and device in name_devices(vm.machine.spec):
            await limit_running(vm.machine, device, limits)
        spec = limit_in_spec(record.spec, device, limits)
        if spec != record.spec:
            await self._definitions.update(record, spec, record.autostart, None)
        self._tell(EventKind.LIMITED, record.name, record.uuid, f"{device}: {said}")


async def limit_running(machine: Machine, device: str, limits: dict[str, Any]) -> None:
    """Limit a device of a running VM.

    Raises ``PartitionError``, ``QmpError``, ``NetworkError`` or ``HostLacksError``; it is as it was then.
    """
    before, spec = machine.spec, limit_in_spec(machine.spec, device, limits)
    machine.current.spec = spec
    machine.write()
    try:
        slot = slot_of(device)
        if device == disk_socket(slot):
            await limit_disk(machine.current, device, rate_of(spec.disk_at(slot)))
        elif spec.nic_at(slot).is_bridged:
            await limit_card(machine.current, slot)
    except BaseException:
        machine.current.spec = before
        machine.write()
        raise


def limit_in_spec(spec: VirtualMachineSpec, device: str, limits: dict[str, Any]) -> VirtualMachineSpec:
    """The specification with other limits for a disk or card; the same where it has none of that name."""
    disks = [
        each.model_copy(update=limits) if disk_socket(slot) == device else each
        for slot, each in spec.numbered_disks()
    ]
    nics = [
        each.model_copy(update=limits) if nic_socket(slot) == device and each.is_bridged else each
        for slot, each in spec.numbered_nics()
    ]
    return spec.model_copy(update={"disks": tuple(disks), "nics": tuple(nics)})


def describe_limits(iops_limit: int | None, bandwidth_limit: int | None) -> str:
    """``at most 500 requests and 50 MiB a second``."""
    parts = [f"{iops_limit} requests"] if iops_limit else []
    parts += [_describe_bytes(bandwidth_limit)] if bandwidth_limit else []
    return f"at most {' and '.join(parts)} a second" if parts else "no limit"


def describe_card_limits(in_limit: int | None, out_limit: int | None) -> str:
    """``at most 50 MiB in and 5 MiB out a second``."""
    parts = [f"{_describe_bytes(in_limit)} in"] if in_limit else []
    parts += [f"{_describe_bytes(out_limit)} out"] if out_limit else []
    return f"at most {' and '.join(parts)} a second" if parts else "no limit"


def _describe_bytes(size: int) -> str:
    return f"{size / (1 << 20):g} MiB" if size >= 1 << 20 else f"{size / (1 << 10):g} KiB"
