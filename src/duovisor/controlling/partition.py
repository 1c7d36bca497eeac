"""Driver partitions: sandboxed processes of the controlling layer, each with one driver for one device.

A partition's authority is the descriptors it inherits: its image and its end of the channel. It sees no path
of the host but Python's own files, has no network, no capability and an unprivileged uid.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.python_runtime import SANDBOX_PACKAGE, interpreter
from duovisor.hypervisor.build import USR_MERGED
from duovisor.sandbox import Sandbox, SandboxTools, build_sandbox_argv, uid_of
from duovisor.spec.vm import CacheMode

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.disk_files import OpenDisk
    from duovisor.spec.vm import DiskSpec

# How long the driver looks at an idle queue before it sleeps; QEMU's iothreads do so too (poll-max-ns).
# docs/performance.md has what 0, 50 and 200 came to.
POLL_US = 50

STORAGE_MAIN = "from duovisor.controlling.drivers.block import main; main()"


@dataclass(frozen=True)
class PartitionEnvironment:
    """What every partition of one VM has in common."""

    vm_name: str
    run_dir: Path
    tools: SandboxTools
    python_files: tuple[tuple[Path, str], ...]


def build_partition_sandbox(environment: PartitionEnvironment) -> Sandbox:
    """The sandbox of a driver partition: Python's files and nothing else; pure."""
    return Sandbox(
        uid=uid_of(environment.vm_name),
        read_only=environment.python_files,
        links=USR_MERGED,
        environment=(("PYTHONPATH", SANDBOX_PACKAGE), ("PYTHONUNBUFFERED", "1")),
    )


def build_storage_argv(disk: DiskSpec, channel: int, image: int) -> tuple[str, ...]:
    """The command line of the storage driver, given the descriptors it inherits; pure."""
    options = ["--channel-fd", str(channel), "--image-fd", str(image), "--poll-us", str(POLL_US)]
    options += ["--queues", str(disk.queues), "--queue-size", str(disk.queue_size)]
    if disk.serial:
        options += ["--serial", disk.serial]
    if disk.read_only:
        options.append("--read-only")
    if disk.cache is CacheMode.NONE:
        options.append("--direct")
    # -S -s: no site-packages; -B: the sandbox has nowhere to write compiled code to
    return (str(interpreter()), "-S", "-s", "-B", "-c", STORAGE_MAIN, *options)


def start_storage_partition(
    environment: PartitionEnvironment,
    name: str,
    disk: DiskSpec,
    opened: OpenDisk,
    record: process.Record | None = None,
) -> process.Process:
    """Start the storage driver of one disk on the channel ``name``, whose socket listens already.

    ``record`` is told of the process before the driver begins. Raises ``PartitionError`` when nobody
    listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        try:
            channel.connect(str(environment.run_dir / f"{name}.sock"))
        except OSError as error:
            raise PartitionError(f"channel {name} of {environment.vm_name} refuses: {error}") from error
        descriptors = (channel.fileno(), opened.descriptor)
        return process.start(
            build_sandbox_argv(
                build_partition_sandbox(environment),
                environment.tools,
                build_storage_argv(disk, *descriptors),
            ),
            role="storage driver",
            log=environment.run_dir / f"{name}.log",
            pass_fds=descriptors,
            sandboxed=True,
            record=record,
        )
