"""The life of a thin VMM's process, as its owner sees it over the control socket."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.contract.thin_vmm import micro_guest as guest
from tests.contract.thin_vmm.micro_guest import TICKING

from duovisor.hypervisor.qmp import Qmp

if TYPE_CHECKING:
    from tests.contract.thin_vmm.conftest import StartVmm


def test_guest_speaks_and_switches_itself_off(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.say("hello") + guest.power_off() + guest.halt())
    assert vmm.ask("query-status") == {"status": "prelaunch", "running": False}
    vmm.ask("cont")
    vmm.wait_said(b"hello")
    assert vmm.wait_event("SHUTDOWN") == {"guest": True, "reason": "guest-shutdown"}
    assert vmm.wait() == 0
    assert vmm.events == ["RESUME", "SHUTDOWN"]


def test_nothing_runs_before_cont(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.power_off() + guest.halt())
    assert vmm.ask("x-duovisor-exits") == {"io": 0, "mmio": 0, "other": 0, "unclaimed": 0}


@pytest.mark.parametrize("cpus", [1, 4])
def test_stop_and_cont(start_vmm: StartVmm, cpus: int) -> None:
    vmm = start_vmm(TICKING, cpus=cpus)
    vmm.ask("cont")
    for _ in range(5):
        vmm.wait_said(b"p")
        vmm.ask("stop")
        assert vmm.ask("query-status") == {"status": "paused", "running": False}
        exits = vmm.ask("x-duovisor-exits")
        assert vmm.ask("x-duovisor-exits") == exits
        vmm.ask("cont")
        vmm.wait_said(b"abcdefghijklmnop")  # not a step was lost or done twice
    assert vmm.events == ["RESUME", *["STOP", "RESUME"] * 5]


def test_reset_by_the_owner_begins_anew(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.say("begin") + guest.spin())
    vmm.ask("cont")
    vmm.wait_said(b"begin")
    vmm.ask("system_reset")
    vmm.wait_said(b"begin")
    assert vmm.events == ["RESUME", "RESET"]


def test_a_stopped_guest_stays_stopped_over_a_reset(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.say("begin") + guest.spin())
    vmm.ask("cont")
    vmm.wait_said(b"begin")
    vmm.ask("stop")
    vmm.ask("system_reset")
    assert vmm.ask("query-status")["status"] == "prelaunch"
    vmm.ask("cont")
    vmm.wait_said(b"begin")


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(guest.reset() + guest.halt(), id="reset register"),
        pytest.param(b"\x0f\x0b", id="triple fault"),  # ud2 without an interrupt table
    ],
)
def test_reset_by_the_guest_begins_anew(start_vmm: StartVmm, code: bytes) -> None:
    vmm = start_vmm(guest.say("begin") + code)
    vmm.ask("cont")
    for _ in range(3):
        vmm.wait_said(b"begin")
        assert vmm.wait_event("RESET") == {"guest": True, "reason": "guest-reset"}


def test_a_guest_that_panics_is_stopped(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.out(guest.PANIC_PORT, 1) + guest.spin())
    vmm.ask("cont")
    assert vmm.wait_event("GUEST_PANICKED") == {"action": "pause"}
    vmm.wait_event("STOP")
    assert vmm.ask("query-status") == {"status": "guest-panicked", "running": False}
    assert "cannot go on" in vmm.ask("cont")
    vmm.ask("system_reset")
    assert vmm.ask("cont") == {}


def test_quit(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.spin())
    vmm.ask("cont")
    vmm.ask("quit")
    assert vmm.events == ["RESUME", "SHUTDOWN"]
    assert vmm.wait() == 0


def test_sigterm_is_a_quit(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.spin())
    vmm.ask("cont")
    vmm.process.send_signal(signal.SIGTERM)
    assert vmm.wait_event("SHUTDOWN") == {"guest": False, "reason": "host-signal"}
    assert vmm.wait() == 0


async def test_the_client_that_drives_qemu_drives_it_too(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.say("x") + guest.spin())
    vmm.disconnect()
    for status in ("prelaunch", "running"):  # and the next client, as an owner that adopts
        qmp = Qmp("micro")
        await qmp.connect(vmm.path)
        assert await qmp.query_status() == status
        await qmp.cont()
        await qmp.disconnect()
    await qmp.connect(vmm.path)
    await qmp.stop()
    assert await qmp.next_event() == ("STOP", {})
    await qmp.quit()
    await qmp.wait_closed()
    assert [name for name, _ in qmp.pending_events()] == ["SHUTDOWN"]
    await qmp.disconnect()
    assert vmm.process.wait(guest.TIMEOUT_S) == 0


@pytest.mark.parametrize("cpus", [1, 3])
def test_a_saved_guest_goes_on_where_it_was(start_vmm: StartVmm, tmp_path: Path, cpus: int) -> None:
    first = start_vmm(TICKING, cpus=cpus)
    first.ask("cont")
    first.wait_said(b"abcdefg")
    first.ask("stop")
    state = os.open(tmp_path / "state", os.O_CREAT | os.O_WRONLY)
    first.ask("getfd", [state], fdname="saved")
    assert first.ask("x-duovisor-save", fdname="saved") == {}
    os.close(state)
    first.process.kill()
    first.process.wait()
    said = first.read_rest() or b"g"
    second = start_vmm(guest.halt(), cpus=cpus, state=tmp_path / "state")  # the code is in the memory
    assert second.ask("query-status")["status"] == "paused"
    second.ask("cont")
    following = (said[-1] - ord("a") + 1) % 16 + ord("a")
    assert second.read_debug()[0] == following
    second.wait_said(b"abcdefghijklmnop")


def test_a_running_guest_is_not_saved(start_vmm: StartVmm) -> None:
    vmm = start_vmm(guest.spin())
    vmm.ask("cont")
    read, write = os.pipe()
    vmm.ask("getfd", [write], fdname="saved")
    assert vmm.ask("x-duovisor-save", fdname="saved") == "only a stopped machine can be saved: it is running"
    assert vmm.ask("x-duovisor-save", fdname="saved") == "no descriptor was sent as saved"
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)


@pytest.mark.parametrize("state", [b"", b"{}", b'{"cpus": 2}', b"[]", b"{"])
def test_a_broken_state_is_refused(start_vmm: StartVmm, tmp_path: Path, state: bytes) -> None:
    (tmp_path / "memory").write_bytes(bytes(guest.MEMORY_MIB << 20))
    (tmp_path / "state").write_bytes(state)
    vmm = start_vmm.start(guest.halt(), state=tmp_path / "state")
    assert "saved state" in vmm.last_words()
    assert vmm.wait() == 1


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"cpu_model": "486"}, "486 is no processor model"),
        ({"cpus": 17}, "17 processors cannot be had: 1 to 16"),
        ({"memory_mib": 64}, "the memory file is smaller than 64 MiB"),
        ({"kernel": Path("/dev/null")}, "the kernel is neither a bzImage nor an ELF file"),
        ({"command_line": "x" * 2048}, "the command line has more than 2047 bytes"),
        ({"colour": "red"}, "the configuration cannot be read"),
    ],
)
def test_a_configuration_that_cannot_be(
    start_vmm: StartVmm, config: dict[str, object], complaint: str
) -> None:
    vmm = start_vmm.start(guest.halt(), **config)
    assert complaint in vmm.last_words()
    assert vmm.wait() == 1
