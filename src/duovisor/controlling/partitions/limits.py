"""How much of the host a driver partition may use."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1 << 20
# Python, its threads' stacks, bounce buffers, a page and logs
_OWN_ADDRESS_SPACE_MIB = 4096
# A region is mapped from the start of its file, and a new memory table beside the old one.
_MAPPINGS_OF_GUEST_MEMORY = 4


@dataclass(frozen=True)
class PartitionLimits:
    """Limits of one partition, in bytes and numbers; the kernel's names are in ``confinement``.

    ``data_bytes`` is private memory. ``threads`` is for all processes of the VM's uid together.
    """

    address_space_bytes: int
    data_bytes: int = 256 * _MIB
    open_files: int = 4096
    threads: int = 512


def build_limits(memory_mib: int) -> PartitionLimits:
    """What a driver of a guest that may have ``memory_mib`` MiB of memory needs; pure."""
    mib = _OWN_ADDRESS_SPACE_MIB + _MAPPINGS_OF_GUEST_MEMORY * memory_mib
    return PartitionLimits(address_space_bytes=mib * _MIB)
