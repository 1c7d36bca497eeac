"""The driver as a process: how it starts, what it imports, how it ends, what it says."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.contract.storage_driver.driver_process import SOURCE, DriverProcess, build_argv

from duovisor.channel.frontend import GUEST_START, FrontEnd
from duovisor.channel.messages import Request, build_header, build_u64, build_vring_state
from duovisor.controlling.drivers.block_client import BlockClient

if TYPE_CHECKING:
    from collections.abc import Callable

# Each would add milliseconds to a pause that the guest sees.
SLOW_MODULES = {
    "argparse", "asyncio", "ctypes", "dataclasses", "inspect", "json", "logging", "pathlib", "pydantic", "re",
    "subprocess", "typing", "uuid",
}  # fmt: skip


def test_nothing_slow_is_imported() -> None:
    code = "import sys, duovisor.controlling.drivers.block; print(*sys.modules)"
    argv = [sys.executable, "-S", "-s", "-B", "-c", code]
    imported = subprocess.run(argv, env={"PYTHONPATH": SOURCE}, capture_output=True, text=True)
    modules = set(imported.stdout.split())
    assert "duovisor.channel.virtqueue" in modules
    assert modules & SLOW_MODULES == set()
    ours = {name for name in modules if name.startswith("duovisor.")}
    assert {name.split(".")[1] for name in ours} == {"channel", "controlling", "errors"}


def test_the_first_answer_comes_soon(start_driver: Callable[..., DriverProcess]) -> None:
    """By its own processor time, for the machine may be busy; docs/channel.md has the measured time."""
    times = []
    for _ in range(5):
        driver = start_driver()
        with FrontEnd(memory_bytes=1 << 20) as front:
            front.connect(driver.channel)
            BlockClient(front).read(0, 4096)
            times.append(read_processor_s(driver.process.pid))
    assert min(times) < 0.25


def read_processor_s(pid: int) -> float:
    """How long a process has run by now: utime and stime of proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_driver(*options: str, pass_fds: tuple[int, ...] = ()) -> tuple[int, str]:
    done = subprocess.run(
        build_argv(*options),
        env={"PYTHONPATH": SOURCE},
        pass_fds=pass_fds,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "options --channel-fd and --image-fd are required"),
        (("--channel-fd", "3"), "options --channel-fd and --image-fd are required"),
        (("--bogus",), "option --bogus is unknown"),
        (("--image-fd",), "option --image-fd needs a value"),
        (("--queues", "many"), "option --queues is 'many', not a number from 1 to 256"),
        (("--queues", "0"), "option --queues is '0', not a number from 1 to 256"),
        (("--queue-size", "-1"), "option --queue-size is '-1', not a number from 4 to 1024"),
        (("--channel-fd", "8", "--image-fd", "9", "--queue-size", "100"),
         "option --queue-size is 100, which is not a power of two"),
        (("--channel-fd", "8", "--image-fd", "9"), "descriptor 9 is no image: Bad file descriptor"),
        (("--channel-fd", "8", "--image-fd", "0"), "descriptor 0 is neither a file nor a block device"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options: tuple[str, ...], said: str) -> None:
    assert run_driver(*options) == (1, f"storage driver: {said}\n")


@pytest.mark.parametrize(
    ("size", "flags", "said"),
    [
        (1000, os.O_RDWR, "the image has 1000 bytes, which is not a positive multiple of 512"),
        (0, os.O_RDWR, "the image has 0 bytes, which is not a positive multiple of 512"),
        (512, os.O_RDONLY, "descriptor {} is not open for reading and writing"),
        (512, os.O_WRONLY, "descriptor {} is not open for reading and writing"),
    ],
)
def test_images_that_cannot_be_served(tmp_path: Path, size: int, flags: int, said: str) -> None:
    path = tmp_path / "bad.raw"
    path.write_bytes(bytes(size))
    image = os.open(path, flags)
    ended = run_driver("--channel-fd", "200", "--image-fd", str(image), pass_fds=(image,))
    os.close(image)
    assert ended == (1, f"storage driver: {said.format(image)}\n")


def test_a_channel_that_is_no_socket(image: Path) -> None:
    descriptor = os.open(image, os.O_RDWR)
    number = str(descriptor)
    ended = run_driver("--channel-fd", number, "--image-fd", number, pass_fds=(descriptor,))
    os.close(descriptor)
    assert ended == (1, f"storage driver: descriptor {number} is no socket: Socket operation on non-socket\n")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"\xff" * 12, "a message has version 3 instead of 1"),
        (build_header(Request.SET_OWNER, 0, 1 << 30), "a message announces 1073741824 bytes"),
        (build_header(77, 0, 0), "the front end sent request 77"),
        (build_header(Request.SET_VRING_NUM, 0, 8) + build_vring_state(0, 7), "size 7, not a power of two"),
        (build_header(Request.SET_FEATURES, 0, 3) + b"abc", "a 64-bit integer has 3 bytes instead of 8"),
        (build_header(Request.SET_FEATURES, 0, 8) + b"abc", "in the middle of a message"),
    ],
)
def test_a_front_end_that_breaks_the_protocol_ends_the_driver(
    start_driver: Callable[..., DriverProcess], message: bytes, said: str
) -> None:
    driver = start_driver()
    driver.channel.send(message)
    status, line = driver.finish()
    assert status == 1
    assert line.startswith("storage driver: ")
    assert line.count("\n") == 1
    assert said in line


def test_surplus_descriptors_end_the_driver(start_driver: Callable[..., DriverProcess]) -> None:
    driver = start_driver()
    with open(os.devnull, "rb") as null:
        many = array.array("i", [null.fileno()] * 100)
        driver.channel.sendmsg(
            [build_header(Request.SET_FEATURES, 0, 8) + build_u64(0)],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)],
        )
    status, line = driver.finish()
    assert (status, line) == (1, "storage driver: a message came with more than 8 descriptors\n")


def test_a_guest_that_breaks_a_queue_is_reported_and_the_driver_lives(
    start_driver: Callable[..., DriverProcess],
) -> None:
    driver = start_driver("--queues", "2")
    with FrontEnd(queues=2) as front:
        front.connect(driver.channel)
        address, _ = front.allocate(16)
        broken = front.queues[0]
        broken.submit(broken.prepare([(address, 8)], []))  # no room for header and status
        broken.force_kick()
        other = BlockClient(front, 1)
        assert len(other.read(0, 4096)) == 4096
        assert front.get_config(0, 8) != bytes(8)
        assert GUEST_START <= address
    status, said = driver.finish()
    assert status == 0
    assert said == (
        "storage driver: queue 0 has a request without room for its header and status; "
        "the queue rests until the guest resets the device\n"
    )


def test_an_idle_driver_uses_no_processor(start_driver: Callable[..., DriverProcess]) -> None:
    driver = start_driver("--poll-us", "1000")
    with FrontEnd() as front:
        front.connect(driver.channel)
        BlockClient(front).read(0, 512)
        before = processor_ticks(driver.process.pid)
        time.sleep(0.3)
        assert processor_ticks(driver.process.pid) - before <= 1


def processor_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
