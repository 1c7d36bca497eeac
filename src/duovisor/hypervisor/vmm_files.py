"""The files that are opened for a VMM, which opens none itself."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import HypervisorError
from duovisor.hypervisor.thin_plan import KVM, MEMORY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


@contextlib.contextmanager
def open_files(files: Collection[tuple[str, Path]]) -> Iterator[dict[str, int]]:
    """Descriptors of files for a VMM to inherit, by their names. Raises ``HypervisorError``.

    It may write to its memory and to a device, and reads the others.
    """
    descriptors: dict[str, int] = {}
    try:
        for name, path in files:
            writing = name in (KVM, MEMORY)
            try:
                descriptors[name] = os.open(path, (os.O_RDWR if writing else os.O_RDONLY) | os.O_CLOEXEC)
            except OSError as error:
                raise HypervisorError(f"cannot open the VMM's {name}, {path}: {error.strerror}") from error
        yield descriptors
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def create_channels_folder(path: Path, owner: int | None) -> None:
    """The folder in which a sandboxed VMM binds sockets, for its uid alone. Raises ``HypervisorError``."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        if owner is not None:
            os.chown(path, owner, owner)
    except OSError as error:
        raise HypervisorError(f"cannot make {path}: {error.strerror}") from error


@contextlib.contextmanager
def open_console_log(path: Path) -> Iterator[int]:
    """The descriptor of a console's log for a VMM to inherit. Raises ``HypervisorError``.

    Appending is what lets another process empty the file: the next write goes to its new end.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise HypervisorError(f"cannot open the console's log {path}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
