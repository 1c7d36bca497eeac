"""Devices on the channel: a guest's driver, real back ends, and what happens when one of them goes."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from tests.unit.channel.echo_device import EchoDevice, LateDevice
from tests.unit.thin import virtual_pc as v
from tests.unit.thin.virtual_pc import GuestDriver, Pc, RunningDriver

from duovisor.channel import features as bits
from duovisor.channel.errors import ProtocolError
from duovisor.hypervisor.thin.ports import DeviceConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pc(tmp_path: Path) -> Iterator[Pc]:
    made = Pc(tmp_path)
    yield made
    made.close()


@pytest.fixture
def driver(pc: Pc) -> Iterator[RunningDriver]:
    running = pc.connect(EchoDevice(2))
    yield running
    running.kill()


@pytest.fixture
def guest(pc: Pc, driver: RunningDriver) -> Iterator[GuestDriver]:
    pc.enable()
    made = GuestDriver(pc)
    made.set_up()
    yield made
    made.close()


def test_a_guest_finds_and_uses_the_device(pc: Pc, guest: GuestDriver, driver: RunningDriver) -> None:
    assert guest.echo(b"hello") == b"olleh"
    assert guest.echo(b"second queue", queue=1) == b"eueuq dnoces"
    assert pc.read(v.DEVICE, 4).to_bytes(4, "little") == b"echo"
    assert isinstance(driver.device, EchoDevice)
    assert driver.device.seen_features & ~bits.PROTOCOL_FEATURES == guest.negotiate()


def test_rings_above_4_gib(pc: Pc, driver: RunningDriver) -> None:
    pc.enable()
    guest = GuestDriver(pc, high=True)
    guest.set_up()
    assert guest.echo(b"far away") == b"yawa raf"
    guest.close()


def test_what_is_offered(pc: Pc, driver: RunningDriver) -> None:
    pc.enable()
    guest = GuestDriver(pc)
    offered = guest.negotiate()
    assert offered == EchoDevice.features | bits.VERSION_1 | bits.RING_INDIRECT_DESC | bits.RING_EVENT_IDX
    guest.negotiate(features=offered | bits.LOG_ALL)
    assert not pc.status & v.FEATURES_OK
    guest.negotiate(features=offered & ~bits.VERSION_1)
    assert not pc.status & v.FEATURES_OK
    guest.close()


def test_an_interrupt_is_the_queues_message(pc: Pc, guest: GuestDriver) -> None:
    guest.queues[1].enable_interrupts()
    guest.submit(b"ask", queue=1)
    pc.notify(1)
    assert pc.interrupts.take() == [0x42]


def test_a_masked_vector_keeps_its_interrupt(pc: Pc, guest: GuestDriver) -> None:
    guest.echo(b"settle")
    pc.interrupts.take(0)
    pc.write(v.TABLE + 16 + 12, 4, 1)
    guest.submit(b"wait")
    guest.queues[0].enable_interrupts()
    pc.notify(0)
    pc.wait(lambda: pc.read(v.PENDING, 8) == 0b10)
    assert pc.interrupts.take(0.05) == []
    pc.write(v.TABLE + 16 + 12, 4, 0)
    assert pc.interrupts.take() == [0x41]
    assert pc.read(v.PENDING, 8) == 0


def test_queues_may_share_a_vector(pc: Pc, guest: GuestDriver) -> None:
    guest.echo(b"x"), guest.echo(b"y", queue=1)
    pc.interrupts.take(0)
    for queue in (0, 1):
        pc.write(0x16, 2, queue)
        pc.write(0x1A, 2, 2)
        assert pc.read(0x1A, 2) == 2
        guest.queues[queue].enable_interrupts()
        guest.submit(b"shared", queue=queue)
        pc.notify(queue)
        assert pc.interrupts.take() == [0x42]
    pc.write(0x1A, 2, 3)
    assert pc.read(0x1A, 2) == 0xFFFF


def test_a_successor_goes_on_exactly(pc: Pc, guest: GuestDriver, driver: RunningDriver) -> None:
    guest.echo(b"before")
    driver.kill()
    pc.wait(lambda: any("lost" in each for each in pc.told))
    answer = guest.submit(b"while nobody is there")
    pc.notify(0)
    successor = RunningDriver(pc, EchoDevice(2))
    assert guest.reap() == 1
    assert bytes(answer) == b"ereht si ydobon elihw"
    assert guest.echo(b"after", queue=1) == b"retfa"
    successor.kill()


def test_what_was_in_flight_is_done_by_the_successor(pc: Pc) -> None:
    late = LateDevice(2)
    first = pc.connect(late)
    pc.enable()
    guest = GuestDriver(pc)
    guest.set_up()
    answers = [guest.submit(text) for text in (b"abc", b"def", b"ghi")]
    pc.notify(0)
    for _ in answers:
        assert late.arrived.acquire(timeout=v.TIMEOUT_S)
    first.kill()
    late.close()
    successor = RunningDriver(pc, EchoDevice(2))
    done = 0
    while done < 3:
        done += guest.reap()
    assert [bytes(answer) for answer in answers] == [b"cba", b"fed", b"ihg"]
    successor.kill()
    guest.close()


def test_a_guest_that_starts_before_the_driver_is_served_later(pc: Pc, driver: RunningDriver) -> None:
    driver.kill()
    pc.wait(lambda: any("lost" in each for each in pc.told))
    pc.enable()
    guest = GuestDriver(pc)
    guest.set_up()
    answer = guest.submit(b"early")
    pc.notify(0)
    late = RunningDriver(pc, EchoDevice(2))
    assert guest.reap() == 1
    assert bytes(answer) == b"ylrae"
    late.kill()
    guest.close()


def test_a_successor_that_lacks_a_feature_is_sent_away(
    pc: Pc, guest: GuestDriver, driver: RunningDriver
) -> None:
    class PoorDevice(EchoDevice):
        features = 0

    driver.kill()
    poor = RunningDriver(pc, PoorDevice(2))
    poor.join()
    pc.wait(lambda: any("lacks features 0x20" in each for each in pc.told))
    successor = RunningDriver(pc, EchoDevice(2))
    assert guest.echo(b"rich") == b"hcir"
    successor.kill()


def test_reset_and_again(pc: Pc, guest: GuestDriver, driver: RunningDriver) -> None:
    assert isinstance(driver.device, EchoDevice)
    for turn in range(3):
        guest.echo(b"once")
        pc.write(0x14, 1, 0)
        assert driver.device.resets == turn + 1
        guest.set_up()
    assert guest.echo(b"again") == b"niaga"
    assert pc.told == ["driver connected"]


def test_the_machines_reset(pc: Pc, guest: GuestDriver, driver: RunningDriver) -> None:
    before = pc.base
    pc.write_pci(0x10, 4, 0xC0100000)
    assert pc.base == 0xC0100000
    assert guest.echo(b"elsewhere") == b"erehwesle"
    pc.device.reset()
    assert (pc.base, pc.read_pci(4, 2)) == (before, 0)
    assert pc.read(0x14, 4) == 0xFFFFFFFF, "not mapped"
    pc.enable()
    guest.set_up()
    assert guest.echo(b"back") == b"kcab"


def test_a_paused_device_rests(pc: Pc, guest: GuestDriver, driver: RunningDriver) -> None:
    guest.echo(b"run")
    pc.device.pause()
    answer = guest.submit(b"rest")
    pc.notify(0)
    pc.interrupts.take(0.05)
    assert not guest.queues[0].has_used()
    pc.device.resume()
    assert guest.reap() == 1
    assert bytes(answer) == b"tser"


def test_a_driver_that_dies_during_a_pause(pc: Pc, guest: GuestDriver, driver: RunningDriver) -> None:
    guest.echo(b"run")
    pc.device.pause()
    driver.kill()
    successor = RunningDriver(pc, EchoDevice(2))
    pc.wait(lambda: pc.told.count("driver connected") == 2)
    guest.submit(b"rest")
    assert not guest.queues[0].has_used()
    pc.device.resume()
    assert guest.reap() == 1
    successor.kill()


@pytest.mark.parametrize("known", [True, False])
def test_a_snapshot_goes_on_in_another_machine(
    pc: Pc, guest: GuestDriver, tmp_path: Path, known: bool
) -> None:
    guest.echo(b"one"), guest.echo(b"two", queue=1)
    waiting = guest.submit(b"three")
    pc.device.pause()
    state = json.loads(json.dumps(pc.device.save()))
    other = Pc(tmp_path, memory=pc.descriptor)
    driver = other.connect(EchoDevice(2)) if known else None
    if not known:
        other.run()
    other.device.restore(state)
    assert (other.base, other.status) == (pc.base, pc.status)
    other.device.resume()
    driver = driver or RunningDriver(other, EchoDevice(2))
    assert other.interrupts.take()[:1] == [0x40], "each source once: a lost interrupt would be worse"
    guest.pc = other
    other.notify(0)
    assert guest.reap() == 1
    assert bytes(waiting) == b"eerht"
    assert guest.echo(b"four", queue=1) == b"ruof"
    driver.kill()
    other.close()


def test_a_driver_does_not_notice_another_vmm(
    pc: Pc, guest: GuestDriver, driver: RunningDriver, tmp_path: Path
) -> None:
    guest.echo(b"one"), guest.echo(b"two", queue=1)
    waiting = guest.submit(b"three")
    pc.device.pause()
    state = json.loads(json.dumps(pc.device.save()))
    connection = pc.device.release()
    assert connection is not None
    other = Pc(tmp_path, memory=pc.descriptor)
    other.device.restore(state)
    other.device.adopt(connection, state)
    other.run()
    other.device.resume()
    guest.pc = other
    assert guest.reap() == 1
    assert bytes(waiting) == b"eerht"
    assert guest.echo(b"four", queue=1) == b"ruof"
    assert driver.is_alive
    assert (pc.told, other.told) == (["driver connected"], [])
    driver.kill()
    successor = RunningDriver(other, EchoDevice(2))
    assert guest.echo(b"five") == b"evif"
    successor.kill()
    other.close()


def test_a_released_driver_can_be_taken_back(pc: Pc, guest: GuestDriver) -> None:
    pc.device.pause()
    state = pc.device.save()
    connection = pc.device.release()
    assert connection is not None
    assert pc.device.release() is None
    pc.device.adopt(connection, state)
    with pytest.raises(ValueError, match="connected already"):
        pc.device.adopt(connection, state)
    pc.device.resume()
    assert guest.echo(b"still") == b"llits"


def test_what_is_no_connection_is_not_adopted(pc: Pc) -> None:
    state = pc.device.save()
    no_socket = os.eventfd(0)
    with pytest.raises(ValueError, match="no socket"):
        pc.device.adopt(no_socket, state)
    with pytest.raises(ValueError, match="not one"):
        pc.device.adopt(no_socket, {})
    os.close(no_socket)


def test_a_snapshot_that_is_none_is_refused(pc: Pc, guest: GuestDriver, tmp_path: Path) -> None:
    pc.device.pause()
    good = json.dumps(pc.device.save())
    changes: tuple[dict[str, object], ...] = (
        {"pci": "00"}, {"pci": 5}, {"msix": {"control": 0, "vectors": []}}, {"msix": None}, {"registers": {}},
        {"channel": {}}, {"channel": {"config": "", "generation": 0, "inflight": None}},
    )  # fmt: skip
    for change in changes:
        other = Pc(tmp_path)
        with pytest.raises(ValueError, match=r"."):
            other.device.restore({**json.loads(good), **change})
        other.close()
    for name, value in (
        ("size", 7),
        ("size", 1 << 20),
        ("used", MISPLACED),
        ("descriptors", 1),
        ("base", "x"),
    ):
        state = json.loads(good)
        state["registers"]["queues"][0][name] = value
        other = Pc(tmp_path)
        with pytest.raises(ValueError, match=r"."):
            other.device.restore(state)
        other.close()
    state = json.loads(good)
    state["channel"]["inflight"]["data"] = "AAAA"
    other = Pc(tmp_path)
    with pytest.raises(ValueError, match="unpacked"):
        other.device.restore(state)
    other.close()
    pc.device.resume()


MISPLACED = v.MEMORY_BYTES - 4


def test_rings_outside_of_memory_fail_the_device_and_nothing_else(pc: Pc, driver: RunningDriver) -> None:
    pc.enable()
    guest = GuestDriver(pc)
    for address in (MISPLACED, 0x2002, v.HIGH - 4, (1 << 64) - 16):
        guest.negotiate()
        pc.write(0x10, 2, 0)
        pc.write(0x30, 8, address)
        pc.write(0x1C, 2, 1)
        pc.interrupts.take(0)
        pc.write(0x14, 1, 15)
        assert pc.status & v.NEEDS_RESET
        assert pc.interrupts.take() == [0x40]
    guest.set_up()
    assert guest.echo(b"sound") == b"dnuos"
    assert pc.told == ["driver connected"]
    guest.close()


def test_a_guest_cannot_write_a_drivers_configuration(
    pc: Pc, guest: GuestDriver, driver: RunningDriver
) -> None:
    pc.write(v.DEVICE + 4, 1, 7)
    assert pc.read(v.DEVICE + 4, 1) == 0
    assert guest.echo(b"unharmed") == b"demrahnu"


def test_but_where_its_type_allows_it(tmp_path: Path) -> None:
    class Disk(EchoDevice):
        device_id = 2

        def read_config(self) -> bytes:
            return bytes(32) + bytes([self.switch])

        def write_config(self, offset: int, data: bytes, *, migrating: bool) -> None:
            assert (offset, len(data), migrating) == (32, 1, False)
            self.switch = data[0]

    pc = Pc(tmp_path, DeviceConfig("disk0", 2, -1, v.SLOT, 2, v.QUEUE_SIZE))
    driver = pc.connect(Disk(2))
    pc.enable()
    generation = pc.read(0x15, 1)
    pc.write(v.DEVICE + 32, 1, 1)
    assert pc.read(v.DEVICE + 32, 1) == 1
    assert pc.read(0x15, 1) != generation
    driver.kill()
    successor = RunningDriver(pc, Disk(2))
    pc.wait(lambda: pc.read(v.DEVICE + 32, 1) == 0)
    successor.kill()
    pc.close()


def test_a_card_with_a_configuration_of_its_own(tmp_path: Path) -> None:
    own, mac = 1 << 5, bytes.fromhex("525400123456")
    pc = Pc(tmp_path, DeviceConfig("nic0", 1, -1, v.SLOT, 2, v.QUEUE_SIZE, mac, own | 1 << 16, 1 << 28))
    driver = pc.connect(EchoDevice(2))
    pc.enable()
    guest = GuestDriver(pc)
    guest.set_up()
    assert pc.read(v.DEVICE, 8).to_bytes(8, "little") == mac + bytes(2)
    assert isinstance(driver.device, EchoDevice)
    assert guest.echo(b"frame") == b"emarf"
    assert guest.negotiate() == own | 1 << 16 | bits.VERSION_1 | bits.RING_EVENT_IDX
    assert not driver.device.seen_features & (1 << 16 | 1 << 28)
    driver.kill()
    guest.close()
    pc.close()


def test_written_pages_are_logged(pc: Pc, guest: GuestDriver) -> None:
    log_bytes = (v.HIGH + v.MEMORY_BYTES) // 4096 // 8
    log = os.memfd_create("log")
    os.ftruncate(log, log_bytes)
    guest.echo(b"unseen")
    pc.device.set_log((log_bytes, log))
    guest.echo(b"seen")
    pc.device.set_log(None)
    pages = os.pread(log, 8, 0)
    assert pages[0] & 1 << 1, "the used ring"
    assert pages[1] & 1, "the answer"
    guest.echo(b"unseen", queue=1)
    assert os.pread(log, 8, 0) == pages
    os.close(log)


def test_without_a_driver_there_is_no_machine(pc: Pc) -> None:
    with pytest.raises(ProtocolError, match="no driver of echo was there within"):
        pc.device.wait_driver(0.05)


def test_a_second_driver_waits_for_the_end_of_the_first(
    pc: Pc, guest: GuestDriver, driver: RunningDriver
) -> None:
    second = RunningDriver(pc, EchoDevice(2))
    assert guest.echo(b"first") == b"tsrif"
    driver.kill()
    assert guest.echo(b"second") == b"dnoces"
    second.kill()


def test_a_stopped_driver_is_followed(pc: Pc, guest: GuestDriver, driver: RunningDriver) -> None:
    driver.stop()
    successor = RunningDriver(pc, EchoDevice(2))
    assert guest.echo(b"updated") == b"detadpu"
    successor.kill()
