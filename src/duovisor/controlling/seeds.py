"""The seed disks of VMs that run: made at each start, removed when the VM has ended."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from duovisor.controlling.errors import DiskFileError
from duovisor.controlling.images.seed import build_seed
from duovisor.controlling.vms.records import EventKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

    from duovisor.controlling.vms.records import VmEvent
    from duovisor.controlling.vms.volumes import Lend
    from duovisor.spec.vm import VirtualMachineSpec

ENDS = frozenset({EventKind.STOPPED, EventKind.CRASHED, EventKind.START_FAILED, EventKind.ROLLED_BACK})
SUFFIX = ".iso"


class Seeds:
    """The seeds of one host, each a file ``VM.iso`` in ``folder``, which only its owner may read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def around(self, lend: Lend) -> Lend:
        """What lends a specification its volumes, and then its seed."""

        @asynccontextmanager
        async def lend_both(spec: VirtualMachineSpec) -> AsyncIterator[VirtualMachineSpec]:
            async with lend(spec) as found:
                yield await asyncio.to_thread(self._add, found)

        return lend_both

    def on_event(self, event: VmEvent) -> None:
        """A VM that has ended needs its seed no more."""
        if event.kind in ENDS:
            self._path(event.name).unlink(missing_ok=True)

    def sweep(self, running: Collection[str]) -> None:
        """Remove what belongs to no VM that runs."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            if path.stem not in running:
                path.unlink()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"

    def _add(self, spec: VirtualMachineSpec) -> VirtualMachineSpec:
        disks = []
        for disk in spec.disks:
            if disk.cloud_init is not None:
                path = self._write(spec.name, build_seed(spec.name, disk.cloud_init))
                disk = disk.model_copy(update={"path": str(path)})
            disks.append(disk)
        return spec.model_copy(update={"disks": tuple(disks)})

    def _write(self, name: str, image: bytes) -> Path:
        path = self._path(name)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(image)
        except OSError as error:
            raise DiskFileError(f"cannot write the cloud-init disk {path}: {error.strerror}") from error
        return path
