"""The whole machine, read at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.hardware.block import read_block_devices
from duovisor.hardware.memory import read_memory, read_numa_nodes
from duovisor.hardware.network import read_nics
from duovisor.hardware.pci import read_pci_devices
from duovisor.hardware.processors import read_processors
from duovisor.hardware.system import read_system

if TYPE_CHECKING:
    from duovisor.hardware.block import BlockDevice
    from duovisor.hardware.memory import Memory, NumaNode
    from duovisor.hardware.network import Nic
    from duovisor.hardware.pci import PciDevice
    from duovisor.hardware.processors import Processors
    from duovisor.hardware.system import System

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine has."""

    system: System
    processors: Processors
    memory: Memory
    numa_nodes: tuple[NumaNode, ...]
    pci_devices: tuple[PciDevice, ...]
    block_devices: tuple[BlockDevice, ...]
    nics: tuple[Nic, ...]


def read_host(root: Path = ROOT) -> Host:
    """Read the machine whose ``proc``, ``sys`` and ``etc`` lie under ``root``."""
    return Host(
        system=read_system(root),
        processors=read_processors(root),
        memory=read_memory(root),
        numa_nodes=read_numa_nodes(root),
        pci_devices=read_pci_devices(root),
        block_devices=read_block_devices(root),
        nics=read_nics(root),
    )
