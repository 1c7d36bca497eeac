"""Runs a 7-byte guest through KVM's ioctls and prints how long it took; the child process of ``kvm``.

A script of its own, run by path and importing nothing of duovisor, so that a KVM that hangs or kills its
caller takes this process and not ours. Prints one JSON document: ``{"ns_per_iteration": 0.4}``, or
``{"refused": "..."}`` with what KVM refused.

Layout and ioctls: Linux Documentation/virt/kvm/api.rst; 64-bit mode: Intel SDM volume 3, 10.8.5.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID = 0xC008AE05
KVM_CREATE_VCPU = 0xAE41
KVM_SET_TSS_ADDR = 0xAE47
KVM_RUN = 0xAE80
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_REGS = 0x4090AE82
KVM_SET_CPUID2 = 0x4008AE90
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84

API_VERSION = 12
EXIT_IO, EXIT_HLT = 2, 5
EXIT_NAMES = {0: "unknown", 6: "mmio", 8: "shutdown", 9: "fail-entry", 17: "internal-error"}

CPUID_ENTRIES, CPUID_ENTRY_BYTES = 256, 40  # KVM_MAX_CPUID_ENTRIES, struct kvm_cpuid_entry2
MEMORY_BYTES = 64 << 10
CODE, PML4, PDPT, PAGE_DIRECTORY = 0x8000, 0x1000, 0x2000, 0x3000
TSS_ADDRESS = 0x7FFB_D000  # fcntl.ioctl takes a signed int: below 2 GiB
PRESENT_WRITABLE, LARGE_PAGE = 0x3, 0x80
PORT = 0x80
PROGRAM = bytes((0xFF, 0xC9, 0x75, 0xFC, 0xE6, PORT, 0xF4))  # 1: dec ecx; jnz 1b; out PORT, al; hlt

CR0_PE_ET_PG, CR4_PAE, EFER_LME_LMA = 0x8000_0011, 0x20, 0x500
SEGMENT = struct.Struct("<QIH10B")  # struct kvm_segment
CODE_SEGMENT = SEGMENT.pack(0, 0xFFFF_FFFF, 0x08, 11, 1, 0, 0, 1, 1, 1, 0, 0, 0)
DATA_SEGMENT = SEGMENT.pack(0, 0xFFFF_FFFF, 0x10, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
CR0_OFFSET, CR3_OFFSET, CR4_OFFSET, EFER_OFFSET = 224, 240, 248, 264  # in struct kvm_sregs
RCX_INDEX, RIP_INDEX, RFLAGS_INDEX = 2, 16, 17  # in struct kvm_regs

FIRST_ITERATIONS = 1_000
LAST_ITERATIONS = 300_000_000
GROWTH = 8
ENOUGH_NS = 4_000_000  # a run this long is measured well
ENOUGH_TIMES_FIXED = 10  # and this much longer than entering and leaving the guest takes
ROUNDS = 3  # the best counts: the host may be busy


class Refusal(Exception):
    """KVM did not run the guest; says what it did instead."""


def build_sregs(sregs: bytes) -> bytearray:
    """``struct kvm_sregs`` for 64-bit mode with the page tables of ``fill_memory``; the rest as it was."""
    changed = bytearray(sregs)
    changed[:24] = CODE_SEGMENT
    for index in range(1, 6):  # ds, es, fs, gs, ss
        changed[index * 24 : (index + 1) * 24] = DATA_SEGMENT
    for offset, value in (
        (CR0_OFFSET, CR0_PE_ET_PG), (CR3_OFFSET, PML4), (CR4_OFFSET, CR4_PAE), (EFER_OFFSET, EFER_LME_LMA),
    ):  # fmt: skip
        struct.pack_into("<Q", changed, offset, value)
    return changed


def read_supported_cpuid(kvm: int) -> bytearray:
    """``struct kvm_cpuid2`` with all that KVM can give a guest on this processor."""
    cpuid = bytearray(8 + CPUID_ENTRIES * CPUID_ENTRY_BYTES)  # over 1,024 bytes fcntl wants it mutable
    struct.pack_into("<I", cpuid, 0, CPUID_ENTRIES)
    fcntl.ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid)
    return cpuid


def fill_memory(memory: mmap.mmap) -> None:
    """Write the program and page tables that map the first 2 MiB onto themselves."""
    memory[CODE : CODE + len(PROGRAM)] = PROGRAM
    struct.pack_into("<Q", memory, PML4, PDPT | PRESENT_WRITABLE)
    struct.pack_into("<Q", memory, PDPT, PAGE_DIRECTORY | PRESENT_WRITABLE)
    struct.pack_into("<Q", memory, PAGE_DIRECTORY, LARGE_PAGE | PRESENT_WRITABLE)


class Guest:
    """One vCPU with 64 KiB of memory."""

    def __init__(self, device: str) -> None:
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        version = fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0)
        if version != API_VERSION:
            raise Refusal(f"KVM speaks API version {version}, not {API_VERSION}")
        vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        fcntl.ioctl(vm, KVM_SET_TSS_ADDR, TSS_ADDRESS)
        self.memory = mmap.mmap(-1, MEMORY_BYTES)
        fill_memory(self.memory)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, MEMORY_BYTES, address))
        self.vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
        self.shared = mmap.mmap(self.vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
        # newer kernels (seen: 6.12) refuse 64-bit mode to a processor whose CPUID does not have it
        fcntl.ioctl(self.vcpu, KVM_SET_CPUID2, read_supported_cpuid(kvm))
        sregs = fcntl.ioctl(self.vcpu, KVM_GET_SREGS, bytes(312))
        fcntl.ioctl(self.vcpu, KVM_SET_SREGS, bytes(build_sregs(sregs)))

    def run_loop(self, iterations: int) -> int:
        """Run the whole program once; return the nanoseconds until its ``out``."""
        registers = [0] * 18
        registers[RCX_INDEX], registers[RIP_INDEX], registers[RFLAGS_INDEX] = iterations, CODE, 0x2
        fcntl.ioctl(self.vcpu, KVM_SET_REGS, struct.pack("<18Q", *registers))
        begin = time.perf_counter_ns()
        self._run_until(EXIT_IO)
        took_ns = time.perf_counter_ns() - begin
        self._run_until(EXIT_HLT)
        return took_ns

    def _run_until(self, wanted: int) -> None:
        fcntl.ioctl(self.vcpu, KVM_RUN, 0)
        (reason,) = struct.unpack_from("<I", self.shared, 8)  # kvm_run.exit_reason
        if reason != wanted:
            raise Refusal(f"KVM left the guest with exit {EXIT_NAMES.get(reason, reason)}")


def measure(run_loop: Callable[[int], int]) -> float:
    """Nanoseconds per iteration, without what entering and leaving the guest takes.

    Nested in an emulated machine that fixed part is 0.1 to 5 ms, the first time most: without the first
    run and the subtraction, real hardware virtualization was seen at 138 ns per iteration there.
    """
    run_loop(1)
    fixed_ns = find_best(run_loop, 1)
    enough_ns = max(ENOUGH_NS, ENOUGH_TIMES_FIXED * fixed_ns)
    iterations = FIRST_ITERATIONS
    while (best_ns := find_best(run_loop, iterations)) < enough_ns and iterations < LAST_ITERATIONS:
        iterations *= GROWTH
    return max(best_ns - fixed_ns, 0) / iterations


def find_best(run_loop: Callable[[int], int], iterations: int) -> int:
    """The nanoseconds of the fastest of some runs."""
    return min(run_loop(iterations) for _ in range(ROUNDS))


def main(device: str) -> None:
    """Run the guest on ``device`` and print the outcome."""
    try:
        outcome: dict[str, object] = {"ns_per_iteration": measure(Guest(device).run_loop)}
    except Refusal as refusal:
        outcome = {"refused": str(refusal)}
    except OSError as error:
        outcome = {"refused": f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(sys.argv[1])
