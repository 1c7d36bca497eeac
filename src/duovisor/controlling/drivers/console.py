"""The console driver of a partition: from the descriptors of a socket and a log to a device."""

from __future__ import annotations

import fcntl
import os
import socket
import stat

from duovisor.controlling.drivers.console_device import ConsoleDevice, DroppingConsole
from duovisor.controlling.drivers.errors import DriverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.device import VirtioDevice


def create_console_device(words: list[str], descriptors: dict[str, int]) -> ConsoleDevice:
    """A console on the descriptor ``console``, a Unix stream socket that listens or is connected.

    ``log``, if it is there, is a file that was opened for appending. Both go over to the device. Raises
    ``DriverError``.
    """
    if words:
        raise DriverError(f"the console driver has no option {words[0]}")
    log = descriptors.get("log")
    if log is not None:
        _check_log(log)
    return ConsoleDevice(_take_socket(descriptors), log)


def create_dropping_console(_: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    """A console that nobody sees; from the same words and descriptors."""
    for descriptor in descriptors.values():
        os.close(descriptor)
    return DroppingConsole()


def _check_log(descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise DriverError("the descriptor log is no file")
    if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
        raise DriverError("the log was not opened for appending; its keeper cuts it short at times")


def _take_socket(descriptors: dict[str, int]) -> socket.socket:
    if "console" not in descriptors:
        raise DriverError("the descriptor console is missing")
    try:
        taken = socket.socket(fileno=descriptors["console"])
    except OSError as error:
        raise DriverError(f"the descriptor console is no socket: {error.strerror}") from error
    if (taken.family, taken.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        taken.detach()
        raise DriverError("the descriptor console is no Unix stream socket")
    return taken
