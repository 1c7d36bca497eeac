"""KVM's user interface on x86-64: request numbers, capabilities and structures.

Source: Linux include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h; what each does stands in
Documentation/virt/kvm/api.rst. Sizes are asserted: a request's number holds the size of its structure.
What is only saved and restored is bytes here, not a structure.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64

API_VERSION = 12

# of /dev/kvm
GET_API_VERSION = 0xAE00
CREATE_VM = 0xAE01
GET_MSR_INDEX_LIST = 0xC004AE02
CHECK_EXTENSION = 0xAE03
GET_VCPU_MMAP_SIZE = 0xAE04
GET_SUPPORTED_CPUID = 0xC008AE05

# of a virtual machine
CREATE_VCPU = 0xAE41
GET_DIRTY_LOG = 0x4010AE42
SET_USER_MEMORY_REGION = 0x4020AE46
SET_TSS_ADDR = 0xAE47
SET_IDENTITY_MAP_ADDR = 0x4008AE48
CREATE_IRQCHIP = 0xAE60
GET_IRQCHIP = 0xC208AE62
SET_IRQCHIP = 0x8208AE63
SET_GSI_ROUTING = 0x4008AE6A
IRQFD = 0x4020AE76
IOEVENTFD = 0x4040AE79
SET_CLOCK = 0x4030AE7B
GET_CLOCK = 0x8030AE7C
X86_SET_MSR_FILTER = 0x4188AEC6

# of a vCPU
RUN = 0xAE80
GET_REGS = 0x8090AE81
SET_REGS = 0x4090AE82
GET_SREGS = 0x8138AE83
SET_SREGS = 0x4138AE84
GET_MSRS = 0xC008AE88
SET_MSRS = 0x4008AE89
GET_LAPIC = 0x8400AE8E
SET_LAPIC = 0x4400AE8F
SET_CPUID2 = 0x4008AE90
GET_MP_STATE = 0x8004AE98
SET_MP_STATE = 0x4004AE99
GET_VCPU_EVENTS = 0x8040AE9F
SET_VCPU_EVENTS = 0x4040AEA0
GET_DEBUGREGS = 0x8080AEA1
SET_DEBUGREGS = 0x4080AEA2
GET_XSAVE = 0x9000AEA4
SET_XSAVE = 0x5000AEA5
GET_XCRS = 0x8188AEA6
SET_XCRS = 0x4188AEA7
KVMCLOCK_CTRL = 0xAEAD
GET_XSAVE2 = 0x9000AECF

# capabilities
CAP_IRQCHIP = 0
CAP_USER_MEMORY = 3
CAP_SET_TSS_ADDR = 4
CAP_EXT_CPUID = 7
CAP_NR_MEMSLOTS = 10
CAP_MP_STATE = 14
CAP_IRQ_ROUTING = 25
CAP_IRQFD = 32
CAP_IOEVENTFD = 36
CAP_ADJUST_CLOCK = 39
CAP_VCPU_EVENTS = 41
CAP_DEBUGREGS = 50
CAP_XSAVE = 55
CAP_XCRS = 56
CAP_MAX_VCPUS = 66
CAP_TSC_DEADLINE_TIMER = 72
CAP_IOEVENTFD_ANY_LENGTH = 122
CAP_IMMEDIATE_EXIT = 136
CAP_X86_MSR_FILTER = 189
CAP_XSAVE2 = 208

# why a vCPU left the guest
EXIT_IO = 2
EXIT_MMIO = 6
EXIT_SHUTDOWN = 8
EXIT_FAIL_ENTRY = 9
EXIT_INTR = 10
EXIT_INTERNAL_ERROR = 17

MEM_LOG_DIRTY_PAGES = 1
IRQFD_DEASSIGN = 1
IOEVENTFD_DEASSIGN = 4
ROUTING_IRQCHIP, ROUTING_MSI = 1, 2
CHIP_PIC_MASTER, CHIP_PIC_SLAVE, CHIP_IOAPIC = 0, 1, 2
CPUID_INDEX_SIGNIFICANT = 1
MP_STATE_RUNNABLE = 0
MSR_FILTER_READ, MSR_FILTER_WRITE = 1, 2
MSR_FILTER_MAX_RANGES = 16

# structures of fixed size that are only saved and restored, in bytes
LAPIC_BYTES = 1024
IRQCHIP_BYTES = 520
VCPU_EVENTS_BYTES = 64
DEBUGREGS_BYTES = 128
XSAVE_BYTES = 4096
XCRS_BYTES = 392
MP_STATE_BYTES = 4

# offsets in struct kvm_run, which the kernel shares with us
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = 8
RUN_EXIT = 32  # the union that says more about the exit
RUN_MMIO_DATA = 40


class MemoryRegion(ctypes.Structure):
    """struct kvm_userspace_memory_region."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class DirtyLog(ctypes.Structure):
    """struct kvm_dirty_log."""

    _fields_ = (("slot", c_uint32), ("padding", c_uint32), ("dirty_bitmap", c_uint64))


_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)))


class Regs(ctypes.Structure):
    """struct kvm_regs."""

    _fields_ = tuple((name, c_uint64) for name in (*_GENERAL, "rip", "rflags"))


class Segment(ctypes.Structure):
    """struct kvm_segment."""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *((name, c_uint8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable")),
        ("padding", c_uint8),
    )


class Dtable(ctypes.Structure):
    """struct kvm_dtable."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


class Sregs(ctypes.Structure):
    """struct kvm_sregs."""

    _fields_ = (
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", Dtable),
        ("idt", Dtable),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    )


class CpuidEntry(ctypes.Structure):
    """struct kvm_cpuid_entry2."""

    _fields_ = (
        *((name, c_uint32) for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")),
        ("padding", c_uint32 * 3),
    )


class MsrEntry(ctypes.Structure):
    """struct kvm_msr_entry."""

    _fields_ = (("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64))


class MsrFilterRange(ctypes.Structure):
    """struct kvm_msr_filter_range; a bit that is 0 in the bitmap refuses the access."""

    _fields_ = (("flags", c_uint32), ("nmsrs", c_uint32), ("base", c_uint32), ("bitmap", c_uint64))


class MsrFilter(ctypes.Structure):
    """struct kvm_msr_filter; flags 0: what is in no range is allowed."""

    _fields_ = (("flags", c_uint32), ("ranges", MsrFilterRange * MSR_FILTER_MAX_RANGES))


class Irqfd(ctypes.Structure):
    """struct kvm_irqfd."""

    _fields_ = (
        *((name, c_uint32) for name in ("fd", "gsi", "flags", "resamplefd")),
        ("padding", c_uint8 * 16),
    )


class Ioeventfd(ctypes.Structure):
    """struct kvm_ioeventfd; length 0: a write of any size."""

    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("length", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("padding", c_uint8 * 36),
    )


class RoutingEntry(ctypes.Structure):
    """struct kvm_irq_routing_entry; ``words`` are (chip, pin) or (address, address high, data)."""

    _fields_ = (
        *((name, c_uint32) for name in ("gsi", "type", "flags", "padding")),
        ("words", c_uint32 * 8),
    )


class ClockData(ctypes.Structure):
    """struct kvm_clock_data."""

    _fields_ = (
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("padding0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("padding", c_uint32 * 4),
    )


SIZES = {
    MemoryRegion: 32,
    DirtyLog: 16,
    Regs: 144,
    Segment: 24,
    Dtable: 16,
    Sregs: 312,
    CpuidEntry: 40,
    MsrEntry: 16,
    MsrFilterRange: 24,
    MsrFilter: 392,
    Irqfd: 32,
    Ioeventfd: 64,
    RoutingEntry: 48,
    ClockData: 48,
}
for _structure, _size in SIZES.items():
    assert ctypes.sizeof(_structure) == _size, _structure
