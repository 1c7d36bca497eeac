"""A network of the comparison's own: a namespace with one bridge on which the host has an address.

The calling thread moves into it, and with it whatever it starts; nothing of it outlives them. So the host's
own network is neither touched nor measured.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.comparison.errors import SkippedError

if TYPE_CHECKING:
    from collections.abc import Iterator

BRIDGE = "br-compare"
HOST = "10.77.0.1"
_CLONE_NEWNET = 0x40000000  # linux/sched.h


@contextmanager
def try_own_network() -> Iterator[SkippedError | None]:
    """Be in a network of its own where this host allows it; yields why not."""
    with ExitStack() as stack:
        problem = None
        try:
            check_own_network()
            stack.enter_context(_enter_own_network())
        except SkippedError as error:
            problem = error
        except (OSError, process.ProcessError) as error:
            problem = SkippedError(f"there can be no network of its own here: {error}")
        yield problem


def find_obstacle() -> SkippedError | None:
    """What keeps this process from having a network of its own, as far as a look can tell."""
    try:
        check_own_network()
    except SkippedError as error:
        return error
    return None


def check_own_network() -> None:
    """Raises ``SkippedError`` when this process cannot have a network of its own."""
    if os.geteuid() != 0:
        raise SkippedError("bridges and TAPs need root", remedy="run the comparison as root")
    if not os.path.exists("/dev/net/tun"):
        raise SkippedError("there is no /dev/net/tun", remedy="modprobe tun")
    for program, package in (("ip", "iproute2"), ("iperf3", "iperf3")):
        if shutil.which(program) is None:
            raise SkippedError(f"{program} is not installed", remedy=f"apt-get install {package}")


@contextmanager
def _enter_own_network() -> Iterator[None]:
    """Be in a fresh network namespace with the bridge. Raises ``OSError``, ``ProcessError``."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(libc.unshare(_CLONE_NEWNET))
        try:
            for words in (
                ("link", "set", "lo", "up"),
                ("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0"),
                ("addr", "add", f"{HOST}/24", "dev", BRIDGE),
                ("link", "set", BRIDGE, "up"),
            ):
                process.run(["ip", *words])
            yield
        finally:
            _check(libc.setns(before, _CLONE_NEWNET))
    finally:
        os.close(before)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
