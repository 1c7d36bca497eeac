"""What a vCPU left the guest for: an access to a register, which the buses answer.

The page that the kernel shares (struct kvm_run) says which; source: Documentation/virt/kvm/api.rst, 5.
"""

from __future__ import annotations

from struct import Struct

from duovisor.hypervisor.thin import kvm_abi as abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap

    from duovisor.hypervisor.thin.bus import Bus

_IO = Struct("<BBHIQ")  # direction, size, port, count, offset of the data
_MMIO = Struct("<Q8sIB")  # address, data, length, is a write
_FAIL_ENTRY = Struct("<QI")  # the hardware's reason, the processor
_INTERNAL = Struct("<II")  # suberror, number of data words
_IO_OUT = 1
_NAMES = {
    abi.EXIT_FAIL_ENTRY: "the processor refuses the guest's state",
    abi.EXIT_INTERNAL_ERROR: "KVM gives up",
}


class ExitHandler:
    """Answers the exits of one vCPU. ``counts`` says how many there were, by kind."""

    def __init__(self, run_view: mmap.mmap, memory_space: Bus, io_space: Bus) -> None:
        self.counts = {"io": 0, "mmio": 0, "other": 0}
        self._view = run_view
        self._memory_space = memory_space
        self._io_space = io_space

    def handle_mmio(self) -> None:
        """A read or write of a physical address that is no memory."""
        self.counts["mmio"] += 1
        address, data, length, is_write = _MMIO.unpack_from(self._view, abi.RUN_EXIT)
        if is_write:
            self._memory_space.write(address, length, int.from_bytes(data[:length], "little"))
        else:
            value = self._memory_space.read(address, length)
            start = abi.RUN_MMIO_DATA
            self._view[start : start + length] = value.to_bytes(length, "little")

    def handle_io(self) -> None:
        """``in`` or ``out``; with ``rep``, several at once to the same port."""
        self.counts["io"] += 1
        direction, size, port, count, start = _IO.unpack_from(self._view, abi.RUN_EXIT)
        for offset in range(start, start + size * count, size):  # all in the page: KVM bounds count
            if direction == _IO_OUT:
                value = int.from_bytes(self._view[offset : offset + size], "little")
                self._io_space.write(port, size, value)
            else:
                value = self._io_space.read(port, size)
                self._view[offset : offset + size] = value.to_bytes(size, "little")

    def describe(self, reason: int) -> str:
        """Say why the guest cannot go on."""
        text = _NAMES.get(reason, f"KVM left the guest with exit {reason}")
        if reason == abi.EXIT_FAIL_ENTRY:
            return f"{text} ({_FAIL_ENTRY.unpack_from(self._view, abi.RUN_EXIT)[0]:#x})"
        if reason == abi.EXIT_INTERNAL_ERROR:
            return f"{text} (suberror {_INTERNAL.unpack_from(self._view, abi.RUN_EXIT)[0]})"
        return text
