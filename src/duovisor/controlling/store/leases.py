"""The running time of leases; what a lease's end deletes is the store's business."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.store.errors import LeaseNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.store.timers import Timer, Timers


class LeaseTimes:
    """One timer for each lease; ``expire`` is called with the lease whose time is over."""

    def __init__(self, timers: Timers, expire: Callable[[int], object]) -> None:
        self._timers = timers
        self._expire = expire
        self._running: dict[int, tuple[float, Timer]] = {}

    def begin(self, lease: int, ttl_s: float) -> None:
        """Begin a lease's time, anew if it runs already."""
        self.end(lease)
        self._running[lease] = (ttl_s, self._timers.call_later(ttl_s, lambda: self._on_timer(lease)))

    def keep_alive(self, lease: int) -> float:
        """Begin a running lease's time anew; return it in seconds. Raises ``LeaseNotFoundError``."""
        if lease not in self._running:
            raise LeaseNotFoundError(f"there is no lease {lease}", remedy="grant a new one")
        ttl_s, _ = self._running[lease]
        self.begin(lease, ttl_s)
        return ttl_s

    def end(self, lease: int) -> None:
        """Stop a lease's timer; nothing happens when it has none."""
        if lease in self._running:
            self._running.pop(lease)[1].cancel()

    def end_all(self) -> None:
        """Stop every timer; nothing expires any more."""
        for lease in list(self._running):
            self.end(lease)

    def _on_timer(self, lease: int) -> None:
        del self._running[lease]
        self._expire(lease)
