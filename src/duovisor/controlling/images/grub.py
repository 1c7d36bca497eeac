"""Makes a disk image bootable by GRUB, from BIOS and from UEFI, without a device or a mount.

``grub-install`` wants a block device. What it writes are three things, which need none: a boot sector that
knows where its successor lies, that successor (the core image) in a partition of its own, and a program on
the EFI system partition. Source: GRUB 2.06, util/setup.c and grub-core/boot/i386/pc/{boot,diskboot}.S.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from duovisor.controlling.images.errors import ImageBuildError
from duovisor.controlling.images.gpt import MBR_CODE_BYTES, SECTOR_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

CORE_SECTOR_AT = 0x5C  # in boot.img: where the core image begins (GRUB_BOOT_MACHINE_KERNEL_SECTOR)
DRIVE_CHECK_AT = 0x66  # in boot.img: a jump that must go where the BIOS's drive number is to be trusted
BLOCK_LIST_AT = SECTOR_BYTES - 12  # in diskboot.img: where the rest of the core image begins

BIOS_PLATFORM, EFI_PLATFORM = "i386-pc", "x86_64-efi"
# the least that reads /boot/grub on an ext4 in a GPT; everything else is loaded from there
BIOS_MODULES = ("biosdisk", "part_gpt", "ext2", "search_fs_uuid", "normal")
EFI_MODULES = (
    "part_gpt", "ext2", "fat", "search_fs_uuid", "normal", "linux", "configfile", "all_video", "serial",
    "terminal", "echo", "test", "boot", "gzio",
)  # fmt: skip


def build_boot_code(boot_image: bytes, core_sector: int) -> bytes:
    """The MBR's code, from GRUB's ``boot.img``. Raises ``ImageBuildError``."""
    if len(boot_image) != SECTOR_BYTES or boot_image[-2:] != b"\x55\xaa":
        raise ImageBuildError("GRUB's boot.img is not a boot sector")
    code = bytearray(boot_image[:MBR_CODE_BYTES])
    struct.pack_into("<Q", code, CORE_SECTOR_AT, core_sector)
    code[DRIVE_CHECK_AT : DRIVE_CHECK_AT + 2] = b"\x90\x90"
    return bytes(code)


def build_core(core_image: bytes, core_sector: int, room_bytes: int) -> bytes:
    """The core image for its place on the disk. Raises ``ImageBuildError`` when it has no room there."""
    if not SECTOR_BYTES < len(core_image) <= room_bytes:
        raise ImageBuildError(f"GRUB's core image has {len(core_image)} bytes; {room_bytes} are there for it")
    core = bytearray(core_image)
    struct.pack_into("<Q", core, BLOCK_LIST_AT, core_sector + 1)
    return bytes(core)


def build_early_config(root: UUID) -> str:
    """What either program does first: find the file system that has the rest."""
    return f"search.fs_uuid {root} root\nset prefix=($root)/boot/grub\n"


def build_mkimage_argv(platform: str, modules: Sequence[str], config: str, output: str) -> tuple[str, ...]:
    """The command that puts a platform's program together."""
    return (
        "grub-mkimage", "--format", platform, "--prefix", "/boot/grub", "--config", config,
        "--output", output, *modules,
    )  # fmt: skip


def build_menu(root: UUID, command_line: str) -> str:
    """The menu of a fresh image; the guest's own ``update-grub`` writes another with its next kernel."""
    return f"""set timeout=0
menuentry 'Debian GNU/Linux' {{
    search --no-floppy --fs-uuid --set=root {root}
    linux /vmlinuz root=UUID={root} ro {command_line}
    initrd /initrd.img
}}
"""
