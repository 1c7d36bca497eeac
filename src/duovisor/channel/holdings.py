"""What a front end shared with a back end, with its descriptors, so that it can be shared once more."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.messages import InflightDescription, RegionDescription


class Holdings:
    """Memory regions, the log of requests in flight, the dirty log and its event descriptor.

    ``log`` is size and offset in bytes, and the descriptor. Whoever holds it calls ``close``.
    """

    __slots__ = ("inflight", "log", "log_signal", "regions")

    def __init__(self) -> None:
        self.regions: list[tuple[RegionDescription, int]] = []
        self.inflight: tuple[InflightDescription, int] | None = None
        self.log: tuple[int, int, int] | None = None
        self.log_signal: int | None = None

    def replace_regions(self, regions: list[tuple[RegionDescription, int]]) -> None:
        """Take a new set of regions."""
        for _, descriptor in self.regions:
            os.close(descriptor)
        self.regions = regions

    def remove_region(self, named: RegionDescription) -> None:
        """Let go of the region with these addresses and this size."""
        for position, (region, descriptor) in enumerate(self.regions):
            if (region.guest_address, region.user_address, region.size) == (
                named.guest_address,
                named.user_address,
                named.size,
            ):
                os.close(descriptor)
                del self.regions[position]
                return

    def replace_inflight(self, description: InflightDescription, descriptor: int) -> None:
        """Take another log of requests in flight."""
        if self.inflight is not None:
            os.close(self.inflight[1])
        self.inflight = (description, descriptor)

    def replace_log(self, size: int, offset: int, descriptor: int) -> None:
        """Take another dirty log."""
        if self.log is not None:
            os.close(self.log[2])
        self.log = (size, offset, descriptor)

    def replace_log_signal(self, descriptor: int) -> None:
        """Take another event descriptor for the dirty log."""
        if self.log_signal is not None:
            os.close(self.log_signal)
        self.log_signal = descriptor

    def descriptors(self) -> list[int]:
        """All descriptors: regions, log in flight, dirty log, its event; in this order."""
        found = [descriptor for _, descriptor in self.regions]
        if self.inflight is not None:
            found.append(self.inflight[1])
        if self.log is not None:
            found.append(self.log[2])
        if self.log_signal is not None:
            found.append(self.log_signal)
        return found

    def close(self) -> None:
        """Close every descriptor."""
        for descriptor in self.descriptors():
            os.close(descriptor)
        self.regions = []
        self.inflight = self.log = self.log_signal = None
