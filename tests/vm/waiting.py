"""Waiting for what a guest prints, and commands with which a guest waits for something itself."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from tests.vm.service_host import BOOT_TIMEOUT_S

if TYPE_CHECKING:
    from tests.vm.service_host import Way

# until somebody in the guest listens on a TCP port (proc(5): 0A is TCP_LISTEN)
LISTENS = "until cat /proc/net/tcp* | grep -q ':{:04X} [0-9A-F]*:0000 0A'; do sleep 0.1; done"


def find_said(said: str, text: str) -> list[int]:
    """Where what was printed has a text.

    A byte may be there several times: QEMU logs those that a full socket did not take at once, and logs them
    again when it has taken them (chardev/char.c, qemu_chr_write_buffer).
    """
    return [found.start() for found in re.finditer("".join(f"{re.escape(each)}+" for each in text), said)]


def wait_said(way: Way, name: str, text: str, times: int) -> str:
    """What a VM's guest has printed, as soon as that has a text so many times."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while len(find_said(said := way.log(name), text)) < times:
        assert time.monotonic() < deadline, said
        time.sleep(0.2)  # nothing tells what a guest prints but a console, which this is not about
    return said
