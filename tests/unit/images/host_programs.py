"""Fakes of the host's programs that an image build calls: shell scripts in a folder that is all of PATH."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

RELEASE = "6.9.1-cloud-amd64"
APPLETS = "sh mount mkdir insmod ip udhcpc setsid sleep base64 dd sync poweroff reboot echo printf"
MODULES = {
    "virtio_ring": "",
    "virtio": "virtio_ring",
    "virtio_pci": "virtio,virtio_ring",
    "virtio_console": "virtio",
    "virtio_blk": "virtio",
    "virtio_net": "virtio",
    "virtio_rng": "virtio",
    "button": "",
    "evdev": "",
}


def write_program(folder: Path, name: str, script: str) -> None:
    """Put a shell script named ``name`` into ``folder``."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def write_kernel(root: Path, *, modules: str = "lib/modules", depends: dict[str, str] = MODULES) -> None:
    """A tree as a kernel package unpacks to; ext4 is built in."""
    (root / "boot").mkdir(parents=True)
    (root / f"boot/vmlinuz-{RELEASE}").write_bytes(b"kernel")
    tree = root / modules / RELEASE
    (tree / "kernel").mkdir(parents=True)
    (tree / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    for name, needs in depends.items():
        (tree / f"kernel/{name.replace('_', '-')}.ko").write_bytes(make_module(needs))


def make_module(depends: str, *, soft: str = "") -> bytes:
    """Bytes that hold a ``.modinfo`` section as the kernel's build writes it."""
    entry = f"softdep=pre: {soft}\0" if soft else ""
    return b"\x7fELF\1\2\3\0" + f"license=GPL\0{entry}depends={depends}\0name=x\0".encode() + b"\0\0"


def write_host(folder: Path, kernel: Path) -> None:
    """Programs of a Debian host, with ``kernel`` as the content of its kernel package."""
    folder.mkdir()
    for name in ("sh", "cp", "mkdir", "cat", "touch", "sleep", "kill"):
        (folder / name).symlink_to(shutil.which(name) or name)
    write_program(folder, "busybox", f"echo {APPLETS}")
    write_program(
        folder, "apt-cache",
        'case "$3" in linux-image-cloud-amd64) echo "Depends: linux-image-6.9.1-cloud-amd64 (= 1)" ;;'
        ' linux-image-6.9.1-cloud-amd64) echo "Depends: kmod, linux-base" ;; *) exit 100 ;; esac',
    )  # fmt: skip
    write_program(folder, "apt-get", 'case "$*" in *download*) touch linux-image-6.9.1_amd64.deb ;; esac')
    write_program(folder, "dpkg-deb", f'mkdir -p "$3" && cp -r "{kernel}"/* "$3"')
    write_program(folder, "fio", "exit 0")
    write_program(folder, "ldd", 'echo "  /lib64/ld-linux.so.2 (0x00007f0000000000)"')
    write_program(folder, "mke2fs", "exit 0")
