"""Connecting to a channel whose socket the VMM bound: the folder is the VMM's, so nothing in it is trusted.

A guest that took its VMM over could put a link there, to lead our connection to another service of the host.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from duovisor.process import Process

BOUND_TIMEOUT_S = 20.0
LISTEN_TIMEOUT_S = 0.2  # from bind to listen QEMU takes microseconds
POLL_S = 0.002


def connect_channel(path: Path) -> socket.socket:
    """A connection to the socket that is under this name itself. Raises ``OSError``."""
    named = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not stat.S_ISSOCK(os.fstat(named).st_mode):
            raise FileNotFoundError(f"{path} is no socket")
        deadline = time.monotonic() + LISTEN_TIMEOUT_S
        while True:
            try:
                channel.connect(f"/proc/self/fd/{named}")
                return channel
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S / 10)
    except BaseException:
        channel.close()
        raise
    finally:
        os.close(named)


async def wait_channels(paths: Iterable[Path], vmm: Process) -> None:
    """Wait until the VMM has bound these sockets, or has ended, or the time is over: connecting tells."""
    ended = asyncio.create_task(vmm.wait())
    deadline = time.monotonic() + BOUND_TIMEOUT_S
    try:
        for path in paths:
            while not path.is_socket() and time.monotonic() < deadline:
                done, _ = await asyncio.wait({ended}, timeout=POLL_S)
                if done:
                    return
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
