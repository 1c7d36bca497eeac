"""Drivers of users' own: a file is read and looked at here, and run nowhere but in a partition.

Its text is parsed to find out of which type the device is, since QEMU must be told before any driver runs.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.drivers.own_driver import MAX_SOURCE_BYTES
from duovisor.controlling.errors import DriverFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIGITS = 12
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe must not make us wait
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_MEMORY_NAME = "duovisor-driver"
MEMORY_FILE = f"/memfd:{_MEMORY_NAME}"  # as /proc tells it
MANUAL = "docs/write-a-driver.md shows one"
DISK_TYPE = 2  # virtio 1.2, section 5.2


class OpenDriver(NamedTuple):
    """A driver's text: ``descriptor`` is a memory file that holds it, ``digest`` names it.

    ``device_type`` is virtio's number of the device's type; ``None`` where no class says one.
    """

    descriptor: int
    device_type: int | None
    digest: str


@contextmanager
def open_driver(path: str) -> Iterator[OpenDriver]:
    """Read and check a driver's file; its copy is closed on leaving. Raises ``DriverFileError``."""
    source = read_source(path)
    descriptor = os.memfd_create(_MEMORY_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, source)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)  # a driver must not rewrite its successor
        yield look_at_driver(descriptor, path)
    finally:
        os.close(descriptor)


@contextmanager
def open_disk_driver(path: str) -> Iterator[OpenDriver]:
    """The same for the driver of a disk, which need not say its type. Raises ``DriverFileError``."""
    with open_driver(path) as opened:
        if opened.device_type not in (None, DISK_TYPE):
            raise DriverFileError(
                f"driver {path} is for a device of type {opened.device_type}; a disk has type {DISK_TYPE}",
                remedy="devices of other types are listed under devices",
            )
        yield opened


def look_at_driver(descriptor: int, path: str) -> OpenDriver:
    """What a driver's text behind a descriptor is. Raises ``DriverFileError``."""
    source = os.pread(descriptor, MAX_SOURCE_BYTES, 0)
    digest = hashlib.sha256(source).hexdigest()[:_DIGITS]
    return OpenDriver(descriptor, find_device_type(source, path), digest)


def read_source(path: str) -> bytes:
    """The text of a driver, at most 256 KiB. Raises ``DriverFileError``."""
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except OSError as error:
        raise DriverFileError(f"cannot read driver {path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DriverFileError(f"driver {path} is not a file")
        source = os.pread(descriptor, MAX_SOURCE_BYTES + 1, 0)
    finally:
        os.close(descriptor)
    if len(source) > MAX_SOURCE_BYTES:
        raise DriverFileError(f"driver {path} is larger than {MAX_SOURCE_BYTES >> 10} KiB")
    return source


def find_device_type(source: bytes, path: str) -> int | None:
    """The ``device_id`` that one class of the text sets to a number; pure. Raises ``DriverFileError``."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise DriverFileError(f"driver {path}, line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise DriverFileError(f"driver {path} is no Python text", remedy=MANUAL) from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if not classes:
        raise DriverFileError(f"driver {path} defines no class", remedy=MANUAL)
    found = {number for node in classes if (number := _find_number(node)) is not None}
    if len(found) > 1:
        raise DriverFileError(f"driver {path} defines devices of the types {sorted(found)}; it may have one")
    return found.pop() if found else None


def _find_number(node: ast.ClassDef) -> int | None:
    for statement in node.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id="device_id")], value=ast.Constant(value=int(number)))
                | ast.AnnAssign(target=ast.Name(id="device_id"), value=ast.Constant(value=int(number)))
            ):
                return number
    return None
