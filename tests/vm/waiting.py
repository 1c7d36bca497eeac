"""Waiting for what a guest prints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.vm.service_host import BOOT_TIMEOUT_S

if TYPE_CHECKING:
    from tests.vm.service_host import Rest


def wait_said(rest: Rest, name: str, text: str, times: int) -> str:
    """What a VM's guest has printed, as soon as that has a text so many times."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while (said := rest.log(name)).count(text) < times:
        assert time.monotonic() < deadline, said
        time.sleep(0.2)  # nothing tells what a guest prints but a console, which this is not about
    return said
