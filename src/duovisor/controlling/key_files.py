"""The key of an encrypted disk: a file of 64 bytes that its owner alone may read.

The key never enters this process's memory: the kernel copies it from the file into a sealed memory file, and
only drivers read that. All drivers of a running disk so have the same key, whatever becomes of the file.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from duovisor.controlling.drivers.encrypted import KEY_BYTES
from duovisor.controlling.errors import KeyFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MEMORY_NAME = "duovisor-key"
KEY_MEMORY = f"/memfd:{_MEMORY_NAME}"  # as /proc tells it
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe must not make us wait
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


@contextmanager
def open_key(path: str) -> Iterator[int]:
    """A sealed memory file that holds the key in ``path``; closed on leaving. Raises ``KeyFileError``."""
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except OSError as error:
        remedy = f"duovisor disk-key new {path}" if isinstance(error, FileNotFoundError) else ""
        raise KeyFileError(f"cannot read key file {path}: {error.strerror}", remedy=remedy) from error
    try:
        _check(path, os.fstat(descriptor))
        memory = os.memfd_create(_MEMORY_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.sendfile(memory, descriptor, 0, KEY_BYTES)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)  # no driver may change its successor's key
        except BaseException:
            os.close(memory)
            raise
    finally:
        os.close(descriptor)
    try:
        yield memory
    finally:
        os.close(memory)


def create_key(path: Path) -> None:
    """Write a new random key that its owner alone may read. Raises ``KeyFileError`` if the file exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise KeyFileError(
            f"key file {path} exists; a disk may depend on it", remedy="name another"
        ) from error
    except OSError as error:
        raise KeyFileError(f"cannot write key file {path}: {error.strerror}") from error
    try:
        os.write(descriptor, os.urandom(KEY_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"key file {path} is not a file")
    if status.st_mode & _OTHERS:
        raise KeyFileError(
            f"key file {path} is open to others than its owner (mode {stat.S_IMODE(status.st_mode):04o})",
            remedy=f"chmod 600 {path}",
        )
    if status.st_uid not in (0, os.geteuid()):
        raise KeyFileError(
            f"key file {path} belongs to user {status.st_uid}; the service runs as user {os.geteuid()}",
            remedy=f"chown {os.geteuid()} {path}",
        )
    if status.st_size != KEY_BYTES:
        raise KeyFileError(
            f"key file {path} has {status.st_size} bytes; a key has {KEY_BYTES}",
            remedy="duovisor disk-key new FILE makes one",
        )
