"""What a guest printed, kept on disk: the latest part, in two files of bounded size.

The VMM appends to the newer file, whether a service is there or not. When that file is full, its content is
copied over the older one and it is emptied; the VMM, which appends, goes on at its beginning. At least
``FILE_BYTES`` of the latest output are there; more than twice that only of what was printed uncounted.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES = 1 << 20


class ConsoleLog:
    """Keeps the log at ``path`` within its bound; what is older lies in ``path`` with ``.1`` added."""

    def __init__(self, path: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self.path = path
        self._file_bytes = file_bytes
        self._size = 0
        self._bound()

    def count(self, printed_bytes: int) -> None:
        """Note that so much was printed, and bound the log when it may be full."""
        self._size += printed_bytes
        if self._size >= self._file_bytes:
            self._bound()

    def _bound(self) -> None:
        self._size = 0  # when a full disk refuses the copy, the next try is as much output away
        with contextlib.suppress(OSError), self.path.open("r+b", buffering=0) as newest:
            size = os.fstat(newest.fileno()).st_size
            if size < self._file_bytes:
                self._size = size
                return
            newest.seek(size - self._file_bytes)
            with open(older(self.path), "wb", opener=_open_private) as copy:
                for _ in range(2):  # the second time, what was printed during the first
                    copy.write(newest.read(self._file_bytes))
                    copy.flush()
                newest.truncate(0)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def older(path: Path) -> Path:
    """Where the part before the newest is."""
    return path.with_name(f"{path.name}.1")


def read_console_log(path: Path, max_bytes: int) -> bytes:
    """The last ``max_bytes`` that were printed; nothing when there is no log."""
    newest = _read_end(path, max_bytes)
    return _read_end(older(path), max_bytes - len(newest)) + newest


def remove_console_log(path: Path) -> None:
    """Remove both files; it is no error when they are not there."""
    path.unlink(missing_ok=True)
    older(path).unlink(missing_ok=True)


def _read_end(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - max_bytes))
            return file.read(max_bytes)
    except FileNotFoundError:
        return b""
