"""What serves a device that is plugged in, and what of it stays until the device is gone."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from duovisor.controlling.disk_files import open_disk
from duovisor.controlling.machine_devices import plan_nic
from duovisor.controlling.machine_disks import plan_disk
from duovisor.controlling.machine_formats import build_format_environment
from duovisor.controlling.machine_networks import open_card_tap
from duovisor.controlling.network_helper import start_network_helper
from duovisor.controlling.preflight import find_sandbox_tools
from duovisor.controlling.supervision.format import FormatKeeper
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.nics import nic_socket
from duovisor.spec.vm import Design, DiskFormat

if TYPE_CHECKING:
    from contextlib import ExitStack

    from duovisor.controlling.disk_files import OpenDisk
    from duovisor.controlling.incarnation import Incarnation
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.hypervisor.qemu.images import ImageFile
    from duovisor.spec.vm import DiskSpec, NicSpec, VirtualMachineSpec


class Disk:
    """A disk that is about to be plugged in; ``files`` holds what was opened for it."""

    def __init__(self, spec: VirtualMachineSpec, disk: DiskSpec, files: ExitStack) -> None:
        assert disk.slot is not None
        self.name = disk_socket(disk.slot)
        self.taps: dict[str, int] = {}
        self._spec, self._disk, self._slot = spec, disk, disk.slot
        self._opened: OpenDisk = files.enter_context(open_disk(disk))
        self._files = files
        if spec.design is Design.MONOLITHIC:
            files.close()  # QEMU opens and locks it itself

    @property
    def chain(self) -> tuple[ImageFile, ...]:
        """Its image and what that is based on."""
        return self._opened.chain

    async def serve(self, incarnation: Incarnation, capabilities: HostCapabilities) -> None:
        """Start its driver, in the microkernelized design. Raises ``DuovisorError``."""
        if self._spec.design is Design.MONOLITHIC:
            return
        if self._disk.format is DiskFormat.RAW:
            plan = plan_disk(self._spec, self._slot, self._opened.descriptors, files=self._files)
            await incarnation.add_device(plan).start()
            return
        tools = find_sandbox_tools(self._spec.design, capabilities)
        environment = build_format_environment(incarnation.name, incarnation.run_dir, tools, capabilities)
        keeper = FormatKeeper(environment, self.name, self._disk, self.chain, incarnation.record)
        incarnation.keepers[self.name] = keeper
        await keeper.start()
        plan = plan_disk(self._spec, self._slot, keeper.descriptors, keeper.size_bytes)
        await incarnation.add_device(plan, keeper).start()


class Card:
    """A network card that is about to be plugged in; ``files`` holds what was opened for it."""

    def __init__(self, spec: VirtualMachineSpec, nic: NicSpec, files: ExitStack) -> None:
        assert nic.slot is not None
        self.name = nic_socket(nic.slot)
        self._spec, self._nic, self._slot = spec, nic, nic.slot
        self._tap = open_card_tap(spec, nic.slot, files)
        inside = spec.design is Design.MONOLITHIC
        self.taps = {self.name: self._tap} if inside and self._tap is not None else {}

    async def serve(self, incarnation: Incarnation, capabilities: HostCapabilities) -> None:
        """Start its driver or helper, in the microkernelized design. Raises ``DuovisorError``."""
        if self._tap is not None:
            incarnation.taps[self.name] = self._tap
        if self._spec.design is Design.MONOLITHIC:
            return
        if self._tap is not None:
            await incarnation.add_device(plan_nic(self._spec, self._slot, {"tap": self._tap})).start()
            return
        record = partial(incarnation.record_process, device=self.name)
        passt = capabilities.tools.passt
        incarnation.helpers[self.name] = start_network_helper(
            passt, incarnation.vmm.socket_path(self.name), incarnation.run_dir, self._nic, record
        )


async def stop_serving(incarnation: Incarnation, device: str) -> None:
    """End what serves a device that is gone, or did not come, and close what was opened for it."""
    supervisor, keeper = incarnation.devices.pop(device, None), incarnation.keepers.pop(device, None)
    helper, tap = incarnation.helpers.pop(device, None), incarnation.taps.pop(device, None)
    descriptors: set[int] = {tap} if tap is not None else set()
    if supervisor is not None and keeper is None:  # a keeper's are its own
        descriptors.update(supervisor.plan.descriptors.values())
    if supervisor is not None:
        await supervisor.end()
    elif keeper is not None:  # it did not come to have a driver
        await keeper.end()
    if helper is not None:
        await helper.stop(grace_s=1.0)
    incarnation.forget_processes(device)
    (incarnation.run_dir / f"{device}.log").unlink(missing_ok=True)
    files = incarnation.files.pop(device, None)
    if files is not None:
        files.close()
    else:
        _empty(descriptors)


def _empty(descriptors: set[int]) -> None:
    """Let go of what was opened at the start, with its locks; the numbers stay taken until the VM ends.

    Whoever closes them then must not close another file.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        for descriptor in descriptors:
            os.dup2(nothing, descriptor, inheritable=False)
    finally:
        os.close(nothing)
