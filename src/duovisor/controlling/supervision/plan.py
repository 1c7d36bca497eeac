"""What a device needs of the controlling layer, decided before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from duovisor.controlling.partitions.factory import Modules

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from duovisor.controlling.partitions.limits import PartitionLimits
    from duovisor.spec.vm import DriverFailure


@dataclass(frozen=True)
class DevicePlan:
    """How the driver of ``device`` is started: ``words`` are its options, ``descriptors`` what it may hold.

    ``kind`` ("block", "net", "device", "own-disk") names those that stand in for its drivers:
    "failing-block", "parked-net". ``modules`` are those that the driver needs; one of a user's own has a
    ``source_code`` (digest of its file), and ``reread`` makes a plan with the file as it is now (raises
    ``ControllingError``).
    ``rate``: how many requests and bytes a second a disk's lets through, or how many bytes to the guest and
    from it a card's; 0 is no limit.
    ``hang_s``: without progress for so long it counts as hung. ``on_failure``: what becomes of the device
    when its drivers keep dying.
    """

    device: str
    role: str
    driver: str
    words: tuple[str, ...]
    descriptors: Mapping[str, int]
    hang_s: float
    on_failure: DriverFailure
    uid: int
    limits: PartitionLimits
    poll_us: int = 0
    rate: tuple[int, int] = (0, 0)
    kind: str = "block"
    modules: Modules = Modules.USUAL
    source_code: str = ""
    reread: Callable[[], DevicePlan] | None = None

    @property
    def is_known_by_facts(self) -> bool:
        """Whether only the driver itself can tell what stands in for it."""
        return self.kind in ("device", "own-disk")

    def code_of(self, factory: str) -> str:
        """What names the code of a driver that a factory of this code made."""
        return f"{factory}+{self.source_code}" if self.source_code else factory


class Host(Protocol):
    """What a device's supervisor needs of the VM around it."""

    @property
    def name(self) -> str: ...

    @property
    def run_dir(self) -> Path: ...

    def connect(self, device: str) -> socket.socket:
        """A fresh connection to the device's channel. Raises ``PartitionError``."""
        ...

    def record(self) -> None:
        """Write down which processes there are."""
        ...

    def page_memory(self) -> AbstractAsyncContextManager[Mapping[str, int]]:
        """Descriptors by which a driver has memory on demand; none when all of the guest's is there."""
        ...

    async def wait_ended(self, *, timeout_s: float) -> bool:
        """Whether the VMM has ended, or does within that time."""
        ...

    async def pause(self) -> bool:
        """Stop the processors; False when they did not run."""
        ...

    async def set_link(self, nic: str, *, up: bool) -> None:
        """Plug a network card's cable in or out."""
        ...

    async def note_full(self, device: str) -> bool:
        """Its driver met an error for want of room, or might have; False when that was not why."""
        ...

    async def resume(self) -> None:
        """Let the processors go on."""
        ...
