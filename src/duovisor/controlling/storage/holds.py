"""Who is reading or writing a volume inside this service: many readers, or one writer.

It bridges the time until a lock on the file itself tells of it, and refuses at once instead of waiting.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from duovisor.controlling.vms.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Holds:
    """Volumes by any name that is theirs alone."""

    def __init__(self) -> None:
        self._readers: Counter[str] = Counter()
        self._writers: set[str] = set()

    @contextmanager
    def hold(self, volume: str, *, writing: bool) -> Iterator[None]:
        """Read, or write, a volume. Raises ``BusyError``."""
        if volume in self._writers or (writing and self._readers[volume]):
            raise BusyError(f"another action is under way on volume {volume}", remedy="wait for its end")
        if writing:
            self._writers.add(volume)
        else:
            self._readers[volume] += 1
        try:
            yield
        finally:
            if writing:
                self._writers.discard(volume)
            else:
                self._readers[volume] -= 1
