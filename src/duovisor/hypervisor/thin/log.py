"""The VMM's log, which is standard error: bounded, for a guest can make a driver die as often as it likes."""

from __future__ import annotations

import os
import time

LINES_MAX = 100  # at once; one more each REFILL_S
REFILL_S = 10.0

_left = float(LINES_MAX)
_counted_at = time.monotonic()


def tell(who: str, what: str) -> None:
    """Write a line, unless too many came lately; whoever writes it."""
    global _left, _counted_at  # the log is the process's
    now = time.monotonic()
    _left = min(_left + (now - _counted_at) / REFILL_S, LINES_MAX)
    _counted_at = now
    if _left >= 1:
        _left -= 1
        os.write(2, f"{who}: {what}\n".encode(errors="replace"))
