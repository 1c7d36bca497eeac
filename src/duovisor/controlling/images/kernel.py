"""Finds a kernel for guests: the distribution's package for virtual machines, else the host's own.

The package is downloaded and unpacked, never installed: ``apt-get download`` needs no root and changes
nothing on the host.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from duovisor import process
from duovisor.controlling.images.errors import ImageBuildError
from duovisor.process import ProcessError

if TYPE_CHECKING:
    from collections.abc import Callable

META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")  # Debian's, Ubuntu's
_PART = re.compile(r"^linux-(?:image|modules)-\d[\w.+-]*$")
_DOWNLOAD_TIMEOUT_S = 600.0


class Kernel(NamedTuple):
    """A kernel's image, the folder of its modules, its release, and where it came from, for people."""

    image: Path
    modules: Path
    release: str
    source: str


def find_kernel(scratch: Path, progress: Callable[[str], None], *, root: Path = Path("/")) -> Kernel:
    """A kernel with its modules, unpacked under ``scratch`` or the host's own under ``root``.

    Raises ``ImageBuildError`` when there is neither.
    """
    try:
        return download_kernel(scratch, progress)
    except (ImageBuildError, ProcessError) as error:
        refused = error.message
    progress(f"no kernel package: {refused}")
    release = os.uname().release
    progress(f"taking the host's own kernel {release}")
    try:
        return find_host_kernel(release, root=root)
    except ImageBuildError as error:
        raise ImageBuildError(
            f"no kernel for the guest: {refused}; {error.message}",
            remedy="apt-get update, then again; or make the host's kernel readable",
        ) from None


def find_host_kernel(release: str, *, root: Path = Path("/")) -> Kernel:
    """The host's own kernel; raises ``ImageBuildError`` when a part is missing or may not be read."""
    image = root / "boot" / f"vmlinuz-{release}"
    modules = root / "lib/modules" / release
    if not modules.is_dir():
        raise ImageBuildError(f"{modules} does not exist")
    for candidate in (image, modules / "vmlinuz"):
        if os.access(candidate, os.R_OK):
            return Kernel(candidate, modules, release, "the host's own kernel")
    raise ImageBuildError(f"{image} " + ("may be read by root only" if image.exists() else "does not exist"))


def download_kernel(scratch: Path, progress: Callable[[str], None]) -> Kernel:
    """The distribution's kernel for virtual machines, unpacked under ``scratch``.

    Where that fails and this is root, once more with fresh package lists: a distribution removes a kernel
    from its servers soon after the next one is out. Raises ``ProcessError`` (no apt, no network) or
    ``ImageBuildError`` (no such package).
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ImageBuildError("apt-get is not there")
    try:
        return _download_kernel(scratch, progress)
    except (ImageBuildError, ProcessError) as error:
        if os.geteuid() != 0:
            raise
        progress(f"refreshing the package lists: {error.message}")
    with contextlib.suppress(ProcessError):  # another repository that is out of order is not our concern
        process.run(["apt-get", "-qq", "update"], timeout_s=_DOWNLOAD_TIMEOUT_S)
    return _download_kernel(scratch, progress)


def _download_kernel(scratch: Path, progress: Callable[[str], None]) -> Kernel:
    meta = _find_meta_package()
    parts = _find_parts(meta)
    for part in parts:
        progress(f"downloading {part}")
        # apt drops to a user of its own for downloads, who may not write to our folder
        process.run(
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", part],
            cwd=scratch, timeout_s=_DOWNLOAD_TIMEOUT_S,
        )  # fmt: skip
    unpacked = scratch / "kernel"
    for package in sorted(scratch.glob("*.deb")):
        progress(f"unpacking {package.name}")
        process.run(["dpkg-deb", "-x", str(package), str(unpacked)], timeout_s=120)
        package.unlink()
    return find_unpacked_kernel(unpacked, source=f"package {parts[0]}")


def find_unpacked_kernel(folder: Path, *, source: str) -> Kernel:
    """The kernel in a folder that looks like ``/``; modules are in ``/lib`` or, merged, in ``/usr/lib``."""
    images = sorted(folder.glob("boot/vmlinuz-*"))
    if not images:
        raise ImageBuildError(f"{source} has no boot/vmlinuz")
    release = images[-1].name.removeprefix("vmlinuz-")
    for modules in (folder / "lib/modules" / release, folder / "usr/lib/modules" / release):
        if modules.is_dir():
            return Kernel(images[-1], modules, release, source)
    raise ImageBuildError(f"{source} has no modules for {release}")


def parse_kernel_parts(control: str) -> list[str]:
    """The packages with the kernel and its modules that a package's control data depends on."""
    for line in control.splitlines():
        field, _, value = line.partition(":")
        if field == "Depends":
            names = [re.split(r"[\s(|:]", part.strip(), maxsplit=1)[0] for part in value.split(",")]
            return [name for name in names if _PART.match(name)]
    return []


def _find_meta_package() -> str:
    for name in META_PACKAGES:
        try:
            process.run(["apt-cache", "show", "--no-all-versions", name])
        except process.ProgramFailedError:
            continue
        return name
    raise ImageBuildError(f"apt knows none of {', '.join(META_PACKAGES)}", remedy="apt-get update")


def _find_parts(meta: str) -> list[str]:
    """Follow the dependencies from the meta package; the kernel's own package comes first."""
    found: list[str] = []
    waiting = [meta]
    while waiting:
        control = process.run(["apt-cache", "show", "--no-all-versions", waiting.pop()])
        new = [part for part in parse_kernel_parts(control) if part not in found]
        found += new
        waiting += new
    if not found:
        raise ImageBuildError(f"package {meta} depends on no kernel")
    return found
