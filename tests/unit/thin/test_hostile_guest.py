"""A guest that writes anything anywhere: no register raises, leaks or harms the next guest's driver."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.channel.echo_device import EchoDevice
from tests.unit.thin import virtual_pc as v
from tests.unit.thin.virtual_pc import GuestDriver, Pc, RunningDriver

from duovisor.hypervisor.thin.pci.bus import CONFIG_PORTS
from duovisor.hypervisor.thin.ports import WINDOW_END, WINDOW_START
from duovisor.hypervisor.thin.virtio.function import BAR_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZES = st.sampled_from((1, 2, 4, 8))
NUMBERS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 64),
    st.sampled_from((0xFFFF, 0xFFFFFFFF, 0xFEE00000, 0x8000, 0xC000, v.MEMORY_BYTES - 16, v.HIGH)),
)
# registers that something follows from, more often than others
BAR_PLACES = st.one_of(
    st.integers(0, 0x40),
    st.sampled_from((0x14, 0x16, 0x1A, 0x1C, 0x18, 0x20, 0x28, 0x30, 0x08, 0x0C, 0x10)),
    st.integers(v.TABLE - 4, v.TABLE + 16 * 4),
    st.integers(v.NOTIFY - 4, v.NOTIFY + 16),
    st.integers(v.PENDING - 1, v.PENDING + 8),
    st.integers(0, BAR_BYTES - 1),
)
STEPS = st.one_of(
    st.tuples(st.just("pci"), st.integers(0, 255), SIZES, NUMBERS),
    st.tuples(st.just("port"), st.integers(0, 7), SIZES, NUMBERS),
    st.tuples(st.just("bar"), BAR_PLACES, SIZES, NUMBERS),
    st.tuples(st.just("status"), st.just(0x14), st.just(1), st.sampled_from((0, 1, 3, 11, 15, 0x80))),
    st.tuples(st.just("on"), st.just(0), st.just(1), st.just(0)),
)


class Attacked:
    """A machine under attack: after each attack its driver is replaced if it had enough."""

    def __init__(self, pc: Pc) -> None:
        self.pc = pc
        self.driver = pc.connect(EchoDevice(2))

    def do(self, what: str, offset: int, size: int, value: int) -> None:
        """One access of each direction."""
        pc, value = self.pc, value & (1 << 8 * size) - 1
        limit = 1 << 8 * size
        if what == "on":
            pc.enable()
        elif what == "pci":
            pc.write_pci(offset, size, value)
            assert 0 <= pc.read_pci(offset, size) < limit
        elif what == "port":
            pc.ports.write(CONFIG_PORTS + offset, size, value)
            assert 0 <= pc.ports.read(CONFIG_PORTS + offset, size) < limit
        else:
            pc.write(offset, size, value)
            assert 0 <= pc.read(offset, size) < limit

    def check(self) -> None:
        """All is as it was for a guest that begins anew."""
        pc = self.pc
        assert len(pc.interrupts.routes) <= 3
        assert len(pc.interrupts.attached) <= 3
        assert len(pc.notifications.attached) in (0, 2)
        assert WINDOW_START <= pc.device_base() < WINDOW_END if pc.notifications.attached else True
        pc.device.reset()
        assert not pc.interrupts.attached
        assert not pc.notifications.attached
        pc.memory[:] = bytes(len(pc.memory))
        if not self.driver.is_alive:
            self.driver.kill()
            self.driver = RunningDriver(pc, EchoDevice(2))
            pc.wait(lambda: pc.told[-1] == "driver connected")
        pc.enable()
        guest = GuestDriver(pc)
        guest.set_up()
        assert guest.echo(b"still here") == b"ereh llits"
        guest.close()
        pc.device.reset()


@pytest.fixture
def attacked(tmp_path: Path) -> Iterator[Attacked]:
    made = Attacked(Pc(tmp_path))
    yield made
    made.driver.kill()
    made.pc.close()


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, max_size=60))
def test_any_accesses(attacked: Attacked, steps: list[tuple[str, int, int, int]]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for step in steps:
        attacked.do(*step)
    attacked.check()
    assert len(os.listdir("/proc/self/fd")) <= before + 8, "what a connected driver and its log take"


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    addresses=st.lists(NUMBERS, min_size=3, max_size=3),
    size=NUMBERS,
    content=st.binary(max_size=256),
    steps=st.lists(STEPS, max_size=10),
)
def test_rings_anywhere_with_anything_in_them(
    attacked: Attacked,
    addresses: list[int],
    size: int,
    content: bytes,
    steps: list[tuple[str, int, int, int]],
) -> None:
    pc = attacked.pc
    pc.enable()
    guest = GuestDriver(pc)
    guest.negotiate()
    for queue, shift in ((0, 0), (1, 64)):
        pc.write(0x16, 2, queue)
        pc.write(0x18, 2, size & 0xFFFF)
        pc.write(0x1A, 2, queue)
        for offset, address in zip((0x20, 0x28, 0x30), addresses, strict=True):
            pc.write(offset, 8, address + shift & (1 << 64) - 1)
        pc.write(0x1C, 2, 1)
    pc.memory[: len(content)] = content
    pc.write(0x14, 1, 15)
    for queue in (0, 1):
        pc.notify(queue)
    for step in steps:
        attacked.do(*step)
    guest.close()
    attacked.check()


def test_a_bar_outside_the_window_is_not_mapped(attacked: Attacked) -> None:
    pc = attacked.pc
    pc.enable()
    for base in (0, 0x8000, WINDOW_START - 0x8000, WINDOW_END, 0xFFFF8000, 0xFEE00000):
        pc.write_pci(0x10, 4, base)
        assert pc.space.read(base + 0x12, 2) == 0xFFFF
        assert not pc.notifications.attached
    pc.write_pci(0x10, 4, WINDOW_END - BAR_BYTES)
    assert pc.read(0x12, 2) == 2
    attacked.check()


def test_a_bar_over_another_is_not_mapped(attacked: Attacked) -> None:
    pc = attacked.pc
    pc.enable()
    home = pc.base
    pc.write_pci(0x10, 4, WINDOW_START + 0x100000)

    class Other:
        def read(self, offset: int, size: int) -> int:
            return 0x5A

        def write(self, offset: int, size: int, value: int) -> None:
            raise AssertionError("this is somebody else's")

    pc.space.add(home + 0x7000, 0x1000, Other())
    pc.write_pci(0x10, 4, home)
    assert pc.space.read(home + 0x7000, 1) == 0x5A
    assert not pc.notifications.attached
    pc.space.remove(home + 0x7000)
    attacked.check()
