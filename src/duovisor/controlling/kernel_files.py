"""Kernels that are on VMs' own disks: taken from there at each start, removed when the VM has ended.

What is on such a disk its guest wrote, and nothing of it is trusted: ``images/boot_files.py`` reads it as
bytes, within bounds. The VMM gets copies, which only it may read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.errors import BootFileError
from duovisor.controlling.formats.chain import read_chain
from duovisor.controlling.images.boot_files import find_boot_files
from duovisor.controlling.images.disk_reader import DiskReadError, open_chain
from duovisor.controlling.start_files import StartFiles
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.sandbox import uid_of
from duovisor.spec.vm import BLOCK_DRIVER, DiskFormat

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.images.boot_files import BootFiles
    from duovisor.spec.vm import DiskSpec, VirtualMachineSpec

KERNEL_SUFFIX, INITRD_SUFFIX = ".vmlinuz", ".initrd"
ARGUMENTS_MAX = 1024  # half of what Linux takes: the rest is the definition's
FORMATS = (DiskFormat.RAW, DiskFormat.QCOW2)


class KernelFiles(StartFiles):
    """The kernels of one host's VMs, in ``folder``: ``VM.vmlinuz`` and ``VM.initrd``."""

    suffixes = (KERNEL_SUFFIX, INITRD_SUFFIX)

    def make(self, spec: VirtualMachineSpec) -> VirtualMachineSpec:
        kernel = spec.kernel
        if kernel is None or kernel.disk is None or kernel.path:  # with a path it runs already
            return spec
        slot = kernel.disk
        disk = dict(spec.numbered_disks()).get(slot)
        if disk is None:
            raise BootFileError(
                f"the kernel of {spec.name} is to be on {disk_socket(slot)}, which it has not",
                remedy="kernel.disk is the number of one of its disks",
            )
        found = read_kernel(disk, f"{disk_socket(slot)} of {spec.name}")
        places = {
            "path": str(self._write(spec.name, KERNEL_SUFFIX, found.kernel)),
            "initrd": str(self._write(spec.name, INITRD_SUFFIX, found.initrd)),
            "found_arguments": found.command_line,
        }
        return spec.model_copy(update={"kernel": kernel.model_copy(update=places)})

    def _write(self, name: str, suffix: str, content: bytes) -> Path:
        path = self.path_of(name, suffix)
        try:
            self.write(path, content, mode=0o400, uid=uid_of(name))
        except OSError as error:
            raise BootFileError(f"cannot write the kernel's copy {path}: {error.strerror}") from error
        return path


def read_kernel(disk: DiskSpec, what: str) -> BootFiles:
    """What a disk would start: ``what`` it is, for people. Raises ``BootFileError`` or ``DiskFileError``."""
    if disk.driver != BLOCK_DRIVER or not disk.path:
        raise BootFileError(
            f"the kernel is to be on {what}, which only the driver {disk.driver} can read",
            remedy="name the kernel's file: kernel.path",
        )
    if disk.format not in FORMATS:
        raise BootFileError(
            f"the kernel is to be on {what}, a {disk.format} image; raw and qcow2 are read here",
            remedy="duovisor volume clone --format qcow2 makes a volume that is; or name kernel.path",
        )
    chain = read_chain(disk.path, disk.format)
    try:
        with open_chain(chain) as reader:
            found = find_boot_files(reader)
    except DiskReadError as error:
        raise BootFileError(f"the kernel on {what} cannot be read: {error}", remedy=_REMEDY) from error
    except OSError as error:
        raise BootFileError(f"cannot read {what}: {error.strerror}") from error
    if found is None:
        raise BootFileError(f"there is no kernel with a RAM disk on {what}", remedy=_REMEDY)
    if len(found.command_line) > ARGUMENTS_MAX or not found.command_line.isprintable():
        raise BootFileError(
            f"the kernel's command line on {what} has more than {ARGUMENTS_MAX} characters, or is no text",
            remedy="correct GRUB_CMDLINE_LINUX in the guest, which firmware bios starts",
        )
    return found


_REMEDY = "it must be Linux on ext4, as docs/images.md says; start it with firmware bios, or name kernel.path"
