"""What one QEMU binary can do, as data; ``qemu_probe`` asks the binary itself."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.process import ProgramNotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAM = "qemu-system-x86_64"
INSTALL = "apt install qemu-system-x86"
OLDEST = (7, 2, 0)


@dataclass(frozen=True, slots=True)
class QemuAbilities:
    """Abilities of a QEMU binary that a launch plan depends on; each was asked of the binary, none guessed.

    ``io_uring`` also needs the kernel's permission. ``q35_machine`` is what the alias ``q35`` means to it.
    ``device_types`` lists those of ``qemu_probe.DEVICE_TYPES`` that it has.
    """

    version: tuple[int, int, int]
    package: str
    q35_machine: str
    q35_cpus_max: int
    kvm: bool
    tcg: bool
    io_uring: bool
    seccomp: bool
    virtio_blk_queue_reset: bool
    virtio_blk_iothread_vq_mapping: bool
    netdev_stream: bool
    netdev_stream_reconnect: bool
    reconnect_ms: bool
    blockdev_set_active: bool
    device_types: tuple[str, ...]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> QemuAbilities:
        """The abilities from their JSON form; raises ``ValueError`` for anything else."""
        try:
            major, minor, micro = map(int, document["version"])
            lists = {"version": (major, minor, micro), "device_types": tuple(document["device_types"])}
            return cls(**{**document, **lists})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the abilities of a QEMU: {error}") from error


def find_qemu(environ: Mapping[str, str] | None = None) -> Path:
    """The QEMU binary to use: ``DUOVISOR_QEMU``, else the one in ``PATH``.

    Raises ``ProgramNotFoundError``; a path in ``DUOVISOR_QEMU`` is tried as it is, by whoever starts it.
    """
    environ = os.environ if environ is None else environ
    wanted = environ.get("DUOVISOR_QEMU") or PROGRAM
    if "/" in wanted:
        return Path(wanted).absolute()
    found = shutil.which(wanted, path=environ.get("PATH"))
    if found is None:
        raise ProgramNotFoundError(f"{wanted} is not in PATH", remedy=INSTALL)
    return Path(found)
