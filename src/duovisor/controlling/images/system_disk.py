"""Puts an installed system on a disk image that starts from BIOS and from UEFI; no device, no mount.

::

    sector   0       34   2048            4096             36864 …
             MBR+GPT      BIOS boot       EFI system       root, ext4, numbered 1: it can grow
                          (GRUB's core)   (GRUB's program)
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from duovisor import process
from duovisor.controlling.images import grub
from duovisor.controlling.images.gpt import (
    BIOS_BOOT,
    EFI_SYSTEM,
    LINUX_ROOT_X86_64,
    SECTOR_BYTES,
    Partition,
    build_tables,
)
from duovisor.spec.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CORE_SECTOR, EFI_SECTOR, ROOT_SECTOR = 2048, 4096, 36864
ALIGN_SECTORS = MIB // SECTOR_BYTES
TIMEOUT_S = 300.0
GRUB_FOLDER = "usr/lib/grub"
MADE_HERE = "var/tmp/duovisor"  # in the system's folder, while its disk is made


class Identity(NamedTuple):
    """The UUIDs of a disk and of what is on it, the same in each build of an image."""

    disk: UUID
    root: UUID
    bios: UUID
    efi: UUID


def build_identity(name: str) -> Identity:
    """The identity of the disks of image ``name``; pure."""
    return Identity(*(uuid5(NAMESPACE_URL, f"duovisor:image:{name}:{part}") for part in Identity._fields))


def build_system_disk(
    disk: Path, root: Path, identity: Identity, size_bytes: int, progress: Callable[[str], None]
) -> None:
    """Write the image ``disk`` from the system in the folder ``root``, which has GRUB's packages.

    Raises ``ImageBuildError`` or ``ProcessError``.
    """
    sectors = size_bytes // SECTOR_BYTES
    last = (sectors - ALIGN_SECTORS) // ALIGN_SECTORS * ALIGN_SECTORS - 1
    made = root / MADE_HERE
    made.mkdir(parents=True)
    try:
        (made / "early.cfg").write_text(grub.build_early_config(identity.root))
        core = _make_program(root, grub.BIOS_PLATFORM, grub.BIOS_MODULES)
        program = _make_program(root, grub.EFI_PLATFORM, grub.EFI_MODULES)
        efi = disk.with_suffix(".efi")
        _make_efi_system(efi, program)
        room_bytes = (EFI_SECTOR - CORE_SECTOR) * SECTOR_BYTES
        core_bytes = grub.build_core(core.read_bytes(), CORE_SECTOR, room_bytes)
    finally:
        shutil.rmtree(made)
    code = grub.build_boot_code(
        (root / GRUB_FOLDER / grub.BIOS_PLATFORM / "boot.img").read_bytes(), CORE_SECTOR
    )
    tables = build_tables(
        identity.disk,
        sectors,
        (
            Partition(1, LINUX_ROOT_X86_64, identity.root, "root", ROOT_SECTOR, last),
            Partition(14, BIOS_BOOT, identity.bios, "bios", CORE_SECTOR, EFI_SECTOR - 1),
            Partition(15, EFI_SYSTEM, identity.efi, "efi", EFI_SECTOR, ROOT_SECTOR - 1),
        ),
    )
    progress("writing the system to its disk")
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    process.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "1", "-b", "4096", "-L", "root", "-U", str(identity.root),
         "-E", f"offset={ROOT_SECTOR * SECTOR_BYTES},hash_seed={identity.disk}",
         "-d", str(root), str(disk), f"{(last + 1 - ROOT_SECTOR) // 2}k"],
        timeout_s=TIMEOUT_S,
        remedy="apt-get install e2fsprogs",
    )  # fmt: skip
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), code + tables.head[len(code) :], 0)
        os.pwrite(file.fileno(), core_bytes, CORE_SECTOR * SECTOR_BYTES)
        os.pwrite(file.fileno(), efi.read_bytes(), EFI_SECTOR * SECTOR_BYTES)
        os.pwrite(file.fileno(), tables.tail, size_bytes - len(tables.tail))
    efi.unlink()


def copy_grub_modules(root: Path) -> None:
    """Put GRUB's modules where its programs look for them, as ``grub-install`` does."""
    for platform in (grub.BIOS_PLATFORM, grub.EFI_PLATFORM):
        target = root / "boot/grub" / platform
        target.mkdir(parents=True)
        for file in sorted((root / GRUB_FOLDER / platform).iterdir()):
            if file.suffix in (".mod", ".lst"):
                shutil.copyfile(file, target / file.name)


def _make_program(root: Path, platform: str, modules: tuple[str, ...]) -> Path:
    output = f"{MADE_HERE}/{platform}.img"
    argv = grub.build_mkimage_argv(platform, modules, f"/{MADE_HERE}/early.cfg", f"/{output}")
    process.run(["chroot", str(root), *argv], timeout_s=TIMEOUT_S)
    return root / output


def _make_efi_system(path: Path, program: Path) -> None:
    with path.open("wb") as file:
        file.truncate((ROOT_SECTOR - EFI_SECTOR) * SECTOR_BYTES)
    process.run(
        ["mkfs.vfat", "-n", "EFI", "-i", "d0071505", "--invariant", str(path)],
        remedy="apt-get install dosfstools",
    )
    remedy = "apt-get install mtools"
    process.run(["mmd", "-i", str(path), "::/EFI", "::/EFI/BOOT"], remedy=remedy)
    process.run(["mcopy", "-m", "-i", str(path), str(program), "::/EFI/BOOT/BOOTX64.EFI"], remedy=remedy)
