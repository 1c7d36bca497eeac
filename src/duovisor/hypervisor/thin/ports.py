"""Where the machine and its devices meet: what each side gives the other, as Protocols and plain records.

Register accesses reach a ``Region`` from the processors' threads, several at once, and from there a device
uses the spaces, interrupts and notifications; those lock for themselves. The rest is the main thread's.
"""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from duovisor.channel.event_loop import EventLoop

    class Region(Protocol):
        """Registers that a guest reads and writes; never raises, whatever the guest does.

        ``size`` is 1, 2, 4 or 8 bytes, and ``offset + size`` may lie beyond the region's end. What is read is
        cut to ``size`` bytes.
        """

        def read(self, offset: int, size: int) -> int: ...

        def write(self, offset: int, size: int, value: int) -> None: ...

    class AddressSpace(Protocol):
        """The guest's physical addresses outside its memory, or its I/O ports."""

        def add(self, base: int, size: int, region: Region) -> None:
            """Raises ``ValueError`` if one of the addresses is taken."""
            ...

        def remove(self, base: int) -> None: ...

    class Interrupts(Protocol):
        """Message-signalled interrupts: an event counter that is written to sends the message of its GSI.

        Route first, then attach: what the counter holds by then is delivered at once.
        """

        def allocate(self) -> int:
            """A GSI without a route, that nobody else has; raises ``ValueError`` without any left."""
            ...

        def route(self, gsi: int, address: int, data: int) -> None:
            """Say which message (PCI 3.0, 6.8.2) it sends."""
            ...

        def unroute(self, gsi: int) -> None: ...

        def attach(self, gsi: int, eventfd: int) -> None: ...

        def detach(self, gsi: int, eventfd: int) -> None:
            """From now on the counter keeps what is written to it."""
            ...

    class Notifications(Protocol):
        """Guest writes of any size to a physical address that go to an event counter without an exit."""

        def attach(self, address: int, eventfd: int) -> None: ...

        def detach(self, address: int, eventfd: int) -> None: ...

    class Device(Protocol):
        """A device in the machine's life; called from the main thread while no processor runs guest code."""

        name: str

        def wait_driver(self, timeout_s: float) -> None:
            """Before the machine runs: wait until a driver has connected and said what it offers.

            Raises ``ChannelError``.
            """
            ...

        def reset(self) -> None:
            """Back to what it was before the guest touched it; the driver stays connected."""
            ...

        def pause(self) -> None:
            """Stop the queues, so that the driver touches no guest memory until ``resume``."""
            ...

        def resume(self) -> None: ...

        def save(self) -> dict[str, Any]:
            """The state of a paused device, as JSON can hold it."""
            ...

        def restore(self, state: dict[str, Any]) -> None:
            """Take on a saved state, paused; raises ``ValueError`` for one that is not."""
            ...

        def close(self) -> None: ...

    class BuildDevices(Protocol):
        """``thin/devices.py: build_devices``: the PCI bus with its host bridge and these devices on it."""

        def __call__(self, configs: Sequence[DeviceConfig], platform: Platform) -> list[Device]: ...


# the guest's physical addresses; memory that does not fit below the window goes on at 4 GiB
WINDOW_START = 0xC000_0000
WINDOW_END = 0xE000_0000  # exclusive
HIGH_MEMORY_START = 0x1_0000_0000


class MemoryPiece(NamedTuple):
    """Adjacent guest memory (bytes) and where it lies in the memory file."""

    guest_address: int
    size: int
    file_offset: int


class GuestMemory(NamedTuple):
    """The guest's memory as one shared file."""

    descriptor: int
    pieces: tuple[MemoryPiece, ...]


class DeviceConfig(NamedTuple):
    """A device behind a channel; ``socket`` is the inherited, listening one; ``slot`` its place on bus 0.

    A network card's configuration space, with its MAC address, is no matter of its driver: ``config`` is it,
    and the driver is asked for none. ``own_features`` the VMM offers beside the driver and keeps from it;
    ``hidden_features`` of the driver the guest is not offered.
    """

    name: str
    virtio_type: int
    socket: int
    slot: int
    queues: int
    queue_size: int
    config: bytes = b""
    own_features: int = 0
    hidden_features: int = 0


class Platform(NamedTuple):
    """What the machine gives its devices. ``tell`` is called with (device, what happened) to be logged."""

    memory_space: AddressSpace
    io_space: AddressSpace
    interrupts: Interrupts
    notifications: Notifications
    memory: GuestMemory
    loop: EventLoop
    tell: Callable[[str, str], None]
