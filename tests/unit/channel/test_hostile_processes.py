"""Two storage drivers, as processes: one is attacked by its front end or guest, the other never notices."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
from tests.contract.storage_driver.driver_process import DriverProcess

from duovisor.channel import messages as m
from duovisor.channel.chain import DESCRIPTOR, INDIRECT
from duovisor.channel.errors import ChannelError
from duovisor.channel.frontend import FrontEnd
from duovisor.channel.messages import Request
from duovisor.controlling.drivers.block_client import BlockClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

IMAGE_BYTES = 1 << 20
EXIT_TIMEOUT_S = 60


class Victim:
    """A driver with a front end of ours, whose service is checked all the while."""

    def __init__(self, image: Path, content: bytes) -> None:
        self.driver = DriverProcess(image)
        self.front = FrontEnd()
        self.front.connect(self.driver.channel)
        self.client = BlockClient(self.front)
        self._content = content

    def check(self) -> None:
        """Read and compare something."""
        sector = random.randrange(IMAGE_BYTES // 4096) * 8
        assert self.client.read(sector, 4096) == self._content[sector * 512 :][:4096]

    def close(self) -> tuple[int, str]:
        ended = self.driver.finish()
        self.front.close()
        return ended


@pytest.fixture
def content() -> bytes:
    return random.Random(2).randbytes(IMAGE_BYTES)


@pytest.fixture
def image(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(content)
    return path


@pytest.fixture
def other(image: Path, content: bytes) -> Iterator[Victim]:
    """The one that is not attacked; at the end it must have nothing to say."""
    victim = Victim(image, content)
    victim.check()
    yield victim
    victim.check()
    assert victim.close() == (0, "")


def send_header(driver: DriverProcess, request: int, size: int, data: bytes = b"") -> None:
    driver.channel.send(m.build_header(request, 0, size) + data)


def say_nonsense(driver: DriverProcess) -> None:
    driver.channel.send(random.Random(3).randbytes(4096))


def promise_too_much(driver: DriverProcess) -> None:
    send_header(driver, Request.SET_MEM_TABLE, 2**32 - 1)


def share_a_folder(driver: DriverProcess) -> None:
    folder = os.open("/", os.O_RDONLY)
    region = m.build_memory_region(m.RegionDescription(0, 4096, 0, 0))
    socket.send_fds(driver.channel, [m.build_header(Request.ADD_MEM_REG, 0, len(region)) + region], [folder])
    os.close(folder)


def read_no_answers(driver: DriverProcess) -> None:
    driver.channel.settimeout(EXIT_TIMEOUT_S)
    try:
        while True:
            send_header(driver, Request.GET_FEATURES, 0)
    except (BrokenPipeError, ConnectionResetError):
        pass


def start_beyond_memory(driver: DriverProcess) -> None:
    send_header(driver, Request.SET_VRING_NUM, 8, m.build_vring_state(0, 128))
    address = m.build_vring_address(m.VringAddress(0, 0, 0, 0, 0, 0))
    send_header(driver, Request.SET_VRING_ADDR, len(address), address)
    send_header(driver, Request.SET_FEATURES, 8, m.build_u64(0))
    event = os.eventfd(0)
    kick = m.build_header(Request.SET_VRING_KICK, 0, 8) + m.build_u64(0)
    socket.send_fds(driver.channel, [kick], [event])
    os.close(event)


@pytest.mark.parametrize(
    "attack", [say_nonsense, promise_too_much, share_a_folder, read_no_answers, start_beyond_memory]
)
def test_an_attacked_driver_ends_with_one_line_and_the_other_serves(
    image: Path, other: Victim, attack: Callable[[DriverProcess], None]
) -> None:
    driver = DriverProcess(image)
    attack(driver)
    deadline = time.monotonic() + EXIT_TIMEOUT_S
    while driver.process.poll() is None and time.monotonic() < deadline:
        other.check()
        time.sleep(0.005)
    status, line = driver.finish()
    assert status == 1
    assert line.startswith("storage driver: ")
    assert line.count("\n") == 1


def test_a_guest_that_breaks_its_queue_costs_the_other_nothing(
    image: Path, other: Victim, content: bytes
) -> None:
    attacked = Victim(image, content)
    queue = attacked.front.queues[0]
    address, view = attacked.front.allocate(16)
    view[:] = b"\xff" * 16
    head = queue.prepare([(address, 16)], [])
    DESCRIPTOR.pack_into(
        queue._table, 16 * head, address, 16, INDIRECT, 0
    )  # a table of which all bits are set
    queue.submit(head)
    queue.force_kick()
    for _ in range(10):
        other.check()
    status, said = attacked.close()
    assert status == 0
    assert said.count("\n") == 1
    assert "the queue rests until the guest resets the device" in said


@pytest.mark.parametrize("sent", [1, 12, 15])
def test_half_a_message_and_sigterm_end_in_order(image: Path, content: bytes, sent: int) -> None:
    attacked = Victim(image, content)
    half = m.build_header(Request.SET_FEATURES, 0, 8) + m.build_u64(0)
    attacked.driver.channel.send(half[:sent])
    attacked.check()  # it goes on serving
    attacked.driver.process.send_signal(signal.SIGTERM)
    assert attacked.driver.process.wait(EXIT_TIMEOUT_S) == 0
    assert attacked.close() == (0, "")


def test_memory_that_is_cut_short_ends_that_driver_alone(
    image: Path, other: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be sealed, as one with a name on a tmpfs; the kernel ends who touches it."""
    monkeypatch.setattr("duovisor.channel.frontend.make_memory_file", make_unsealed_file)
    with FrontEnd(memory_bytes=4 << 20) as front:
        driver = DriverProcess(image)
        front.connect(driver.channel)
        queue = front.queues[0]
        os.ftruncate(front.memory_descriptor, 0)
        queue.force_kick()
        assert driver.process.wait(EXIT_TIMEOUT_S) == -signal.SIGBUS
        other.check()
        assert driver.finish() == (-signal.SIGBUS, "")
        successor = DriverProcess(image)
        with pytest.raises(ChannelError):
            front.connect(successor.channel)
        status, said = successor.finish()
        assert status == 1
        assert said.startswith(
            "storage driver: the memory region at 0x100000 ends at 0x400000, its file at 0x0"
        )


def make_unsealed_file(name: str, size: int) -> int:
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size)
    return descriptor
