"""QEMU as its users write it by hand, for comparison: the probe guest with nothing of ours around it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.probe_vm import BOOT_TIMEOUT_S, GUEST_MEMORY_MIB, SCRATCH_SERIAL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.hardware.capabilities import HostCapabilities

SOCKET_TIMEOUT_S = 10.0
_BLOCK_DEVICE = f"drive=disk,serial={SCRATCH_SERIAL}"
_VHOST_DEVICE = "vhost-user-blk-pci,chardev=vhost,queue-size=256"  # its 128 are half of the others'
_IOTHREAD = ("-object", "iothread,id=io")
_DAEMON = ("qemu-storage-daemon",)


class Backend(NamedTuple):
    """A way to give QEMU something: options of its own, and a process that must serve before."""

    name: str
    options: tuple[str, ...]
    server: tuple[str, ...] = ()
    address: Path | None = None


def build_inside(disk: Path, _: Path) -> Backend:
    """The disk inside QEMU, in a thread of its own; pure."""
    device = f"virtio-blk-pci,iothread=io,{_BLOCK_DEVICE}"
    return Backend("qemu", (*_IOTHREAD, *_build_nodes(disk), "-device", device))


def build_vhost_user(disk: Path, folder: Path) -> Backend:
    """Behind ``qemu-storage-daemon``, over a channel like ours; pure."""
    address = folder / "vhost.sock"
    options = ("-chardev", f"socket,id=vhost,path={address}", "-device", _VHOST_DEVICE)
    export = f"vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path={address}"
    return Backend(
        "qsd_vhost_user", options, (*_DAEMON, *_build_nodes(disk, "-"), "--export", export), address
    )


def build_nbd(disk: Path, folder: Path) -> Backend:
    """Behind ``qemu-storage-daemon``, over NBD; pure."""
    address = folder / "nbd.sock"
    node = f"driver=nbd,node-name=disk,server.type=unix,server.path={address},export=disk"
    options = (*_IOTHREAD, "-blockdev", node, "-device", f"virtio-blk-pci,iothread=io,{_BLOCK_DEVICE}")
    server = ("--nbd-server", f"addr.type=unix,addr.path={address}")
    export = ("--export", "nbd,id=disk,node-name=disk,writable=on")
    return Backend("qsd_nbd", options, (*_DAEMON, *_build_nodes(disk, "-"), *server, *export), address)


DISK_BACKENDS = (build_inside, build_vhost_user, build_nbd)


def _build_nodes(disk: Path, dash: str = "") -> tuple[str, ...]:
    # as our default: the host's page cache; threads are fastest at depth 1, as fast as io_uring for writes
    file = f"driver=file,node-name=file,filename={disk},cache.direct=off,cache.no-flush=off,aio=threads"
    return (f"{dash}-blockdev", file, f"{dash}-blockdev", "driver=raw,node-name=disk,file=file")


def build_argv(
    image: Image, capabilities: HostCapabilities, folder: Path, options: Sequence[str]
) -> list[str]:
    """A short command line with what matters for speed; pure. ``options`` come before the tools' disk."""
    kvm = capabilities.kvm.state == "usable"
    accelerator, model = ("kvm", "host") if kvm else ("tcg,thread=multi", "max,la57=off")
    processor = ("-accel", accelerator, "-cpu", model)
    memory = f"memory-backend-memfd,id=ram,size={GUEST_MEMORY_MIB}M,share=on"
    port = f"socket,id=port,path={folder}/port.sock,server=on,wait=off"
    kernel = ["-kernel", str(image.kernel_path), "-initrd", str(image.initrd_path)]
    programs = f"file={image.disk_paths[0]},if=none,id=tools,format=raw,read-only=on"
    return [
        "qemu-system-x86_64",
        *("-M", "q35", *processor, "-m", str(GUEST_MEMORY_MIB), "-object", memory),
        *("-machine", "memory-backend=ram", "-nodefaults", "-display", "none", "-vga", "none"),
        *(*kernel, "-append", image.command_line, "-serial", f"file:{folder}/console.log"),
        *options,
        *("-drive", programs, "-device", f"virtio-blk-pci,drive=tools,serial={image.disks[0].serial}"),
        *("-device", "virtio-serial-pci", "-chardev", port),
        *("-device", f"virtserialport,chardev=port,name={PORT_NAME}"),
    ]  # fmt: skip


@contextmanager
def running(argv: Sequence[str], address: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block; entered when ``address``, a socket, is there."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SOCKET_TIMEOUT_S
        while address is not None and not address.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{os.path.basename(argv[0])} does not serve {address}")
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def boot_bare(
    image: Image, capabilities: HostCapabilities, folder: Path, backend: Backend, options: Sequence[str] = ()
) -> AsyncIterator[ProbeClient]:
    """A guest that has booted on a QEMU of its own; ``options`` follow the backend's."""
    argv = build_argv(image, capabilities, folder, [*backend.options, *options])
    with contextlib.ExitStack() as stack:
        if backend.server:
            stack.enter_context(running(backend.server, backend.address))
        stack.enter_context(running(argv, folder / "port.sock"))
        async with connect_probe(folder / "port.sock") as guest:
            await guest.wait_booted(BOOT_TIMEOUT_S)
            yield guest
