"""What a guest can do to a thin VMM, and what the VMM could do to the host: as good as nothing."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.contract.thin_vmm import micro_guest as guest

if TYPE_CHECKING:
    from tests.contract.thin_vmm.conftest import StartVmm
    from tests.contract.thin_vmm.micro_guest import MicroVmm

# the first 4,096 ports, in all three sizes, but for those that switch off, reset or panic
ALL_PORTS = (
    b"\x31\xd2"  # xor edx, edx
    b"\x66\x81\xfa\x00\x06\x72\x07\x66\x81\xfa\x10\x06\x72\x13"  # 1: skip 0x600 to 0x60f
    b"\x66\x81\xfa\x05\x05\x74\x0c"  # and the panic port
    b"\xec\x66\xed\xed\xee\x66\xef\xef\x90\x90\x90\x90"  # in and out of al, ax, eax
    b"\x66\xff\xc2\x66\x81\xfa\x00\x10\x72\xd5"  # inc dx; cmp dx, 0x1000; jb 1b
)


def read_memory_kib(vmm: MicroVmm) -> int:
    """The process's own memory."""
    status = Path(f"/proc/{vmm.process.pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


def test_every_thread_is_behind_the_filter(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.spin(), cpus=2)
    threads = list(Path(f"/proc/{vmm.process.pid}/task").iterdir())
    assert len(threads) == 3
    for thread in threads:
        status = (thread / "status").read_text()
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status


def test_a_guest_that_touches_all_ports(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.say("begin") + ALL_PORTS + guest.say("done") + guest.spin())
    vmm.ask("cont")
    vmm.wait_said(b"begin")
    before_kib = read_memory_kib(vmm)
    vmm.wait_said(b"done")
    assert read_memory_kib(vmm) < before_kib + 256
    assert vmm.ask("x-duovisor-exits")["unclaimed"] > 20_000


def test_what_it_prints_early_is_bounded(start_vmm: StartVmm) -> None:
    # mov esi, 1 MiB; mov ecx, 80 Ki; mov dx, port; rep outsb
    flood = b"\xbe\x00\x00\x10\x00\xb9\x00\x40\x01\x00\x66\xba\xf8\x03\xf3\x6e"
    vmm = start_vmm(flood + guest.power_off() + guest.halt())
    vmm.ask("cont")
    written = 0
    while data := vmm.read_debug():
        written += len(data)
    assert written == 64 << 10


@pytest.mark.parametrize("seed", range(12))
def test_random_code_costs_at_most_its_own_machine(start_vmm: StartVmm, seed: int) -> None:
    """It resets, switches off, stops with an error, or runs on; the VMM answers all the same."""
    code = random.Random(seed).randbytes(60 << 10)
    vmm = start_vmm(code, cpus=2)
    vmm.ask("cont")
    for _ in range(20):
        vmm.ask("query-status")
    before_kib = read_memory_kib(vmm)
    for command in ("stop", "system_reset", "cont", "stop"):
        vmm.ask(command)
    assert read_memory_kib(vmm) < before_kib + 512
    vmm.ask("quit")
    assert vmm.wait() == 0


def test_a_client_that_talks_nonsense_is_answered(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.spin())
    for line in (b"{}\n", b"[]\n", b"nonsense\n", b'{"execute": 3}\n', b'{"execute": "getfd"}\n', b"\xff\n"):
        vmm.control.sendall(line)
        assert b'"error"' in vmm._lines.readline()
    assert vmm.ask("getfd", fdname="x") == "no descriptor came with getfd"
    vmm.control.sendall(b"x" * (1 << 17))  # a line without end
    with contextlib.suppress(ConnectionResetError):
        assert vmm._lines.readline() == b""
    assert vmm.process.poll() is None
