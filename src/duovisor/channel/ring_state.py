"""What a snapshot says about one ring."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.messages import VringAddress


class RingState:
    """What a back end knows about one ring. ``own_log`` is its log of requests in flight, where the front
    end holds none for it."""

    __slots__ = (
        "address",
        "base",
        "call",
        "enabled",
        "error",
        "failed",
        "kick",
        "own_log",
        "running",
        "size",
    )

    def __init__(self) -> None:
        self.address: VringAddress | None = None
        self.size = 0
        self.base = 0
        self.enabled = False
        self.failed = False
        self.running = False
        self.kick: int | None = None
        self.call: int | None = None
        self.error: int | None = None
        self.own_log: int | None = None

    def descriptors(self) -> list[int]:
        held = (self.kick, self.call, self.error, self.own_log)
        return [descriptor for descriptor in held if descriptor is not None]
