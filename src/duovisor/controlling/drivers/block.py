"""The storage driver's process: options and two descriptors in, a served disk until the front end closes.

Started in its partition as ``python -S -s -B -c 'from duovisor.controlling.drivers.block import main;
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
from duovisor.controlling.drivers.options import parse_block_options
from duovisor.errors import DuovisorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# How long a thread that finished its I/O waits for the interpreter; Python's default is 5 ms.
SWITCH_INTERVAL_S = 0.0002


def serve(arguments: Sequence[str]) -> None:
    """Serve one disk; returns at the orderly end, raises ``DuovisorError`` otherwise."""
    options = parse_block_options(arguments)
    image = open_image(options.image_fd, read_only=options.read_only, direct=options.direct)
    try:
        channel = socket.socket(fileno=options.channel_fd)
    except OSError as error:
        raise DriverError(f"descriptor {options.channel_fd} is no socket: {error.strerror}") from error
    device = BlockDevice(
        image,
        serial=options.serial,
        queues=options.queues,
        queue_size=options.queue_size,
        threads=options.threads or (8 if image.direct else 4),
        block_bytes=options.block_bytes,
    )
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
