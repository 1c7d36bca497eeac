"""KVM itself, in this process: a vCPU, memory in a file, and the log of the pages that it wrote."""

from __future__ import annotations

import os

import pytest

from duovisor.hypervisor.thin import kvm_abi as abi
from duovisor.hypervisor.thin.boot import Entry
from duovisor.hypervisor.thin.entry_state import write_entry
from duovisor.hypervisor.thin.errors import KvmError
from duovisor.hypervisor.thin.kvm import Kvm
from duovisor.hypervisor.thin.kvm_vcpu import Vcpu
from duovisor.hypervisor.thin.layout import KVM_PAGES, ZERO_PAGE
from duovisor.hypervisor.thin.memory import Memory

SIZE = 4 << 20
CODE = 0x100000
# mov byte [0x200123], 1; mov byte [0x3ff000], 1; out 0x80, al; jmp to the beginning
WRITING = bytes.fromhex("c6042523012000 01 c60425 00f03f00 01 e680 ebec")


@pytest.fixture
def kvm() -> Kvm:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("there is no KVM that this user may open")
    return Kvm()


def test_the_log_has_the_pages_that_were_written(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vm.set_internal_pages(KVM_PAGES)
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, SIZE)
    memory = Memory(descriptor, SIZE)
    memory.attach(vm)
    vcpu = Vcpu(vm, 0)
    vcpu.set_cpuid(kvm.read_cpuid())
    memory.low[CODE : CODE + len(WRITING)] = WRITING
    write_entry(vcpu, memory.low, Entry(CODE, ZERO_PAGE, is_64_bit=True))
    assert vcpu.run() == abi.EXIT_IO
    with pytest.raises(KvmError, match="memory slot 0 keeps no log of what is written"):
        memory.take_dirty_offsets(vm)
    memory.attach(vm, log_dirty=True)
    assert memory.take_dirty_offsets(vm) == []
    assert vcpu.run() == abi.EXIT_IO
    assert {0x200000, 0x3FF000} <= set(memory.take_dirty_offsets(vm))
    assert memory.take_dirty_offsets(vm) == []
    assert vcpu.run() == abi.EXIT_IO
    assert {0x200000, 0x3FF000} <= set(memory.take_dirty_offsets(vm))
    memory.attach(vm)
    assert vcpu.run() == abi.EXIT_IO
    assert bytes(memory.view[0x200123:0x200125]) == b"\1\0"
    vcpu.close()
    vm.close()
    kvm.close()
    os.close(descriptor)


def test_a_vcpu_that_is_asked_to_leave_does_so_at_once(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vcpu = Vcpu(vm, 0)
    vcpu.ask_to_leave(asked=True)
    assert vcpu.run() is None
    vcpu.close()
    vm.close()
    kvm.close()


def test_what_is_no_kvm() -> None:
    with pytest.raises(KvmError, match="cannot open /nowhere: No such file or directory"):
        Kvm("/nowhere")
    with pytest.raises(KvmError, match="/dev/null is no KVM: Inappropriate ioctl for device"):
        Kvm("/dev/null")
