"""What a network card has moved and dropped, counted since its driver started."""

from __future__ import annotations


class Counters:
    """``received`` is what the guest got, ``sent`` what came from it; bytes are those of frames."""

    __slots__ = (
        "received_bytes", "received_dropped", "received_frames", "sent_bytes", "sent_dropped", "sent_frames",
        "spoofed",
    )  # fmt: skip

    def __init__(self) -> None:
        self.received_frames = self.received_bytes = self.received_dropped = 0
        self.sent_frames = self.sent_bytes = self.sent_dropped = 0
        self.spoofed = 0

    def describe(self) -> dict[str, object]:
        """As plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}
