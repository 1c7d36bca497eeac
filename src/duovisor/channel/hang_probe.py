"""Does an active driver still do its work? Its successor looks at the rings, which it has mapped too."""

from __future__ import annotations

from duovisor.channel.errors import ChannelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.session import Session

LOOKS_MIN = 4  # a successor that did not run itself must not blame the driver


class HangProbe:
    """Calls ``on_hang`` with a queue, or ``None`` for the connection, that has rested ``hang_s`` with work.

    It says so once, and again after there was progress. Work on a queue is an available index ahead of the
    used one, progress a used index that moves; work on the connection is a message unanswered or unread.
    """

    def __init__(self, hang_s: float, on_hang: Callable[[int | None, float], None]) -> None:
        self.interval_s = min(1.0, hang_s / (LOOKS_MIN + 1))
        self._hang_s = hang_s
        self._on_hang = on_hang
        self._rings: list[tuple[int, memoryview, memoryview]] = []
        # what is stalled → since when, at which used index, seen how often (-1: it was said)
        self._stalled: dict[int | None, tuple[float, int, int]] = {}

    def watch(self, session: Session) -> None:
        """Look at the queues of a restored session from now on."""
        self._rings = []
        for ring in session.rings.to_start:
            address, index = ring.address, ring.queue.index
            if address is None or session.device.holds_buffers(index):
                continue
            try:
                available = session.memory.user_slice(address.available, 4).cast("H")
                used = session.memory.user_slice(address.used, 4).cast("H")
            except (ChannelError, TypeError, ValueError):
                continue  # the driver will say that this ring cannot be
            self._rings.append((index, available, used))
        watched = {index for index, _, _ in self._rings}
        self._stalled = {
            where: since for where, since in self._stalled.items() if where is None or where in watched
        }

    def look(self, now_s: float, *, connection_waits: bool) -> None:
        """Compare with the last look, at most ``interval_s`` ago."""
        for index, available, used in self._rings:
            used_index = used[1]
            self._note(index, available[1] != used_index, used_index, now_s)
        self._note(None, connection_waits, 0, now_s)

    def _note(self, where: int | None, has_work: bool, used_index: int, now_s: float) -> None:
        if not has_work:
            self._stalled.pop(where, None)
            return
        since_s, at, looks = self._stalled.get(where, (now_s, used_index, 0))
        if at != used_index:
            since_s, looks = now_s, 0
        if looks >= LOOKS_MIN and now_s - since_s >= self._hang_s:
            self._on_hang(where, now_s - since_s)
            looks = -1
        elif looks >= 0:
            looks += 1
        self._stalled[where] = (since_s, used_index, looks)

    def forget(self) -> None:
        """Let go of the rings' memory."""
        self._rings = []
