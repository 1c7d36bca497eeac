"""The storage driver: as a device for a partition, and as a process of its own for benchmarks and tests.

The latter is started as ``python -S -s -B -c 'from duovisor.controlling.drivers.block import main;
main()'`` with the options of ``options``. Exit status: 0 after an orderly end (front end closed, or
SIGTERM), 1 after an error, which is the last line on standard error.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from duovisor.channel.backend import Backend
from duovisor.controlling.drivers.block_device import BlockDevice
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.image import open_image
from duovisor.controlling.drivers.options import parse_block_options, parse_standalone_options
from duovisor.errors import DuovisorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.controlling.drivers.options import BlockOptions

# How long a thread that finished its I/O waits for the interpreter; Python's default is 5 ms.
SWITCH_INTERVAL_S = 0.0002


def create_device(words: list[str], descriptors: dict[str, int]) -> BlockDevice:
    """The storage device of a partition: its options, and its image behind a descriptor.

    Takes over the descriptors. Raises ``DriverError``.
    """
    options = parse_block_options(words)
    if "image" not in descriptors:
        raise DriverError("the descriptor image is missing")
    return _open_device(options, descriptors["image"])


def _open_device(options: BlockOptions, image_fd: int) -> BlockDevice:
    image = open_image(image_fd, read_only=options.read_only, direct=options.direct)
    return BlockDevice(
        image,
        serial=options.serial,
        queues=options.queues,
        queue_size=options.queue_size,
        threads=options.threads or (8 if image.direct else 4),
        block_bytes=options.block_bytes,
    )


def serve(arguments: Sequence[str]) -> None:
    """Serve one disk without a partition; returns at the orderly end, raises ``DuovisorError`` otherwise."""
    options = parse_standalone_options(arguments)
    device = _open_device(options, options.image_fd)
    try:
        channel = socket.socket(fileno=options.channel_fd)
    except OSError as error:
        raise DriverError(f"descriptor {options.channel_fd} is no socket: {error.strerror}") from error
    backend = Backend(channel, device, poll_us=options.poll_us, report=say)
    signal.signal(signal.SIGTERM, lambda *_: backend.stop())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is for the command, not for us
    try:
        backend.run()
    finally:
        device.close()


def say(line: str) -> None:
    """One line on standard error."""
    os.write(2, f"storage driver: {line}\n".encode())


def main() -> None:
    """Run the driver with this process's arguments and leave with its exit status."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        serve(sys.argv[1:])
    except DuovisorError as error:
        say(str(error))
        sys.exit(1)
