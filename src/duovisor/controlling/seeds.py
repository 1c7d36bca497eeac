"""The seed disks of VMs that run: made at each start, removed when the VM has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.errors import DiskFileError
from duovisor.controlling.images.seed import build_seed
from duovisor.controlling.start_files import StartFiles

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.spec.vm import VirtualMachineSpec

SUFFIX = ".iso"


class Seeds(StartFiles):
    """The seeds of one host, each a file ``VM.iso`` in ``folder``, which only its owner may read."""

    suffixes = (SUFFIX,)

    def make(self, spec: VirtualMachineSpec) -> VirtualMachineSpec:
        disks = []
        for disk in spec.disks:
            if disk.cloud_init is not None:
                path = self._write(spec.name, build_seed(spec.name, disk.cloud_init))
                disk = disk.model_copy(update={"path": str(path)})
            disks.append(disk)
        return spec.model_copy(update={"disks": tuple(disks)})

    def _write(self, name: str, image: bytes) -> Path:
        path = self.path_of(name, SUFFIX)
        try:
            self.write(path, image, mode=0o600)
        except OSError as error:
            raise DiskFileError(f"cannot write the cloud-init disk {path}: {error.strerror}") from error
        return path
