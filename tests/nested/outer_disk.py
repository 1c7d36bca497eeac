"""The outer guest's disk: a Debian or Ubuntu with QEMU, which can be a KVM host; built once and cached.

``CACHE/nested/KEY/`` holds ``root.ext4``, ``vmlinuz``, ``initrd.img`` and ``python-version``. The key is made
of the release, the packages and this recipe, so that a change of any of them builds anew. A folder appears
under its key only when it is complete. The project itself is not in it: see ``payload.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.nested.ext4_disk import build_ext4_disk

from duovisor import process
from duovisor.controlling.images import initramfs
from duovisor.controlling.images.kernel import find_unpacked_kernel
from duovisor.controlling.images.modules import resolve_modules

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

IN_GUEST = Path(__file__).parent / "in_guest"
OVERRIDE = "DUOVISOR_NESTED_SUITE"  # another release of the same distribution, for trials by hand
BUILD_TIMEOUT_S = 600.0
SPARE_BYTES = 256 << 20
_BUILDING = ".building-"

# what the README tells users to install, and what makes a bootable system of it
_PACKAGES = (
    "systemd-sysv", "udev", "kmod", "iproute2", "busybox-static",
    "python3", "qemu-system-x86", "bubblewrap", "passt", "util-linux",
)  # fmt: skip
_KERNELS = {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"}
_COMPONENTS = {"debian": "main", "ubuntu": "main,universe"}
_BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")


@dataclass(frozen=True)
class Release:
    """A release of a distribution: ``debian`` and ``bookworm``."""

    distribution: str
    suite: str


@dataclass(frozen=True)
class OuterDisk:
    """The files of an outer guest; ``python_version`` is (3, 11) for Debian 12."""

    disk: Path
    kernel: Path
    initrd: Path
    python_version: tuple[int, int]


def parse_release(os_release: str, environ: Mapping[str, str]) -> Release | None:
    """The host's release from the text of ``/etc/os-release``; None where this recipe does not fit."""
    fields = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    values = {name: value.strip('"') for name, value in fields.items()}
    suite = environ.get(OVERRIDE) or values.get("VERSION_CODENAME", "")
    if values.get("ID") not in _KERNELS or not suite:
        return None
    return Release(values["ID"], suite)


def build_outer_disk(cache_dir: Path, release: Release) -> OuterDisk:
    """The outer guest of this release, built if it is not in the cache (about a minute).

    Raises ``ProcessError`` or ``ImageBuildError``; nothing half-made is left behind.
    """
    folder = cache_dir / "nested" / compute_key(release)
    if not folder.is_dir():
        with _locked(folder.parent):
            if not folder.is_dir():
                _build(folder, release)
    major, minor = (folder / "python-version").read_text().split(".")
    return OuterDisk(
        folder / "root.ext4", folder / "vmlinuz", folder / "initrd.img", (int(major), int(minor))
    )


def compute_key(release: Release) -> str:
    """The name of the cache entry: changes with all that goes into the disk, but for newer packages."""
    digest = hashlib.sha256(f"{release} {_PACKAGES} {_KERNELS} {_LEFT_OUT}".encode())
    for path in (Path(__file__), IN_GUEST / "init", IN_GUEST / "nested.service"):
        digest.update(path.read_bytes())
    return f"{release.suite}-{digest.hexdigest()[:16]}"


def build_mmdebstrap_argv(release: Release, root: Path) -> tuple[str, ...]:
    """The command line that installs the outer guest into the folder ``root``; pure."""
    packages = (_KERNELS[release.distribution], *_PACKAGES)
    return (
        # a mount and PID namespace of its own: if we are killed, neither a mount nor a process is left
        "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
        "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--dpkgopt=force-unsafe-io",
        f"--components={_COMPONENTS[release.distribution]}",
        *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT),
        f"--include={','.join(packages)}",
        release.suite, str(root),
    )  # fmt: skip


def build_boot_archive(busybox: bytes, modules: Path) -> bytes:
    """The initramfs that finds the disk and leaves the rest to the system on it."""
    loaded = resolve_modules(modules, _BOOT_MODULES)
    order = "".join(f"{module.name}.ko\n" for module in loaded).encode()
    return initramfs.build_archive([
        *(initramfs.build_folder(name) for name in ("bin", "dev", "modules", "root")),
        initramfs.build_character_device("dev/console", 5, 1),
        initramfs.build_file("bin/busybox", busybox, executable=True),
        initramfs.build_file("init", (IN_GUEST / "init").read_bytes(), executable=True),
        *(initramfs.build_file(f"modules/{module.name}.ko", module.data) for module in loaded),
        initramfs.build_file("modules/order", order),
    ])  # fmt: skip


def _build(folder: Path, release: Release) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=folder.parent))
    try:
        root, ready = scratch / "root", scratch / "ready"
        ready.mkdir()
        process.run(
            build_mmdebstrap_argv(release, root),
            timeout_s=BUILD_TIMEOUT_S,
            env={**os.environ, "INITRD": "No"},  # the kernel package would make one of its own in 10 s
        )
        _finish(root, ready)
        ready.rename(folder)
    finally:
        shutil.rmtree(scratch)
    for old in folder.parent.iterdir():
        if old.is_dir() and old.name.startswith(f"{release.suite}-") and old != folder:
            shutil.rmtree(old)


def _finish(root: Path, ready: Path) -> None:
    """Make the four files from an installed system."""
    kernel = find_unpacked_kernel(root, source="the outer guest")
    busybox = (root / "usr/bin/busybox").read_bytes()
    (ready / "initrd.img").write_bytes(build_boot_archive(busybox, kernel.modules))
    shutil.copyfile(kernel.image, ready / "vmlinuz")
    version = os.readlink(root / "usr/bin/python3").removeprefix("python")
    (ready / "python-version").write_text(version)
    shutil.copyfile(IN_GUEST / "nested.service", root / "etc/systemd/system/nested.service")
    (root / "payload").mkdir()
    build_ext4_disk(ready / "root.ext4", root, spare_bytes=SPARE_BYTES)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the cache and clear away what a killed build left."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in folder.glob(f"{_BUILDING}*"):
            shutil.rmtree(path)
        yield
