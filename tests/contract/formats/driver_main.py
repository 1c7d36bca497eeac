"""The formatted device as a process: ``driver_main.py CHANNEL CONTROL REPLAY FORMAT WORDS...``.

FORMAT may be -1. Each packet on CONTROL brings a new connection to the format process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from duovisor.channel.backend import Backend
from duovisor.controlling.drivers.formatted import create_formatted_device
from duovisor.controlling.drivers.options import parse_block_options


def main() -> None:
    channel, control, replay, connection = map(int, sys.argv[1:5])
    descriptors = {"replay": replay} | ({"format": connection} if connection >= 0 else {})
    device = create_formatted_device(parse_block_options(sys.argv[5:]), descriptors)
    backend = Backend(socket.socket(fileno=channel), device, report=lambda line: print(line, file=sys.stderr))
    orders = socket.socket(fileno=control)
    orders.setblocking(False)

    def take() -> None:
        data, received, _, _ = socket.recv_fds(orders, 16, 1)
        if data:
            device.attach("format", received[0])
        else:
            backend.unwatch(control)

    backend.watch(control, take)
    signal.signal(signal.SIGTERM, lambda *_: backend.stop())
    backend.run()
    os._exit(0)


main()
