"""The console driver of a partition: from names of ports and descriptors to a device."""

from __future__ import annotations

import fcntl
import os
import socket
import stat

from duovisor.controlling.drivers.console_device import PORTS_MAX, ConsoleDevice, NamedPort
from duovisor.controlling.drivers.errors import DriverError

NAME_BYTES_MAX = 63


def create_console_device(words: list[str], descriptors: dict[str, int]) -> ConsoleDevice:
    """A console on the descriptor ``console``, a Unix stream socket that listens or is connected.

    ``log``, if it is there, is a file that was opened for appending. ``--port NAME`` adds a named port, the
    first of them on the socket ``port0``. All go over to the device. Raises ``DriverError``.
    """
    names = parse_console_words(words)
    log = descriptors.get("log")
    if log is not None:
        _check_log(log)
    viewers, *others = _take_sockets(descriptors, ["console", *(f"port{i}" for i in range(len(names)))])
    return ConsoleDevice(viewers, log, [NamedPort(*each) for each in zip(names, others, strict=True)])


def create_dropping_console(words: list[str], descriptors: dict[str, int]) -> ConsoleDevice:
    """A stand-in for drivers that kept dying: nobody sees what the guest prints, and it need not wait.

    From the same words and descriptors; it closes these.
    """
    names = parse_console_words(words)
    for descriptor in descriptors.values():
        os.close(descriptor)
    return ConsoleDevice(None, None, [NamedPort(name, None) for name in names])


def parse_console_words(words: list[str]) -> list[str]:
    """The names of the ports beside the console; raises ``DriverError``."""
    rest = iter(words)
    names = []
    for word in rest:
        name = next(rest, "")
        if word != "--port":
            raise DriverError(f"the console driver has no option {word}")
        if not 0 < len(name.encode()) <= NAME_BYTES_MAX:
            raise DriverError(f"option --port is {name!r}, not a name of up to {NAME_BYTES_MAX} bytes")
        names.append(name)
    if len(names) >= PORTS_MAX:
        raise DriverError(f"a console has up to {PORTS_MAX - 1} ports with names, not {len(names)}")
    return names


def _check_log(descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise DriverError("the descriptor log is no file")
    if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
        raise DriverError("the log was not opened for appending; its keeper cuts it short at times")


def _take_sockets(descriptors: dict[str, int], names: list[str]) -> list[socket.socket]:
    """All of these, or none."""
    taken: list[socket.socket] = []
    try:
        for name in names:
            taken.append(_take_socket(descriptors, name))
    except DriverError:
        for each in taken:
            each.detach()
        raise
    return taken


def _take_socket(descriptors: dict[str, int], name: str) -> socket.socket:
    if name not in descriptors:
        raise DriverError(f"the descriptor {name} is missing")
    try:
        taken = socket.socket(fileno=descriptors[name])
    except OSError as error:
        raise DriverError(f"the descriptor {name} is no socket: {error.strerror}") from error
    if (taken.family, taken.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        taken.detach()
        raise DriverError(f"the descriptor {name} is no Unix stream socket")
    return taken
