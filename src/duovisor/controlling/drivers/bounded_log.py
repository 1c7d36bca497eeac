"""What a driver prints goes to its log, up to a bound: a host's disk is not a driver's to fill."""

from __future__ import annotations

import io
import os
import sys

MAX_BYTES = 64 * 1024
NOTICE = b"\n(what it prints from here on is dropped)\n"


class BoundedLog(io.TextIOBase):
    """Writes to ``descriptor`` at once until ``MAX_BYTES`` are used up, then forgets; errors, too."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._left = MAX_BYTES

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Write what there is room for; say that all was written."""
        if self._left > 0:
            part = text[: self._left].encode(errors="backslashreplace")[: self._left]
            self._left -= len(part)
            try:
                os.write(self._descriptor, part if self._left else part + NOTICE)
            except OSError:
                pass  # a full disk is no reason to stop serving
        return len(text)


def print_to(descriptor: int) -> None:
    """Let all that this process prints go to a bounded log."""
    sys.stdout = sys.stderr = BoundedLog(descriptor)
