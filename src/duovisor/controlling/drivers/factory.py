"""The factory: one Python that has imported all a driver needs, and forks partitions from itself.

So a partition starts within milliseconds, and shares the pages of interpreter and modules with all others.
The factory has one thread, opens nothing for anybody and does what its owner says over one socket: ::

    owner   → {"do": "create", "id": n, "title": …, "uid": …, "gid": …, "limits": {…}}  + birth socket, log
    factory → {"reply": "create", "id": n, "ok": true, "pid": …, "start_ticks": …}      + pidfd
              {"event": "ended", "pid": …, "status": …}         as os.waitstatus_to_exitcode() tells it
    owner   → {"do": "keep", "count": n, "title": …}            so many partitions wait for an order, once

One that waits is given to the next order, and nothing is forked then (``waiting.py``). When the owner is gone
it ends, and those that wait; with ``--end-with-owner`` after killing every partition it made.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback

from duovisor.controlling.drivers import system_calls as system
from duovisor.controlling.drivers.confinement import confine, leave_namespaces, reset_signals
from duovisor.controlling.drivers.control import Packet, receive_packet, send_packet
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.library import preload, preload_encryption
from duovisor.controlling.drivers.partition_main import run_partition
from duovisor.controlling.drivers.registry import DRIVERS
from duovisor.controlling.drivers.waiting import Order, wait_for_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from duovisor.controlling.drivers.registry import CreateDevice

WAITING_MAX = 8


class Factory:
    """Serves one owner on ``control``; its partitions can run ``drivers``, whose digest is ``code``."""

    def __init__(
        self, control: socket.socket, code: str, drivers: dict[str, CreateDevice], *, end_with_owner: bool
    ) -> None:
        self._control = control
        self._drivers = drivers
        self._end_with_owner = end_with_owner
        self._as_root = os.geteuid() == 0
        self._code = code
        self._command_line = system.CommandLine()
        self._children: dict[int, int] = {}  # pidfd → pid
        # those that are nobody's: pidfd → where their order goes
        self._waiting: dict[int, socket.socket] = {}
        self._missing = 0
        self._waiting_title = ""
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(control, select.EPOLLIN)

    def serve(self) -> None:
        """Return when the owner is gone."""
        system.become_subreaper()
        self._tell({"event": "ready"})
        try:
            while True:
                events = self._epoll.poll(0 if self._missing else None)
                for descriptor, _ in events:
                    if descriptor in self._children:
                        self._reap(descriptor)
                    else:
                        self._obey()
                if self._missing and not events:  # orders go first
                    self._prepare()
        except EOFError:
            pass
        for pidfd in self._children if self._end_with_owner else self._waiting:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in self._waiting:  # nobody else knows of them
            os.waitpid(self._children[pidfd], 0)

    def _tell(self, message: dict[str, Any], *descriptors: int) -> None:
        """Wait for an owner that is slow to read: it must learn of every end."""
        while True:
            try:
                send_packet(self._control, message, descriptors)
                return
            except BlockingIOError:
                select.select([], [self._control], [])
            except OSError as error:
                raise EOFError("the owner is gone") from error

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._epoll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        if pidfd in self._waiting:
            self._waiting.pop(pidfd).close()
            return
        self._tell({"event": "ended", "pid": pid, "status": os.waitstatus_to_exitcode(status)})

    def _obey(self) -> None:
        packet = receive_packet(self._control)
        if packet is None:
            return
        if packet.message.get("do") == "keep":
            self._keep(packet)
            return
        answer = {"reply": packet.message.get("do"), "id": packet.message.get("id"), "ok": True}
        try:
            pidfd = self._create(packet)
        except (DriverError, OSError) as error:
            self._tell({**answer, "ok": False, "message": describe(error)})
            return
        finally:
            packet.close()
        pid = self._children[pidfd]
        self._tell({**answer, "pid": pid, "start_ticks": read_start_ticks(pid)}, pidfd)

    def _create(self, packet: Packet) -> int:
        """A partition for this order; returns its pidfd."""
        order = Order(packet.message)
        if len(packet.descriptors) != 2:
            raise DriverError(f"an order to create came with {len(packet.descriptors)} descriptors")
        while self._waiting:
            pidfd, orders = self._waiting.popitem()
            with orders:
                try:
                    send_packet(orders, packet.message, packet.descriptors)
                    return pidfd
                except OSError:
                    continue  # it has just ended
        birth, log = packet.descriptors

        def become() -> None:
            confine(order.confinement, birth, log, as_root=self._as_root)

        return self._fork(become, order.title)

    def _keep(self, packet: Packet) -> None:
        """Have so many wait, once: those that are given away are not replaced."""
        packet.close()
        count = packet.message.get("count")
        if isinstance(count, int):
            count = max(0, min(count, WAITING_MAX))
            self._waiting_title = str(packet.message.get("title", ""))
            self._missing = max(0, count - len(self._waiting))
            for pidfd in list(self._waiting)[count:]:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _prepare(self) -> None:
        """One more that waits."""
        self._missing -= 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def become() -> None:
            wait_for_order(theirs.fileno(), self._null, self._command_line, as_root=self._as_root)

        with theirs:
            try:
                self._waiting[self._fork(become, self._waiting_title)] = ours
            except (DriverError, OSError):
                self._missing = 0  # whoever orders one is told why
                ours.close()

    def _fork(self, become: Callable[[], None], title: str) -> int:
        """A new process that becomes a partition; returns its pidfd."""
        result, told = os.pipe()
        middle = os.fork()
        if not middle:
            self._make_partition(told, become, title)
        os.close(told)
        os.waitpid(middle, 0)
        with open(result) as file:  # its end is there: the partition closes all it inherits
            said = file.read()
        if not said.isdigit():
            raise DriverError(f"a partition cannot be made: {said or 'its parent was killed'}")
        pidfd = os.pidfd_open(int(said))
        self._children[pidfd] = int(said)
        self._epoll.register(pidfd, select.EPOLLIN)
        return pidfd

    def _make_partition(self, told: int, become: Callable[[], None], title: str) -> None:
        """In a child of the factory: become the parent of the new namespaces' first process, and end."""
        try:
            leave_namespaces()
            pid = os.fork()
            if not pid:
                os.close(told)
                reset_signals()
                self._command_line.overwrite(title)
                run_partition(become, self._drivers, self._code)
            os.write(told, str(pid).encode())
        except OSError as error:
            os.write(told, describe(error).encode())
        finally:
            os._exit(0)


def describe(error: Exception) -> str:
    """What went wrong, without Python's number in front of it."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def read_start_ticks(pid: int) -> int:
    """When a process began, in clock ticks since the host started; it may have ended, but not be reaped."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])  # proc(5): starttime


def warm_up() -> None:
    """Import what is otherwise imported on first use: a partition can open no file."""
    try:
        raise DriverError("not raised in earnest")
    except DriverError:
        traceback.format_exc()  # linecache, tokenize and what else a newer Python wants
    json.loads(json.dumps({"text": "é"}))


def run(drivers: dict[str, CreateDevice], arguments: list[str]) -> None:
    """Be a factory for partitions that can run ``drivers``; the arguments are ``main``'s."""
    control = socket.socket(fileno=int(arguments[0]))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # one descriptor for each partition that lives
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is for the command
    os.chdir("/")
    warm_up()
    if "--library" in arguments:
        preload()
    if "--encryption" in arguments:
        preload_encryption(arguments[arguments.index("--encryption") + 1].split(os.pathsep))
    factory = Factory(control, arguments[1], drivers, end_with_owner="--end-with-owner" in arguments)
    gc.disable()
    gc.collect()
    gc.freeze()  # no collection of a partition's touches what it shares
    factory.serve()


def main() -> None:
    """The factory's process: its arguments are its owner's socket, its code's digest, and switches."""
    run(DRIVERS, sys.argv[1:])
