"""PCI bus 0: its functions by slot, configuration mechanism 1, and the window in which their BARs lie.

Sources: PCI Local Bus 3.0, 3.2.2.3.2 (ports 0xCF8 and 0xCFC). There is one function in each slot, no bridge
but the host's, and no interrupt pin anywhere: interrupts are messages.
"""

from __future__ import annotations

from duovisor.hypervisor.thin.pci.config_space import ConfigSpace
from duovisor.hypervisor.thin.ports import WINDOW_END, WINDOW_START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from duovisor.hypervisor.thin.ports import AddressSpace, Region

    class Function(Protocol):
        """What sits in a slot: its configuration space, seen by the guest."""

        def read_config(self, offset: int, size: int) -> int:
            """Bytes of the configuration space."""

        def write_config(self, offset: int, size: int, value: int) -> None:
            """Take bytes for the configuration space."""


CONFIG_PORTS = 0xCF8
CONFIG_PORTS_BYTES = 8
SLOTS = 32
_ENABLE = 1 << 31
_ADDRESS_WRITABLE = _ENABLE | 0x00FFFFFC
_DATA = 4  # offset of 0xCFC in the ports
# "Red Hat, Inc. QEMU PCIe Host bridge" (pci.ids): one that guests have no quirks for
_HOST_BRIDGE = (0x1B36, 0x0008, 0x060000)


class HostBridge:
    """The function in slot 0, by which a guest sees that there is a bus (Linux: ``pci_sanity_check``)."""

    def __init__(self) -> None:
        self._config = ConfigSpace(*_HOST_BRIDGE)

    def read_config(self, offset: int, size: int) -> int:
        """Who it is."""
        return self._config.read(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Nothing here changes anything."""


class PciBus:
    """The bus as a region of eight I/O ports; ``memory`` is where BARs are mapped."""

    def __init__(self, memory: AddressSpace) -> None:
        self._memory = memory
        self._functions: dict[int, Function] = {0: HostBridge()}
        self._address = 0

    def add(self, slot: int, function: Function) -> None:
        """Put a function into a free slot; raises ``ValueError`` where there is none."""
        if not 0 < slot < SLOTS or slot in self._functions:
            raise ValueError(f"PCI slot {slot} is taken or does not exist")
        self._functions[slot] = function

    # Ports

    def read(self, offset: int, size: int) -> int:
        """The address register, or the part that it addresses of some function's configuration space."""
        nobody = (1 << 8 * size) - 1
        if offset < _DATA:
            return self._address if (offset, size) == (0, 4) else nobody
        function, register = self._addressed()
        if function is None:
            return nobody
        return function.read_config(register + offset - _DATA, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """As ``read``."""
        if offset < _DATA:
            if (offset, size) == (0, 4):
                self._address = value & _ADDRESS_WRITABLE
            return
        function, register = self._addressed()
        if function is not None:
            function.write_config(register + offset - _DATA, size, value)

    def _addressed(self) -> tuple[Function | None, int]:
        address = self._address
        if not address & _ENABLE or address & 0x00FF0700:  # another bus or function than 0
            return None, 0
        return self._functions.get(address >> 11 & 0x1F), address & 0xFC

    # Window

    def map(self, base: int, size: int, region: Region) -> bool:
        """Map a BAR; False when the guest put it outside the window or over another one."""
        if not WINDOW_START <= base <= WINDOW_END - size:
            return False
        try:
            self._memory.add(base, size, region)
        except ValueError:
            return False
        return True

    def unmap(self, base: int) -> None:
        """Take away what ``map`` mapped there."""
        self._memory.remove(base)
