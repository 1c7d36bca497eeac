"""The format process of a disk: qemu-storage-daemon in a sandbox, behind the disk's storage driver.

It sees its own program and libraries, the image's files one by one (the top one writable, those below it for
reading only), and one listening socket. It has the VM's own unprivileged uid; of root's powers it keeps the
one to open files whatever their mode says, for which there are only these. It takes QEMU's locks on the
files itself, so that two of it can never have the same image open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.channel.errors import ChannelError
from duovisor.controlling.drivers.format_link import ask_capacity
from duovisor.controlling.drivers.replay_memory import create_replay
from duovisor.controlling.errors import HostLacksError, PartitionError
from duovisor.controlling.formats.vhdx_log import mend_image
from duovisor.hypervisor.build import USR_MERGED
from duovisor.hypervisor.qemu.images import ImageFile, build_image_nodes
from duovisor.sandbox import ResourceLimits, Sandbox, SandboxTools, build_sandbox_argv, uid_of
from duovisor.spec.vm import DiskFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.spec.vm import DiskSpec

ROLE = "format process"
NODE = "disk"
LIMITS = ResourceLimits(private_mib=1024, threads=512, descriptors=1024)
LISTEN_BACKLOG = 4
START_S = 10.0
_OPTION = re.compile(r"qemu-storage-daemon: --\w+ \{.*?\}: ")  # in front of each message, a screen long


@dataclass(frozen=True)
class FormatEnvironment:
    """What the format processes of one VM have in common; ``libraries`` is the host's folder of them."""

    vm_name: str
    run_dir: Path
    tools: SandboxTools
    storage_daemon: Path
    libraries: Path


class FormatProcess:
    """A format process, and the socket on which it waits for its disk's driver."""

    def __init__(self, started: process.Process, path: Path) -> None:
        self.process = started
        self.path = path

    def connect(self) -> socket.socket:
        """A connection for the drivers of the disk: the active one and its spares share it.

        The process need not be ready yet. Raises ``PartitionError`` when nobody listens.
        """
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.connect(str(self.path))
        except OSError as error:
            connected.close()
            raise PartitionError(f"the {ROLE} of {self.path.stem} cannot be reached: {error}") from error
        return connected

    async def read_size(self, timeout_s: float = START_S) -> int:
        """The disk's size in bytes, as soon as the image is open; no driver may be connected.

        Raises ``PartitionError`` with what the process said when it cannot open the image.
        """
        try:
            return await asyncio.to_thread(ask_capacity, self.connect(), timeout_s)
        except ChannelError as error:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), 1.0)  # its last words, not its first
            said = _OPTION.sub("", self.process.last_words()) or error.message
            raise PartitionError(f"the {ROLE} cannot open its image: {said}") from error

    def remove(self) -> None:
        """Remove the socket; the process is ended by its owner."""
        self.path.unlink(missing_ok=True)


def create_disk_replay(disk: DiskSpec) -> int:
    """The memory that outlives a disk's drivers and format processes; the caller closes the descriptor.

    QEMU may write an older header of a VDI image over a newer one when two writes allocate blocks at once,
    and would then, after a kill, give the same block away twice: that format gets one change at a time.
    """
    return create_replay(one_change=disk.format is DiskFormat.VDI)


def start_format_process(
    environment: FormatEnvironment,
    name: str,
    disk: DiskSpec,
    chain: Sequence[ImageFile],
    record: process.Record | None = None,
) -> FormatProcess:
    """Start the format process of the disk ``name``, for the first time or after one that has ended.

    Returns at once. ``record`` is told of the process before its program begins. Raises ``DiskLockedError``
    or ``ProgramNotFoundError``.
    """
    if disk.format is DiskFormat.VHDX and not disk.read_only:
        mend_image(chain[0].path)
    path = socket_path(environment.run_dir, name)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(LISTEN_BACKLOG)
        started = process.start(
            build_sandbox_argv(
                build_format_sandbox(environment, disk, chain),
                environment.tools,
                build_format_argv(environment.storage_daemon, disk, chain, listener.fileno()),
            ),
            role=ROLE,
            log=environment.run_dir / f"{name}.format.log",
            pass_fds=(listener.fileno(),),
            sandboxed=True,
            record=record,
        )
    return FormatProcess(started, path)


def adopt_format_process(adopted: process.Process, run_dir: Path, name: str) -> FormatProcess:
    """A format process that another owner started."""
    return FormatProcess(adopted, socket_path(run_dir, name))


def socket_path(run_dir: Path, name: str) -> Path:
    """Where the format process of the disk ``name`` listens."""
    return run_dir / f"{name}.format.sock"


def build_format_argv(
    storage_daemon: Path, disk: DiskSpec, chain: Sequence[ImageFile], listener: int
) -> tuple[str, ...]:
    """The command line inside the sandbox; ``listener`` is the inherited socket. Pure."""
    inside = [
        image if image.is_block_device else ImageFile(_inside(depth), image.format)
        for depth, image in enumerate(chain)
    ]
    # threads, not io_uring: a request is over for certain when all threads of the process are
    nodes = build_image_nodes(NODE, inside, cache=disk.cache, read_only=disk.read_only, aio="threads")
    export = {
        "type": "vhost-user-blk",
        "id": NODE,
        "node-name": NODE,
        "writable": not disk.read_only,
        "addr": {"type": "fd", "str": str(listener)},
    }
    options = [word for node in nodes for word in ("--blockdev", json.dumps(node))]
    return (str(storage_daemon), *options, "--export", json.dumps(export))


def build_format_sandbox(
    environment: FormatEnvironment, disk: DiskSpec, chain: Sequence[ImageFile]
) -> Sandbox:
    """What the format process may see; pure."""
    program = environment.storage_daemon
    read_only = [(path, str(path)) for path in (Path("/etc/ld.so.cache"), environment.libraries, program)]
    writable: list[tuple[Path, str]] = []
    for depth, image in enumerate(chain):
        if not image.is_block_device:
            target = writable if depth == 0 and not disk.read_only else read_only
            target.append((Path(os.path.realpath(image.path)), _inside(depth)))
    return Sandbox(
        uid=uid_of(environment.vm_name),
        read_only=tuple(read_only),
        writable=tuple(writable),
        devices=tuple(image.path for image in chain if image.is_block_device),
        links=USR_MERGED,
        if_there=("/usr/lib64",),
        limits=LIMITS,
        capabilities=("dac_override",),
    )


def find_storage_daemon(found: Path | None) -> Path:
    """The program, as the host's capabilities found it. Raises ``HostLacksError``."""
    if found is None:
        raise HostLacksError(
            "qemu-storage-daemon is not on this host, and only it reads formats other than raw for a driver",
            remedy="apt install qemu-system-x86 qemu-utils; or use the monolithic design",
        )
    return Path(os.path.realpath(found))


def _inside(depth: int) -> str:
    return f"/image{depth}"
