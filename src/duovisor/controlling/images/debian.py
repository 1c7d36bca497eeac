"""The recipe of a Debian that starts from a disk: installed by mmdebstrap, set up by cloud-init.

The packages come from where this host's own do (``apt-get indextargets``), else from where mmdebstrap finds
them. Root only: a system's files have owners.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.images import grub
from duovisor.controlling.images.errors import ImageBuildError
from duovisor.controlling.images.system_disk import build_identity, build_system_disk, copy_grub_modules
from duovisor.spec.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

NAME = "debian-12"
SUITE = "bookworm"
USER = "debian"  # cloud-init's default user in Debian
SIZE_BYTES = 2048 * MIB
INSTALL_TIMEOUT_S = 1800.0
CONSOLES = "console=tty0 console=ttyS0 quiet"
DISK, KERNEL, INITRD = "disk.raw", "vmlinuz", "initrd.img"

PACKAGES = (
    "linux-image-cloud-amd64", "initramfs-tools", "zstd", "grub2-common", "grub-pc-bin", "grub-efi-amd64-bin",
    "systemd-sysv", "systemd-resolved", "udev", "kmod", "dbus",
    "cloud-init", "cloud-guest-utils", "fdisk", "qemu-guest-agent", "openssh-server", "sudo",
    "iproute2", "netbase", "ca-certificates", "iputils-ping", "less", "nano",
)  # fmt: skip
PROGRAMS = {
    "mmdebstrap": "mmdebstrap", "unshare": "util-linux", "chroot": "coreutils", "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools", "mcopy": "mtools",
}  # fmt: skip
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")

_FILES = {
    "etc/hostname": "debian\n",
    "etc/machine-id": "",  # each clone makes its own
    "etc/cloud/cloud.cfg.d/90_duovisor.cfg": """\
# the seed is a disk; nothing is asked of the network
datasource_list: [NoCloud, None]
ssh_genkeytypes: [ed25519, ecdsa]
locale: C.UTF-8
apt: {preserve_sources_list: true}
""",
    # the thin VMM's console comes after systemd has looked for consoles: its module is not in the RAM disk
    "etc/udev/rules.d/60-duovisor.rules": (
        'SUBSYSTEM=="tty", KERNEL=="hvc0", ENV{SYSTEMD_WANTS}+="serial-getty@hvc0.service"\n'
    ),
    "etc/initramfs-tools/conf.d/duovisor": "COMPRESS=zstd\n",
    "etc/default/grub.d/duovisor.cfg": f'GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX="{CONSOLES}"\n',
}
_REMOVED = (
    "etc/ssh/ssh_host_*",
    "var/lib/apt/lists/*",
    "var/cache/apt/*.bin",
    "var/log/*.log",
    "vmlinuz.old",
)


def build_debian(folder: Path, progress: Callable[[str], None]) -> None:
    """Make ``disk.raw``, ``vmlinuz`` and ``initrd.img`` in ``folder``, which also has room for the system.

    Raises ``ImageBuildError`` or ``ProcessError``.
    """
    check_host()
    root, identity = folder / "root", build_identity(NAME)
    progress(f"installing Debian {SUITE} with {len(PACKAGES)} packages and what they need")
    process.run(
        build_mmdebstrap_argv(root, read_sources()),
        timeout_s=INSTALL_TIMEOUT_S,
        env={**os.environ, "INITRD": "No"},  # made once, below
        remedy="apt-get update, then again; the last words say which package is missing",
    )
    progress("setting it up")
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for pattern in _REMOVED:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (root / "etc/fstab").write_text(f"UUID={identity.root} / ext4 rw,errors=remount-ro 0 1\n")
    # cloud-init writes what it is told for networkd, which Debian does not start by itself
    process.run(["chroot", str(root), "systemctl", "enable", "systemd-networkd"])
    progress("making its initial RAM disk")
    process.run(["chroot", str(root), "update-initramfs", "-c", "-k", "all"], timeout_s=INSTALL_TIMEOUT_S)
    _link_boot_files(root)
    copy_grub_modules(root)
    (root / "boot/grub/grub.cfg").write_text(grub.build_menu(identity.root, CONSOLES))
    shutil.copyfile(root / KERNEL, folder / KERNEL)
    shutil.copyfile(root / INITRD, folder / INITRD)
    build_system_disk(folder / DISK, root, identity, SIZE_BYTES, progress)
    shutil.rmtree(root)


def build_command_line() -> str:
    """The command line for who loads the kernel without GRUB, on any of our VMMs."""
    return f"root=UUID={build_identity(NAME).root} ro console=ttyS0 console=hvc0"


def check_host() -> None:
    """Raises ``ImageBuildError`` where this host or user cannot build."""
    if os.geteuid() != 0:
        raise ImageBuildError(
            "a Debian image can be built by root only", remedy="run duovisord as root; or duovisor image pull"
        )
    if missing := [package for program, package in PROGRAMS.items() if shutil.which(program) is None]:
        raise ImageBuildError(
            f"missing on this host: {', '.join(missing)}", remedy=f"apt-get install {' '.join(missing)}"
        )


def build_mmdebstrap_argv(root: Path, sources: Sequence[str]) -> tuple[str, ...]:
    """The command that installs the system into the folder ``root``; pure."""
    return (
        # a mount and PID namespace of its own: if we are killed, neither a mount nor a process is left
        "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
        "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--dpkgopt=force-unsafe-io",
        "--components=main", *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT),
        f"--include={','.join(PACKAGES)}", SUITE, str(root), *sources,
    )  # fmt: skip


def read_sources() -> tuple[str, ...]:
    """Where this host's own packages of the release come from; empty when it is of another one."""
    try:
        said = process.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(ORIGIN) $(COMPONENT)",
             "Created-By: Packages"],
        )  # fmt: skip
    except process.ProcessError:
        return ()
    return parse_sources(said)


def parse_sources(text: str) -> tuple[str, ...]:
    """Debian's own lines for the release, as ``sources.list`` has them; pure."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        match line.split():
            case [uri, release, "Debian", "main"] if release.split("-")[0] == SUITE:
                found[f"deb {uri} {release} main"] = None
    return tuple(found) if any(line.endswith(f" {SUITE} main") for line in found) else ()


def _link_boot_files(root: Path) -> None:
    """``/vmlinuz`` and ``/initrd.img``, which the kernel's package only keeps up where they are."""
    for name in (KERNEL, INITRD):
        files = sorted((root / "boot").glob(f"{name}-*"))
        if not files:
            raise ImageBuildError(f"the system has no /boot/{name}-*")
        link = root / name
        link.unlink(missing_ok=True)
        link.symlink_to(files[-1].relative_to(root))
