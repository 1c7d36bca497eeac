"""What the manager does to how much of the host its VMs may use: reserving, and limiting under the guest."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from duovisor.controlling.plugging.processors import add_processors, check_processors
from duovisor.controlling.resources.live import change_limits
from duovisor.controlling.resources.processors import check_group_limits, check_reservation
from duovisor.controlling.vms.device_actions import DeviceActions
from duovisor.controlling.vms.errors import VmChangeError
from duovisor.controlling.vms.records import EventKind
from duovisor.spec.vm import VirtualMachineSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from duovisor.controlling.machine import Machine
    from duovisor.controlling.vms.actions import Given
    from duovisor.controlling.vms.records import VmView
    from duovisor.hardware.capabilities import HostCapabilities

LIMITS = ("cpu_weight", "cpu_limit", "cpu_reservation", "memory_limit_mib")


class ResourceActions(DeviceActions):
    """A part of the manager."""

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self._starting: dict[str, VirtualMachineSpec] = {}

    @contextmanager
    def _reserve(self, spec: VirtualMachineSpec, cpus: int) -> Iterator[None]:
        """Keep processors for a VM that starts, or shall have more. Raises ``ProcessorsTakenError``."""
        running = {vm.name: vm.machine.spec for vm in self._host.active}
        others = {**running, **self._starting}
        others.pop(spec.name, None)
        check_reservation(spec, others, cpus)
        self._starting[spec.name] = spec
        try:
            yield
        finally:
            del self._starting[spec.name]

    async def set_limits(self, name: str, changes: Mapping[str, Any]) -> VmView:
        """Other limits (``LIMITS``) for a VM, ``None`` is none: under its guest if it runs, and from then on.

        Raises ``VmChangeError``, ``HostLacksError``, ``ProcessorsTakenError`` or ``MemoryInUseError``; it is
        as it was then.
        """
        with self._exclusive(name, "limit"):
            record = await self._definitions.get(name)
            spec = change_spec(record.spec, changes)
            capabilities = await asyncio.to_thread(self._capabilities)
            check_group_limits(spec, capabilities)
            vm = self._host.find(record.uuid)
            if vm is not None:
                wanted = change_spec(vm.machine.spec, changes)
                with self._reserve(wanted, capabilities.cpus):
                    await limit_running(vm.machine, wanted, capabilities)
            if spec != record.spec:
                await self._definitions.update(record, spec, record.autostart, None)
            self._tell(EventKind.LIMITED, name, record.uuid, describe_resources(spec))
        return self._view(await self._definitions.get(name))

    async def set_cpus(self, name: str, cpus: int) -> VmView:
        """As many processors: under its guest if it runs, and from then on.

        Raises ``VmChangeError``, ``PlugRefusedError``, ``WrongStateError`` with nothing changed, or
        ``QmpError``; the rest comes at the next start then.
        """
        with self._exclusive(name, "add processors to"):
            record = await self._definitions.get(name)
            spec = change_spec(record.spec, {"cpus": cpus})
            vm = self._host.find(record.uuid)
            if vm is not None:
                check_processors(vm.machine, cpus)
            if spec != record.spec:  # first: a service that is killed now leaves what was asked for
                await self._definitions.update(record, spec, record.autostart, None)
            if vm is not None:
                await add_processors(vm.machine, cpus)
            said = f"{cpus} processors" if vm is not None else f"{cpus} processors at its next start"
            self._tell(EventKind.PROCESSORS_SET, name, record.uuid, said)
        return self._view(await self._definitions.get(name))


async def limit_running(machine: Machine, spec: VirtualMachineSpec, capabilities: HostCapabilities) -> None:
    """Let a running VM have the limits of ``spec``; if that fails, it is as it was."""
    before = machine.spec
    machine.current.spec = spec
    machine.write()
    try:
        if spec.needs_group or before.needs_group:
            await change_limits(machine.group, spec, capabilities)
    except BaseException:
        machine.current.spec = before
        machine.write()
        raise


def change_spec(spec: VirtualMachineSpec, changes: Mapping[str, Any]) -> VirtualMachineSpec:
    """The specification with other limits. Raises ``VmChangeError`` when they cannot be."""
    try:
        return VirtualMachineSpec.model_validate(dict(spec) | dict(changes))
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise VmChangeError(f"{spec.name} cannot have that: {said}") from error


def describe_resources(spec: VirtualMachineSpec) -> str:
    """``weight 50, at most 1.5 processors``."""
    parts = [f"weight {spec.cpu_weight}"] if spec.cpu_weight else []
    parts += [f"at most {spec.cpu_limit:g} processors"] if spec.cpu_limit else []
    parts += [f"{spec.cpu_reservation:g} processors reserved"] if spec.cpu_reservation else []
    parts += [f"at most {spec.memory_limit_mib} MiB of memory"] if spec.memory_limit_mib else []
    return ", ".join(parts) or "no limits"
