"""A host whose VMs run on the thin VMM with real drivers; their guests count for ever. Any KVM will do."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.contract.thin_vmm.micro_guest import TICKING, build_image

from duovisor.controlling.kernel_files import KernelFiles
from duovisor.controlling.vms.manager import VmManager
from duovisor.controlling.vms.records import Autostart
from duovisor.controlling.vms.volumes import lend_none
from duovisor.directories import Directories
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.vms.records import VmEvent
    from duovisor.hardware.capabilities import HostCapabilities

OLD = b"before" * 1000
DISK_BYTES = 1 << 20


class Lab:
    """One host: folders, a store that outlives managers, a VM whose guest counts for ever."""

    def __init__(self, root: Path, store: Store, capabilities: HostCapabilities) -> None:
        self.root = root
        self.directories = Directories(root / "state", root / "run", root / "cache")
        self.store = store
        self.capabilities = capabilities
        self.events: list[VmEvent] = []
        self.disk = root / "disk.raw"
        (root / "kernel").write_bytes(build_image(TICKING))
        self.disk.write_bytes(OLD)
        os.truncate(self.disk, DISK_BYTES)
        self.directories.state.mkdir()
        self.kernels = KernelFiles(root / "kernels")

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]

    @asynccontextmanager
    async def managed(self) -> AsyncIterator[VmManager]:
        manager = VmManager(
            self.store,
            self.directories,
            self._note,
            self.kernels.around(lend_none),
            capabilities=lambda: self.capabilities,
        )
        await manager.open()
        await manager.recover()
        try:
            yield manager
        finally:
            await manager.close()

    def _note(self, event: VmEvent) -> None:
        self.events.append(event)
        self.kernels.on_event(event)

    async def define(self, manager: VmManager, **changes: object) -> None:
        document = {
            "name": "vm", "memory_mib": 64, "design": "microkernelized", "accelerator": "kvm", "vmm": "thin",
            "firmware": "direct-kernel", "kernel": {"path": str(self.root / "kernel")},
            "disks": [{"path": str(self.disk)}], **changes,
        }  # fmt: skip
        await manager.create(build_spec(document), Autostart())

    async def wait_ticks(self, manager: VmManager, count: int) -> bytes:
        """All that the guest said, once that is so much."""
        async with asyncio.timeout(60):
            while len(said := await manager.read_console_log("vm", 1 << 20)) < count:
                await asyncio.sleep(0.02)
        return said

    async def wait_more_than(self, manager: VmManager, said: bytes) -> bytes:
        """The same once it has said some more than that."""
        return await self.wait_ticks(manager, len(said) + 3)

    async def wait_event(self, kind: str) -> None:
        """Wait until that has happened."""
        async with asyncio.timeout(120):
            while kind not in self.kinds:
                await asyncio.sleep(0.01)

    def find_snapshot(self, name: str) -> Path:
        """The folder of a snapshot of its VM's."""
        [folder] = self.directories.state.glob(f"snapshots/*/{name}")
        return folder

    async def wait_more(self, manager: VmManager) -> bytes:
        """The same once it has said a good deal more."""
        return await self.wait_ticks(manager, len(await manager.read_console_log("vm", 1 << 20)) + 64)


def find_gaps(said: bytes) -> int:
    """How often a letter does not follow the one before."""
    return sum((b - a) % 16 != 1 for a, b in pairwise(said))
