"""The recipe of the probe guest: the distribution's kernel, busybox, and a disk with fio.

It boots in seconds without firmware or boot loader, tells the host over a virtio-serial port when it is up,
and runs the host's commands; docs/images.md describes it for users.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.images import initramfs, store
from duovisor.controlling.images.errors import ImageBrokenError, ImageBuildError, ImageNotFoundError
from duovisor.controlling.images.image import Image, ImageDisk
from duovisor.controlling.images.kernel import find_kernel
from duovisor.controlling.images.modules import Module, resolve_modules
from duovisor.controlling.images.tools_disk import build_tools_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duovisor.controlling.images.kernel import Kernel
    from duovisor.directories import Directories

NAME = "probe"
PORT_NAME = "org.duovisor.probe"
TOOLS_SERIAL = "duovisor-tools"
COMMAND_LINE = "console=ttyS0 quiet cryptomgr.notests"  # the self-tests take a third of a second under TCG

_GUEST = Path(__file__).parent / "guest"
_PROGRAMS = ("serve-host", "on-power-button", "dhcp-event", "fio")
_MODULES = (
    "virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng", "ext4", "button", "evdev",
)  # fmt: skip
_APPLETS = frozenset((
    "sh", "mount", "mkdir", "insmod", "ip", "udhcpc", "setsid", "sleep", "base64", "dd", "sync", "poweroff",
    "reboot", "echo", "printf",
))  # fmt: skip
_FOLDERS = ("bin", "dev", "etc", "modules", "proc", "run", "sys", "tmp", "tools")


def compute_recipe() -> str:
    """A fingerprint of what this module itself puts into the image; another one asks for a new build."""
    digest = hashlib.sha256(f"{COMMAND_LINE} {_MODULES}".encode())
    for path in sorted(_GUEST.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build_probe_image(
    directories: Directories, progress: Callable[[str], None], *, force: bool = False
) -> Image:
    """The probe image, built if it is missing, broken or of another recipe, or if ``force`` says so.

    Raises ``ImageBuildError`` or ``ProcessError``; nothing half-made is left behind.
    """
    if not force and (image := find_probe_image(directories)):
        return image
    with store.lock(directories, on_wait=lambda: progress("waiting for another build to end")):
        if not force and (image := find_probe_image(directories)):
            return image
        with (
            store.start_scratch(directories) as scratch,
            store.start_folder(NAME, directories) as folder,
        ):
            _build(folder, scratch, progress)
    return store.load_image(NAME, directories)


def build_initramfs(busybox: bytes, applets: Sequence[str], modules: Sequence[Module]) -> bytes:
    """The archive that the guest's kernel unpacks into memory and starts ``/init`` from."""
    order = "".join(f"{module.name}.ko\n" for module in modules)
    entries = [initramfs.build_folder(folder) for folder in _FOLDERS]
    entries += [
        initramfs.build_character_device("dev/console", 5, 1),
        initramfs.build_file("bin/busybox", busybox, executable=True),
        *(initramfs.build_link(f"bin/{name}", "busybox") for name in applets if name != "busybox"),
        *(initramfs.build_file(f"bin/{name}", _read_guest(name), executable=True) for name in _PROGRAMS),
        initramfs.build_file("etc/profile", _read_guest("profile")),
        *(initramfs.build_file(f"modules/{module.name}.ko", module.data) for module in modules),
        initramfs.build_file("modules/order", order.encode()),
        initramfs.build_file("init", _read_guest("init"), executable=True),
    ]
    return initramfs.build_archive(entries)


def _build(folder: Path, scratch: Path, progress: Callable[[str], None]) -> None:
    busybox, applets = _find_busybox()
    kernel = find_kernel(scratch, progress)
    modules = resolve_modules(kernel.modules, _MODULES)
    progress(f"writing the initramfs: busybox and {len(modules)} modules")
    shutil.copyfile(kernel.image, folder / "vmlinuz")
    (folder / "initrd.img").write_bytes(build_initramfs(busybox, applets, modules))
    progress("writing the tools disk with fio")
    build_tools_disk(folder / "tools.raw", scratch)
    progress("writing it all to the disk")
    store.write_description(_describe(folder, kernel))


def _describe(folder: Path, kernel: Kernel) -> Image:
    files = ("vmlinuz", "initrd.img", "tools.raw")
    return Image(
        name=NAME,
        description="small guest that measures: Linux, busybox, fio",
        kernel=files[0],
        initrd=files[1],
        command_line=COMMAND_LINE,
        disks=(ImageDisk(file=files[2], read_only=True, serial=TOOLS_SERIAL),),
        kernel_version=kernel.release,
        source=kernel.source,
        recipe=compute_recipe(),
        built_at=datetime.now(UTC).replace(microsecond=0),
        sha256={name: store.compute_sha256(folder / name) for name in files},
        folder=folder,
    )


def find_probe_image(directories: Directories) -> Image | None:
    """The probe image if it is there, whole, and of this recipe."""
    with contextlib.suppress(ImageNotFoundError, ImageBrokenError):
        image = store.load_image(NAME, directories)
        return image if image.recipe == compute_recipe() else None
    return None


def _find_busybox() -> tuple[bytes, list[str]]:
    """A static busybox's file and its applets; a dynamic one would not start in the guest."""
    path = shutil.which("busybox")
    remedy = "apt-get install busybox-static"
    if path is None:
        raise ImageBuildError("busybox is not installed", remedy=remedy)
    data = Path(path).read_bytes()
    if b"/ld-" in data[:4096]:  # the name of a dynamic loader, which stands near the start of an ELF file
        raise ImageBuildError(f"{path} is not a static program", remedy=remedy)
    applets = process.run([path, "--list"]).split()
    if missing := _APPLETS - set(applets):
        raise ImageBuildError(f"{path} lacks {', '.join(sorted(missing))}", remedy=remedy)
    return data, applets


def _read_guest(name: str) -> bytes:
    return (_GUEST / name).read_bytes()
