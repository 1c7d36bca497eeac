"""One vCPU: running it, its registers, and its whole state as bytes.

Source: Documentation/virt/kvm/api.rst; each method names its request.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from duovisor.hypervisor.thin import kvm_abi as abi
from duovisor.hypervisor.thin.kvm import VirtualMachine, call, is_unsupported, make_list, read_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# restored in this order: the processor's mode before what depends on it, the local APIC (whose base is in
# sregs) before the deadline that an MSR holds, pending events last
_BLOBS = (
    ("xcrs", abi.GET_XCRS, abi.SET_XCRS, abi.XCRS_BYTES),
    ("sregs", abi.GET_SREGS, abi.SET_SREGS, 312),
    ("lapic", abi.GET_LAPIC, abi.SET_LAPIC, abi.LAPIC_BYTES),
    ("regs", abi.GET_REGS, abi.SET_REGS, 144),
    ("debugregs", abi.GET_DEBUGREGS, abi.SET_DEBUGREGS, abi.DEBUGREGS_BYTES),
    ("mp_state", abi.GET_MP_STATE, abi.SET_MP_STATE, abi.MP_STATE_BYTES),
    ("events", abi.GET_VCPU_EVENTS, abi.SET_VCPU_EVENTS, abi.VCPU_EVENTS_BYTES),
)
MSR_TSC = 0x10
MSR_TSC_DEADLINE = 0x6E0


class Vcpu:
    """A vCPU's descriptor and the page that the kernel shares about it; ``run_view`` is that page."""

    def __init__(self, vm: VirtualMachine, index: int) -> None:
        self.index = index
        self.descriptor = vm.create_vcpu(index)
        self._kvm = vm.kvm
        self.run_view = mmap.mmap(self.descriptor, vm.kvm.run_bytes)
        size = vm.kvm.check(abi.CAP_XSAVE2)
        self._xsave_bytes = max(size, abi.XSAVE_BYTES)
        self._xsave_request = abi.GET_XSAVE2 if size else abi.GET_XSAVE

    def run(self) -> int | None:
        """KVM_RUN until the guest leaves; why it left, None when it was asked to. Raises ``OSError``."""
        try:
            call(self.descriptor, abi.RUN, 0)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN):
                return None
            raise
        return int.from_bytes(self.run_view[abi.RUN_EXIT_REASON : abi.RUN_EXIT_REASON + 4], "little")

    def ask_to_leave(self, *, asked: bool) -> None:
        """From now on ``run`` finishes what is half done and returns at once, or no longer does."""
        self.run_view[abi.RUN_IMMEDIATE_EXIT] = asked

    def set_cpuid(self, entries: Sequence[abi.CpuidEntry]) -> None:
        """KVM_SET_CPUID2."""
        buffer = make_list(len(entries), abi.CpuidEntry)
        (abi.CpuidEntry * len(entries)).from_buffer(buffer, 8)[:] = list(entries)
        call(self.descriptor, abi.SET_CPUID2, buffer)

    def read_regs(self) -> abi.Regs:
        """KVM_GET_REGS."""
        regs = abi.Regs()
        call(self.descriptor, abi.GET_REGS, regs)
        return regs

    def write_regs(self, regs: abi.Regs) -> None:
        """KVM_SET_REGS."""
        call(self.descriptor, abi.SET_REGS, regs)

    def read_sregs(self) -> abi.Sregs:
        """KVM_GET_SREGS."""
        sregs = abi.Sregs()
        call(self.descriptor, abi.GET_SREGS, sregs)
        return sregs

    def write_sregs(self, sregs: abi.Sregs) -> None:
        """KVM_SET_SREGS."""
        call(self.descriptor, abi.SET_SREGS, sregs)

    def read_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """KVM_GET_MSRS; those that this vCPU has not are left out."""
        found: dict[int, int] = {}
        rest = list(indices)
        while rest:
            buffer = make_list(len(rest), abi.MsrEntry)
            entries = (abi.MsrEntry * len(rest)).from_buffer(buffer, 8)
            for entry, index in zip(entries, rest, strict=True):
                entry.index = index
            done = call(self.descriptor, abi.GET_MSRS, buffer)
            found |= {entry.index: entry.data for entry in read_list(buffer, abi.MsrEntry)[:done]}
            rest = rest[done + 1 :]  # it stops at the first that it refuses
        return found

    def write_msrs(self, values: Mapping[int, int]) -> list[int]:
        """KVM_SET_MSRS; returns those that were refused."""
        refused: list[int] = []
        rest = list(values.items())
        while rest:
            buffer = make_list(len(rest), abi.MsrEntry)
            (abi.MsrEntry * len(rest)).from_buffer(buffer, 8)[:] = [
                abi.MsrEntry(index, 0, value) for index, value in rest
            ]
            done = call(self.descriptor, abi.SET_MSRS, buffer)
            refused += [index for index, _ in rest[done : done + 1]]
            rest = rest[done + 1 :]
        return refused

    def tell_paused(self) -> None:
        """KVM_KVMCLOCK_CTRL: its watchdogs are to overlook the pause; a guest without kvmclock has none."""
        try:
            call(self.descriptor, abi.KVMCLOCK_CTRL, 0)
        except OSError as error:
            if not is_unsupported(error):
                raise

    def save(self) -> dict[str, bytes]:
        """The whole state, of a vCPU that is not running."""
        state = {}
        for name, read, _, size in _BLOBS:
            state[name] = self._read(read, size)
        state["xsave"] = self._read(self._xsave_request, self._xsave_bytes)
        msrs = self.read_msrs(self._kvm.read_msr_indices())
        state["msrs"] = b"".join(bytes(abi.MsrEntry(index, 0, value)) for index, value in msrs.items())
        return state

    def restore(self, state: Mapping[str, bytes], *, with_tsc: bool) -> list[int]:
        """Take on a saved state; returns the MSRs that were refused. ``with_tsc``: time stamps too.

        Raises ``ValueError`` when something is missing or of another size, ``OSError`` when KVM refuses.
        """
        sizes = {name: size for name, _, _, size in _BLOBS}
        if wrong := [name for name, size in sizes.items() if len(state.get(name, b"")) != size]:
            raise ValueError(f"the state of vCPU {self.index} has no sound {', '.join(wrong)}")
        if len(state.get("xsave", b"")) < abi.XSAVE_BYTES or len(state.get("msrs", b"")) % 16:
            raise ValueError(f"the state of vCPU {self.index} has no sound registers")
        self._write(abi.SET_XSAVE, state["xsave"].ljust(self._xsave_bytes, b"\0"))
        for name, _, write, _ in _BLOBS[:3]:
            self._write(write, state[name])
        msrs = parse_msrs(state["msrs"])
        if not with_tsc:
            msrs.pop(MSR_TSC, None)
        refused = self.write_msrs(msrs)
        for name, _, write, _ in _BLOBS[3:]:
            self._write(write, state[name])
        return refused

    def _read(self, request: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        call(self.descriptor, request, buffer)
        return buffer.raw

    def _write(self, request: int, data: bytes) -> None:
        call(self.descriptor, request, ctypes.create_string_buffer(data, len(data)))

    def close(self) -> None:
        self.run_view.close()
        os.close(self.descriptor)


def parse_msrs(data: bytes) -> dict[int, int]:
    """Saved MSRs, the deadline last: its timer starts by the time stamp counter."""
    entries = (abi.MsrEntry * (len(data) // 16)).from_buffer_copy(data)
    found = {entry.index: entry.data for entry in entries}
    if MSR_TSC_DEADLINE in found:
        found[MSR_TSC_DEADLINE] = found.pop(MSR_TSC_DEADLINE)
    return found
