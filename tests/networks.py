"""A network namespace for tests, with a bridge on which the host has an address; nothing of it outlives them.

The calling thread moves into it, and with it whatever it starts. Other threads stay where they are.
"""

from __future__ import annotations

import ctypes
import os
import queue
import subprocess
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
WIRE, UPLINK, OUTSIDE = "wire", "192.168.250.1", "192.168.250.2"
BRIDGE = "br-test"
HOST = "10.77.0.1"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def why_no_namespace() -> str:
    """What keeps this process from making network namespaces and TAPs; empty when nothing does."""
    if os.geteuid() != 0:
        return "TAPs and bridges need root"
    return "" if os.path.exists("/dev/net/tun") else "there is no /dev/net/tun"


@contextmanager
def enter_network() -> Iterator[None]:
    """Be in a fresh network namespace with a bridge ``BRIDGE`` at ``HOST``/24. Raises ``OSError``."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(_CLONE_NEWNET))
        try:
            run_ip("link", "set", "lo", "up")
            run_ip("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
            run_ip("addr", "add", f"{HOST}/24", "dev", BRIDGE)
            run_ip("link", "set", BRIDGE, "up")
            yield
        finally:
            _check(_libc.setns(before, _CLONE_NEWNET))
    finally:
        os.close(before)


def run_ip(*words: str) -> str:
    """Run ``ip`` and return what it prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def list_ports(bridge: str = BRIDGE) -> list[str]:
    """The interfaces on a bridge."""
    lines = run_ip("-oneline", "link", "show", "master", bridge).splitlines()
    return [line.split(": ")[1].partition("@")[0] for line in lines]


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Outside:
    """Another host on the wire: a namespace of its own at the other end of ``WIRE``, and sockets in it."""

    def __init__(self) -> None:
        self._made = threading.Event()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live)
        self._thread.start()
        self._made.wait()

    def do(self, work: Callable[[], T]) -> T:
        """Call it there, and return what it returns; a socket that it makes stays there."""
        done: Future[T] = Future()

        def carry_out() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self._work.put(carry_out)
        return done.result()

    def close(self) -> None:
        """End it; the wire goes with its namespace."""
        self._work.put(None)
        self._thread.join()

    def _live(self) -> None:
        _check(_libc.unshare(_CLONE_NEWNET))
        self.namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._made.set()
        while (work := self._work.get()) is not None:
            work()
        os.close(self.namespace)


@contextmanager
def wire_outside() -> Iterator[Outside]:
    """Another host at ``OUTSIDE``/24, on a wire to this namespace, which is ``UPLINK`` there."""
    outside = Outside()
    try:
        run_ip("link", "add", WIRE, "type", "veth", "peer", "name", "eth0")
        run_ip("link", "set", "eth0", "netns", f"/proc/{os.getpid()}/fd/{outside.namespace}")
        run_ip("addr", "add", f"{UPLINK}/24", "dev", WIRE)
        run_ip("link", "set", WIRE, "up")
        outside.do(lambda: run_ip("addr", "add", f"{OUTSIDE}/24", "dev", "eth0"))
        outside.do(lambda: run_ip("link", "set", "eth0", "up"))
        yield outside
    finally:
        outside.close()
