"""Devices of a VMM that runs: how they come and go, what they may do, and whether they find room."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from duovisor.hypervisor import memory_modules, plugging, processors
from duovisor.hypervisor.lifecycle import ENDED, State

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from duovisor.hypervisor.lifecycle import Lifecycle
    from duovisor.hypervisor.plan import LaunchPlan
    from duovisor.hypervisor.qemu.hot_plug import Plug
    from duovisor.hypervisor.qmp import Qmp

LIVE = frozenset({State.RUNNING, State.PAUSED})


class VmmDevices:
    """A part of ``Vmm``, which has what stands here first."""

    plan: LaunchPlan
    lifecycle: Lifecycle
    _qmp: Qmp
    _listeners: dict[str, socket.socket]
    _unplugged: plugging.Unplugged

    def socket_path(self, name: str) -> Path:
        """Where the plan's socket ``name`` is bound."""
        raise NotImplementedError

    def _bind(self, name: str) -> None:
        raise NotImplementedError

    def _close_listeners(self) -> None:
        raise NotImplementedError

    def plan_plug(self, plug: Plug, taps: Collection[str]) -> None:
        """Have the sockets of a device that is about to come in the plan; ``taps`` are no sockets of ours."""
        plan, listens = self.plan, tuple(name for name in plug.descriptors if name not in taps)
        self.plan = replace(
            plan,
            sockets=(*plan.sockets, *listens),
            channels=(*plan.channels, *listens),
            bound=(*plan.bound, *plug.binds),
        )

    async def open_back_end(self, plug: Plug, taps: Mapping[str, int]) -> None:
        """Bind the device's sockets and hand them, or a TAP, to the VMM: a driver may connect then.

        ``remove_back_end`` undoes it. Raises ``WrongStateError``, ``HypervisorError``.
        """
        self.lifecycle.require(LIVE, "plug a device into")
        for name in plug.descriptors:
            if name not in taps:
                self._bind(name)
            await self._qmp.getfd(name, taps[name] if name in taps else self._listeners[name].fileno())
        self._close_listeners()
        await plugging.run(self._qmp, plug.channel)

    async def plug_in(self, plug: Plug) -> None:
        """Give the guest the device, whose driver has connected. Raises ``HypervisorError``."""
        await plugging.run(self._qmp, (*plug.back_end, plug.front_end))

    async def take_out(self, device: str, *, timeout_s: float) -> None:
        """Have the guest let go of a device.

        Raises ``UnplugTimeoutError``, ``UnplugRefusedError``, ``WrongStateError`` or ``QmpError``.
        """
        self.lifecycle.require({State.RUNNING}, f"take {device} out of")
        await plugging.take_out(self._qmp, device, self._unplugged, timeout_s)

    async def remove_back_end(self, device: str) -> None:
        """Remove what the VMM has behind a device that is gone, or did not come, and its sockets."""
        if self.lifecycle.state not in ENDED:
            await plugging.remove_back_end(self._qmp, device)
        if device in (*self.plan.sockets, *self.plan.bound):
            self.socket_path(device).unlink(missing_ok=True)
        self.plan = self.plan.without(device)

    async def list_devices(self) -> frozenset[str]:
        """The devices that the guest has, by id."""
        return await plugging.list_devices(self._qmp)

    async def count_processors(self) -> int:
        """How many processors the guest has."""
        return await processors.count_processors(self._qmp)

    async def add_processors(self, wanted: int) -> None:
        """Let the guest have as many processors. Raises ``WrongStateError``, ``QmpError``; see ``count``."""
        self.lifecycle.require(LIVE, "add processors to")
        await processors.add_processors(self._qmp, wanted)

    async def count_modules(self) -> int:
        """How much memory (MiB) has come to the guest since it booted; the plan tells of it, too."""
        self.plan = replace(self.plan, modules_mib=await memory_modules.list_modules(self._qmp))
        return sum(self.plan.modules_mib)

    async def add_memory(self, mib: int, file: Path, shown: str) -> None:
        """Let the guest have as much more memory, in a file that the VMM sees as ``shown``.

        Raises ``WrongStateError``, ``HypervisorError``; it has what it had then, unless ``count_modules``
        says otherwise.
        """
        self.lifecycle.require(LIVE, "add memory to")
        await memory_modules.add_module(self._qmp, len(self.plan.modules_mib), mib, file, shown)

    async def wait_memory_taken(self, timeout_s: float) -> memory_modules.Answer:
        """What the guest says of the memory that came to it. Raises ``QmpError``."""
        return await memory_modules.wait_taken(self._qmp, len(self.plan.modules_mib), timeout_s)

    async def limit_disk(self, disk: str, *, iops: int, bytes_per_s: int) -> None:
        """Limit a disk whose driver is in the VMM; 0 is no limit. Raises ``QmpError``."""
        await self._qmp.set_io_limits(disk, iops=iops, bytes_per_s=bytes_per_s)

    async def list_full_disks(self) -> tuple[str, ...]:
        """The disks whose driver is in the VMM and waits for room on the host."""
        return await self._qmp.query_full_disks()
