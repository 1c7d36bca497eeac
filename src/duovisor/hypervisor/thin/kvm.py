"""``/dev/kvm`` and one virtual machine on it: capabilities, memory slots, interrupt chips, clock.

A vCPU is in ``kvm_vcpu``. Source: Documentation/virt/kvm/api.rst; each method names its request.
"""

from __future__ import annotations

import ctypes
import errno
import os

from duovisor.hypervisor.thin import kvm_abi as abi
from duovisor.hypervisor.thin.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeVar

    _T = TypeVar("_T", bound=ctypes.Structure)

DEVICE = "/dev/kvm"
CPUID_ENTRIES_MAX = 256  # KVM_MAX_CPUID_ENTRIES
MSRS_MAX = 1024
PAGE_BYTES = 4096

NEEDED = {
    abi.CAP_USER_MEMORY: "guest memory from files (KVM_CAP_USER_MEMORY)",
    abi.CAP_IRQCHIP: "interrupt controllers in the kernel (KVM_CAP_IRQCHIP)",
    abi.CAP_IRQ_ROUTING: "interrupt routes (KVM_CAP_IRQ_ROUTING)",
    abi.CAP_IRQFD: "interrupts from event counters (KVM_CAP_IRQFD)",
    abi.CAP_IOEVENTFD: "notifications to event counters (KVM_CAP_IOEVENTFD)",
    abi.CAP_IOEVENTFD_ANY_LENGTH: "notifications of any size (KVM_CAP_IOEVENTFD_ANY_LENGTH)",
    abi.CAP_IMMEDIATE_EXIT: "a clean stop of vCPUs (KVM_CAP_IMMEDIATE_EXIT, Linux 4.12)",
    abi.CAP_EXT_CPUID: "processor features (KVM_CAP_EXT_CPUID)",
    abi.CAP_SET_TSS_ADDR: "real mode (KVM_CAP_SET_TSS_ADDR)",
    abi.CAP_ADJUST_CLOCK: "the guest's clock (KVM_CAP_ADJUST_CLOCK)",
    abi.CAP_MP_STATE: "the states of several vCPUs (KVM_CAP_MP_STATE)",
    abi.CAP_VCPU_EVENTS: "pending events (KVM_CAP_VCPU_EVENTS)",
    abi.CAP_XSAVE: "extended registers (KVM_CAP_XSAVE)",
    abi.CAP_XCRS: "extended control registers (KVM_CAP_XCRS)",
    abi.CAP_DEBUGREGS: "debug registers (KVM_CAP_DEBUGREGS)",
    abi.CAP_TSC_DEADLINE_TIMER: "the local APIC's deadline timer (KVM_CAP_TSC_DEADLINE_TIMER)",
}

_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


def call(
    descriptor: int, request: int, argument: ctypes.Structure | ctypes.Array[ctypes.c_char] | int
) -> int:
    """ioctl(2) with a structure, a buffer, or a plain number; raises ``OSError``.

    The interpreter's lock is free meanwhile. ``fcntl.ioctl`` would do, but for numbers from 2 GiB on.
    """
    pointer = argument if isinstance(argument, int) else ctypes.addressof(argument)
    result: int = _ioctl(descriptor, request, pointer)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Kvm:
    """``/dev/kvm``, or its descriptor. Raises ``KvmError`` when it is not there, or lacks what is needed."""

    def __init__(self, device: str | int = DEVICE) -> None:
        try:
            self._descriptor = (
                device if isinstance(device, int) else os.open(device, os.O_RDWR | os.O_CLOEXEC)
            )
        except OSError as error:
            raise KvmError(f"cannot open {device}: {error.strerror}") from error
        try:
            version = call(self._descriptor, abi.GET_API_VERSION, 0)
        except OSError as error:
            os.close(self._descriptor)
            raise KvmError(f"{device} is no KVM: {error.strerror}") from error
        if version != abi.API_VERSION:
            raise KvmError(f"KVM speaks version {version} of its interface, not {abi.API_VERSION}")
        missing = [what for capability, what in NEEDED.items() if not self.check(capability)]
        if missing:
            raise KvmError(f"this host's KVM lacks {', '.join(missing)}", remedy="use the QEMU VMM")
        self.run_bytes = call(self._descriptor, abi.GET_VCPU_MMAP_SIZE, 0)

    def check(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 where there is none of it."""
        return call(self._descriptor, abi.CHECK_EXTENSION, capability)

    def create_vm(self) -> VirtualMachine:
        """KVM_CREATE_VM; tried again when a signal came in between, as KVM asks for."""
        while True:
            try:
                return VirtualMachine(self, call(self._descriptor, abi.CREATE_VM, 0))
            except InterruptedError:
                continue
            except OSError as error:
                raise KvmError(f"KVM makes no virtual machine: {error.strerror}") from error

    def read_cpuid(self) -> list[abi.CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID: all that a guest on this processor can be given."""
        buffer = make_list(CPUID_ENTRIES_MAX, abi.CpuidEntry)
        call(self._descriptor, abi.GET_SUPPORTED_CPUID, buffer)
        return read_list(buffer, abi.CpuidEntry)

    def read_msr_indices(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the registers that make up a guest's state here."""
        buffer = ctypes.create_string_buffer(4 + 4 * MSRS_MAX)
        ctypes.c_uint32.from_buffer(buffer).value = MSRS_MAX
        call(self._descriptor, abi.GET_MSR_INDEX_LIST, buffer)
        count = ctypes.c_uint32.from_buffer(buffer).value
        return list((ctypes.c_uint32 * count).from_buffer(buffer, 4))

    def close(self) -> None:
        os.close(self._descriptor)


class VirtualMachine:
    """A virtual machine's descriptor."""

    def __init__(self, kvm: Kvm, descriptor: int) -> None:
        self.kvm = kvm
        self._descriptor = descriptor

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: local APICs, an I/O APIC, and two 8259s that nobody uses; before any vCPU."""
        call(self._descriptor, abi.CREATE_IRQCHIP, 0)

    def set_internal_pages(self, start: int) -> None:
        """Four guest pages below 4 GiB for KVM itself (Intel's real mode); before any vCPU."""
        call(
            self._descriptor,
            abi.SET_IDENTITY_MAP_ADDR,
            ctypes.create_string_buffer(start.to_bytes(8, "little")),
        )
        call(self._descriptor, abi.SET_TSS_ADDR, start + PAGE_BYTES)

    def create_vcpu(self, index: int) -> int:
        """KVM_CREATE_VCPU; its descriptor."""
        return call(self._descriptor, abi.CREATE_VCPU, index)

    def set_memory(self, slot: int, guest: int, size: int, host: int, *, log_dirty: bool = False) -> None:
        """KVM_SET_USER_MEMORY_REGION; ``host`` is the address of a mapping of ``size`` bytes."""
        flags = abi.MEM_LOG_DIRTY_PAGES if log_dirty else 0
        call(self._descriptor, abi.SET_USER_MEMORY_REGION, abi.MemoryRegion(slot, flags, guest, size, host))

    def take_dirty_log(self, slot: int, size: int) -> bytes:
        """KVM_GET_DIRTY_LOG: a bit for each 4 KiB page written since the last time, lowest first.

        Every KVM has it (api.rst: capability basic). Raises ``KvmError`` for a slot that keeps no log.
        """
        bitmap = ctypes.create_string_buffer(-(-size // (PAGE_BYTES * 64)) * 8)
        try:
            call(self._descriptor, abi.GET_DIRTY_LOG, abi.DirtyLog(slot, 0, ctypes.addressof(bitmap)))
        except OSError as error:
            raise KvmError(f"memory slot {slot} keeps no log of what is written: {error.strerror}") from error
        return bitmap.raw

    def set_routes(self, entries: Sequence[abi.RoutingEntry]) -> None:
        """KVM_SET_GSI_ROUTING: the whole table at once."""
        buffer = make_list(len(entries), abi.RoutingEntry)
        (abi.RoutingEntry * len(entries)).from_buffer(buffer, 8)[:] = list(entries)
        call(self._descriptor, abi.SET_GSI_ROUTING, buffer)

    def set_irqfd(self, eventfd: int, gsi: int, *, attached: bool) -> None:
        """KVM_IRQFD."""
        call(self._descriptor, abi.IRQFD, abi.Irqfd(eventfd, gsi, 0 if attached else abi.IRQFD_DEASSIGN))

    def set_ioeventfd(self, address: int, eventfd: int, *, attached: bool) -> None:
        """KVM_IOEVENTFD for writes of any size and value."""
        flags = 0 if attached else abi.IOEVENTFD_DEASSIGN
        call(self._descriptor, abi.IOEVENTFD, abi.Ioeventfd(0, address, 0, eventfd, flags))

    def set_msr_filter(self, denied: Iterable[range]) -> None:
        """KVM_X86_SET_MSR_FILTER: a guest that touches one of these registers gets a #GP."""
        if not self.kvm.check(abi.CAP_X86_MSR_FILTER):
            return  # before Linux 5.10 every register that KVM knows is the guest's
        table = abi.MsrFilter()
        bitmaps = []
        for place, registers in enumerate(denied):
            bitmap = ctypes.create_string_buffer(-(-len(registers) // 8))
            bitmaps.append(bitmap)
            flags = abi.MSR_FILTER_READ | abi.MSR_FILTER_WRITE
            address = ctypes.addressof(bitmap)
            table.ranges[place] = abi.MsrFilterRange(flags, len(registers), registers.start, address)
        call(self._descriptor, abi.X86_SET_MSR_FILTER, table)

    def read_irqchip(self, chip: int) -> bytes:
        """KVM_GET_IRQCHIP."""
        state = ctypes.create_string_buffer(chip.to_bytes(4, "little"), abi.IRQCHIP_BYTES)
        call(self._descriptor, abi.GET_IRQCHIP, state)
        return state.raw

    def write_irqchip(self, state: bytes) -> None:
        """KVM_SET_IRQCHIP; the state says which chip it is of."""
        call(self._descriptor, abi.SET_IRQCHIP, ctypes.create_string_buffer(state, abi.IRQCHIP_BYTES))

    def read_clock_ns(self) -> int:
        """KVM_GET_CLOCK: the guest's kvmclock."""
        data = abi.ClockData()
        call(self._descriptor, abi.GET_CLOCK, data)
        return int(data.clock)

    def set_clock_ns(self, clock_ns: int) -> None:
        """KVM_SET_CLOCK: it goes on from here."""
        call(self._descriptor, abi.SET_CLOCK, abi.ClockData(clock_ns))

    def close(self) -> None:
        os.close(self._descriptor)


def make_list(count: int, kind: type[ctypes.Structure]) -> ctypes.Array[ctypes.c_char]:
    """A buffer for ``struct { u32 count; u32 padding; kind entries[] }``, with the count written."""
    buffer = ctypes.create_string_buffer(8 + count * ctypes.sizeof(kind))
    ctypes.c_uint32.from_buffer(buffer).value = count
    return buffer


def read_list(buffer: ctypes.Array[ctypes.c_char], kind: type[_T]) -> list[_T]:
    """The entries of such a buffer, each a copy."""
    count = ctypes.c_uint32.from_buffer(buffer).value
    return list((kind * count).from_buffer_copy(buffer, 8))


def is_unsupported(error: OSError) -> bool:
    """Whether an older kernel, or another processor, has no such thing."""
    return error.errno in (errno.EINVAL, errno.ENOTTY, errno.ENXIO)
