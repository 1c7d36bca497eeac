"""The registers with which the first processor begins.

64-bit: long mode with the first GiB mapped onto itself (boot.rst, "64-bit Boot Protocol"). PVH: flat 32-bit
protected mode without paging (pvh.pandoc). Bits and descriptors: Intel SDM volume 3, 2.5, 3.4.5, 4.5, 11.11.
"""

from __future__ import annotations

import struct

from duovisor.hypervisor.thin import kvm_abi as abi
from duovisor.hypervisor.thin import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.hypervisor.thin.boot import Entry
    from duovisor.hypervisor.thin.kvm_vcpu import Vcpu

_CR0_PE, _CR0_ET, _CR0_PG, _CR4_PAE, _EFER_LME, _EFER_LMA = 1, 1 << 4, 1 << 31, 1 << 5, 1 << 8, 1 << 10
_RFLAGS = 2  # bit 1 is always set
_CODE_SELECTOR, _DATA_SELECTOR = 0x10, 0x18  # __BOOT_CS, __BOOT_DS
_CODE, _DATA, _TSS = 11, 3, 11
_PRESENT_WRITABLE, _LARGE_PAGE = 3, 1 << 7
_MSR_MTRR_DEF_TYPE, _MTRR_ON_WRITE_BACK = 0x2FF, 1 << 11 | 6  # as firmware leaves them
_MSR_MISC_ENABLE, _FAST_STRING = 0x1A0, 1


def write_entry(vcpu: Vcpu, low: memoryview, entry: Entry) -> None:
    """Let ``vcpu`` begin at ``entry``; writes page tables and descriptors into low memory."""
    regs = abi.Regs()
    regs.rip, regs.rflags, regs.rsp = entry.address, _RFLAGS, layout.BOOT_STACK
    if entry.is_64_bit:
        regs.rsi = entry.info
        write_page_tables(low)
    else:
        regs.rbx = entry.info
    vcpu.write_regs(regs)
    vcpu.write_sregs(build_sregs(vcpu.read_sregs(), low, is_64_bit=entry.is_64_bit))


def write_defaults(vcpu: Vcpu) -> None:
    """MSRs that firmware would have set, on every processor; one that it has not is left."""
    vcpu.write_msrs({_MSR_MTRR_DEF_TYPE: _MTRR_ON_WRITE_BACK, _MSR_MISC_ENABLE: _FAST_STRING})


def write_page_tables(low: memoryview) -> None:
    """One page each of PML4, PDPT and page directory: the first GiB in pages of 2 MiB."""
    pml4, pdpt, directory = (layout.PAGE_TABLES + 0x1000 * level for level in range(3))
    struct.pack_into("<Q", low, pml4, pdpt | _PRESENT_WRITABLE)
    struct.pack_into("<Q", low, pdpt, directory | _PRESENT_WRITABLE)
    pages = [place << 21 | _LARGE_PAGE | _PRESENT_WRITABLE for place in range(512)]
    struct.pack_into("<512Q", low, directory, *pages)


def build_sregs(sregs: abi.Sregs, low: memoryview, *, is_64_bit: bool) -> abi.Sregs:
    """Segments, control registers and descriptor table; what ``sregs`` holds besides stays."""
    code = abi.Segment(0, 0xFFFF_FFFF, _CODE_SELECTOR, _CODE, 1, 0, not is_64_bit, 1, is_64_bit, 1)
    data = abi.Segment(0, 0xFFFF_FFFF, _DATA_SELECTOR, _DATA, 1, 0, 1, 1, 0, 1)
    sregs.cs = code
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.tr = abi.Segment(0, 0x67, 0, _TSS, 1)
    table = (0, 0, _build_descriptor(code), _build_descriptor(data))
    struct.pack_into("<4Q", low, layout.GDT, *table)
    sregs.gdt = abi.Dtable(layout.GDT, 8 * len(table) - 1)
    sregs.idt = abi.Dtable(0, 0)
    if is_64_bit:
        sregs.cr3 = layout.PAGE_TABLES
        sregs.cr4 = _CR4_PAE
        sregs.cr0 = _CR0_PE | _CR0_ET | _CR0_PG
        sregs.efer = _EFER_LME | _EFER_LMA
    else:
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = _CR0_PE | _CR0_ET, 0, 0, 0
    return sregs


def _build_descriptor(segment: abi.Segment) -> int:
    """The entry of the descriptor table: base 0, limit 4 GiB."""
    access = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.l << 1 | segment.db << 2 | segment.g << 3
    return int(0xFFFF | access << 40 | 0xF << 48 | flags << 52)
