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
