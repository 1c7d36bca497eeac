"""Reads main memory, huge pages and NUMA nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor.hardware.attributes import list_folders, read_int, read_text

if TYPE_CHECKING:
    from pathlib import Path

KIB_PER_MIB = 1024


@dataclass(frozen=True, slots=True)
class HugePages:
    """The pool of one page size."""

    size_kib: int
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Memory:
    """``available_mib`` is the kernel's estimate of what new programs can use without swapping."""

    total_mib: int
    available_mib: int
    huge_pages: tuple[HugePages, ...]


@dataclass(frozen=True, slots=True)
class NumaNode:
    """``cpus`` as the kernel lists them (``0-7,16-23``); ``distances`` to every node, 10 being itself."""

    number: int
    cpus: str
    memory_mib: int
    distances: tuple[int, ...]


def read_memory(root: Path) -> Memory:
    """Main memory and its huge page pools."""
    info = parse_meminfo(read_text(root / "proc/meminfo"))
    pools = (
        HugePages(
            size_kib=int(folder.name.removeprefix("hugepages-").removesuffix("kB")),
            total=read_int(folder / "nr_hugepages"),
            free=read_int(folder / "free_hugepages"),
        )
        for folder in list_folders(root / "sys/kernel/mm/hugepages")
    )
    return Memory(
        total_mib=info.get("MemTotal", 0) // KIB_PER_MIB,
        available_mib=info.get("MemAvailable", 0) // KIB_PER_MIB,
        huge_pages=tuple(sorted(pools, key=lambda pool: pool.size_kib)),
    )


def read_numa_nodes(root: Path) -> tuple[NumaNode, ...]:
    """The NUMA nodes; a kernel without NUMA has none."""
    folders = [
        folder
        for folder in list_folders(root / "sys/devices/system/node")
        if folder.name.removeprefix("node").isdigit()
    ]
    return tuple(sorted(map(_read_node, folders), key=lambda node: node.number))


def parse_meminfo(text: str) -> dict[str, int]:
    """The values of ``/proc/meminfo`` or of a node's ``meminfo``, in KiB where the line says kB."""
    values = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        number = value.split()
        if colon and number and number[0].isdigit():
            values[name.split()[-1]] = int(number[0])  # a node's lines begin with "Node 0"
    return values


def _read_node(folder: Path) -> NumaNode:
    return NumaNode(
        number=int(folder.name.removeprefix("node")),
        cpus=read_text(folder / "cpulist"),
        memory_mib=parse_meminfo(read_text(folder / "meminfo")).get("MemTotal", 0) // KIB_PER_MIB,
        distances=tuple(map(int, read_text(folder / "distance").split())),
    )
