"""What a guest printed, kept on disk: the latest part, in two files of bounded size.

The newer file grows until it is full, then takes the older one's place: at least ``FILE_BYTES`` of the
latest output are there, never more than twice that.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES = 1 << 20


class ConsoleLog:
    """Appends to ``path``; what is older lies in ``path`` with ``.1`` added."""

    def __init__(self, path: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self.path = path
        self._file_bytes = file_bytes
        self._open()

    def _open(self) -> None:
        self._file = self.path.open("ab", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size

    def write(self, data: bytes) -> None:
        """Append what the guest printed; what a full disk refuses is lost, for the guest must not wait."""
        with contextlib.suppress(OSError):
            self._append(data)

    def _append(self, data: bytes) -> None:
        if self._size + len(data) > self._file_bytes:
            self._file.close()
            self.path.replace(older(self.path))
            self._open()
        self._file.write(data)
        self._size += len(data)

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._file.close()


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
