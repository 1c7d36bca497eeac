"""Drivers of a running guest die, hang, are replaced or given up: the guest goes on, and it is told why."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.vm.service_host import BOOT_TIMEOUT_S

from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.controlling.supervision.backoff import Backoff
from duovisor.controlling.supervision.records import DeviceState, DriverEvent, DriverEventKind
from duovisor.hypervisor.lifecycle import State
from duovisor.process import ProgramFailedError, run
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from duovisor.controlling.supervision.device import DeviceSupervisor
    from duovisor.directories import Directories

    from .conftest import Guest

    Boot = Callable[..., Awaitable[Guest]]

KINDS = DriverEventKind
BARREN_DEATHS = 30  # in a row; sixty kills that nothing was got done between end a device
LEAKS_ONLY = 3  # qemu-img(1): space that is allocated and not used, which a kill may leave


class Story:
    """What was told of drivers, and waiting for more of it."""

    def __init__(self) -> None:
        self.events: list[DriverEvent] = []
        self._more = asyncio.Event()

    def tell(self, event: DriverEvent) -> None:
        self.events.append(event)
        self._more.set()

    def count(self, kind: DriverEventKind) -> int:
        return sum(event.kind is kind for event in self.events)

    async def wait(self, kind: DriverEventKind, *, count: int = 1, timeout_s: float = 120) -> DriverEvent:
        async with asyncio.timeout(timeout_s):
            while len(found := [event for event in self.events if event.kind is kind]) < count:
                self._more.clear()
                await self._more.wait()
        return found[count - 1]


@pytest.fixture
def story() -> Story:
    return Story()


async def boot_with_disk(
    boot: Boot, scratch: Path, story: Story, **disk: Any
) -> tuple[Guest, DeviceSupervisor]:
    disks = [{"path": str(scratch), **disk}]
    guest = await boot(Design.MICROKERNELIZED, tell=story.tell, disks=disks)
    return guest, guest.machine.devices["disk0"]


async def wait_spare(device: DeviceSupervisor) -> None:
    """The spare of the moment is there; killing goes on without it too, but then another path is taken."""
    async with asyncio.timeout(120):
        while device.describe().spare_pid is None:
            await asyncio.sleep(0.01)


async def run_until(guest: Guest, enough: Callable[[], bool], *, size_mib: int) -> str:
    """Write and verify until enough has happened meanwhile: ``ok``, or what is wrong."""
    while True:
        said = await run_verify(guest.probe, "/dev/vda", size_mib=size_mib)
        if said != "ok" or enough():
            return said


def kill(pid: int | None, number: signal.Signals = signal.SIGKILL) -> None:
    assert pid is not None
    os.kill(pid, number)


async def test_drivers_killed_under_verified_load(boot: Boot, scratch: Path, story: Story) -> None:
    guest, device = await boot_with_disk(boot, scratch, story)
    rng = random.Random(4)
    kills = 0
    load = asyncio.create_task(run_until(guest, lambda: kills >= 12, size_mib=48))
    while not load.done():
        await asyncio.sleep(rng.uniform(0.0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            if (pid := device.describe().pid) is not None:
                kill(pid)
                kills += 1
    assert await load == "ok"
    assert kills >= 10
    died = [event for event in story.events if event.kind is KINDS.DIED]
    assert "was killed by SIGKILL" in died[0].message
    recovered = await story.wait(KINDS.RECOVERED, count=len(died))
    assert "ms" in recovered.message
    assert (await guest.output("dmesg | grep -ciE 'I/O error|reset|is not a head' || true")).strip() == "0"
    assert device.describe().deaths >= len(died)


async def test_driver_and_spare_killed_at_once(boot: Boot, scratch: Path, story: Story) -> None:
    guest, device = await boot_with_disk(boot, scratch, story)
    load = asyncio.create_task(run_verify(guest.probe, "/dev/vda", size_mib=16))
    for count in (1, 2, 3):
        await wait_spare(device)
        status = device.describe()
        kill(status.spare_pid)
        kill(status.pid)
        await story.wait(KINDS.RECOVERED, count=count)
    assert await load == "ok"


async def test_a_hung_driver_is_replaced(boot: Boot, scratch: Path, story: Story) -> None:
    guest, device = await boot_with_disk(boot, scratch, story, driver_hang_s=1.0)
    await wait_spare(device)
    kill(device.describe().pid, signal.SIGSTOP)
    assert await run_verify(guest.probe, "/dev/vda", size_mib=4) == "ok"
    hung = await story.wait(KINDS.HUNG)
    assert "queue 0 made no progress for" in hung.message
    assert "SIGKILL" in (await story.wait(KINDS.DIED)).message


async def test_drivers_are_replaced_on_demand(boot: Boot, scratch: Path, story: Story) -> None:
    guest, device = await boot_with_disk(boot, scratch, story)
    load = asyncio.create_task(run_verify(guest.probe, "/dev/vda", size_mib=32))
    pids = {device.describe().pid}
    for latest in (False, True, False):
        await asyncio.sleep(0.5)
        done = await device.replace(latest=latest)
        assert done.old_pid in pids
        pids.add(done.new_pid)
        assert done.old_code == done.new_code
        assert done.pause_ms > 0
    assert await load == "ok"
    assert len(pids) == 4
    assert not [event for event in story.events if event.kind is KINDS.DIED]


async def test_a_driver_dies_while_the_vm_is_paused(boot: Boot, scratch: Path, story: Story) -> None:
    guest, device = await boot_with_disk(boot, scratch, story)
    await guest.machine.vmm.pause()
    for count in (1, 2):
        await wait_spare(device)
        kill(device.describe().pid)
        await story.wait(KINDS.RECOVERED, count=count)
    await guest.machine.vmm.resume()
    assert await run_verify(guest.probe, "/dev/vda", size_mib=4) == "ok"


async def test_drivers_die_while_the_guest_boots(boot: Boot, scratch: Path, story: Story) -> None:
    guest, device = await boot_with_disk(boot, scratch, story)
    guest.probe.boot_report = None
    await guest.machine.vmm.reset()
    booting = asyncio.create_task(guest.probe.wait_booted(BOOT_TIMEOUT_S))
    rng = random.Random(5)
    while not booting.done():
        # Firmware and kernel ask for nothing for seconds: sixty kills meanwhile would give the device up.
        await asyncio.sleep(rng.uniform(0.2, 1.2))
        assert device.describe().state is not DeviceState.FAILED
        if device.backoff.deaths >= BARREN_DEATHS:
            continue
        with contextlib.suppress(ProcessLookupError):
            if (pid := device.describe().pid) is not None:
                kill(pid)
    await booting
    await wait_spare(device)
    assert await run_verify(guest.probe, "/dev/vda", size_mib=4) == "ok"


async def kill_until_given_up(device: DeviceSupervisor) -> None:
    """Kill every driver of an idle guest as soon as it serves: none gets anywhere."""
    device.backoff = Backoff(deaths_max=2)  # twenty kills
    async with asyncio.timeout(300):
        while not device.failed.is_set():
            for pid in device.pids:
                with contextlib.suppress(ProcessLookupError):
                    kill(pid)
            await asyncio.sleep(0.05)


async def test_a_device_that_is_given_up_pauses_its_vm(boot: Boot, scratch: Path, story: Story) -> None:
    guest, device = await boot_with_disk(boot, scratch, story, on_driver_failure="pause")
    await kill_until_given_up(device)
    failed = await story.wait(KINDS.FAILED)
    assert "its drivers died" in failed.message
    assert "the VM is paused; duovisor driver restart t-micro disk0 tries again" in failed.message
    assert guest.machine.vmm.lifecycle.state is State.PAUSED
    assert device.describe().state is DeviceState.FAILED
    await device.replace(latest=False)
    assert guest.machine.vmm.lifecycle.history[-2:] == [State.PAUSED, State.RUNNING]
    assert await run_verify(guest.probe, "/dev/vda", size_mib=4) == "ok"


async def test_a_device_that_is_given_up_reports_errors(boot: Boot, scratch: Path, story: Story) -> None:
    guest, device = await boot_with_disk(boot, scratch, story, on_driver_failure="report")
    await kill_until_given_up(device)
    assert "the guest is told of errors" in (await story.wait(KINDS.FAILED)).message
    assert guest.machine.vmm.state is State.RUNNING
    done = await guest.probe.run("dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct", timeout_s=120)
    assert b"Input/output error" in done.output
    await device.replace(latest=False)
    assert await run_verify(guest.probe, "/dev/vda", size_mib=4) == "ok"


@pytest.fixture
def qcow2(folders: Directories) -> Path:
    path = folders.state / "disk.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M"])
    return path


async def test_a_qcow2_disk_whose_driver_and_format_process_are_killed(
    boot: Boot, qcow2: Path, story: Story
) -> None:
    guest, device = await boot_with_disk(boot, qcow2, story, format="qcow2")
    rng = random.Random(6)
    enough = [(KINDS.FORMAT_RECOVERED, 2), (KINDS.RECOVERED, 2)]
    load = asyncio.create_task(
        run_until(guest, lambda: all(story.count(kind) >= count for kind, count in enough), size_mib=32)
    )
    while not load.done():
        await asyncio.sleep(rng.uniform(0.1, 0.6))
        formats = [each for each in guest.machine.description.processes if each.role == "format process"]
        victims = [device.describe().pid, formats[0].pid]
        for pid in victims if rng.random() < 0.3 else [rng.choice(victims)]:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    kill(pid)
    assert await load == "ok"
    assert (await guest.output("dmesg | grep -ciE 'I/O error|reset|is not a head' || true")).strip() == "0"
    assert await guest.machine.shut_down()
    await guest.machine.clean_up()
    try:
        run(["qemu-img", "check", "-q", "-f", "qcow2", str(qcow2)])
    except ProgramFailedError as error:
        if error.returncode != LEAKS_ONLY:
            raise
