"""What drivers write into a guest's memory is copied with it, because they log it.

The guest has buffers that nobody but its devices writes to: files in its memory, into whose pages the disk is
read past every cache. They have one content before the copy begins, and are read into again while it is held
after its first pass. Without the log, the old content would arrive, each time and in every page.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import signal
import sys
import termios
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from tests.bare_vmm import Program, start_bare_vmm
from tests.networks import BRIDGE, HOST
from tests.vm.copying import Journey
from tests.vm.test_driver_recovery import wait_spare

from duovisor.controlling.images.storage_jobs import build_verify_commands
from duovisor.controlling.machine_networks import open_taps
from duovisor.controlling.supervision.records import DeviceState
from duovisor.hypervisor.memory import create_memory_file
from duovisor.spec.vm import Accelerator, Design

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.vm.conftest import Guest

    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities

    SetOut = Callable[..., Awaitable[Journey]]

pytestmark = pytest.mark.vm

MIB = 1 << 20
SUMMED_MIB = 4
# the disk has four parts: fio's own, and three in which each sector says where it is
PART_MIB = 16
OLD, NEW, OTHER = 1, 2, 3
FIRST, SECOND = "/tmp/first", "/tmp/second"
STREAM_BYTES = 48 << 10  # fits the guest's receive buffer: the kernel keeps it in the card's own pages

# fio writes and verifies round after round, each with another seed, until it is told to stop
LOAD = """
n=1
while [ ! -e /tmp/stop ]; do
  {round} >/tmp/fio 2>&1 || {{ mv /tmp/fio /tmp/wrong; break; }}
  n=$((n + 1))
done
touch /tmp/stopped
"""
END_OF_LOAD = (
    "touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done; cat /tmp/wrong 2>/dev/null; true"
)


@pytest_asyncio.fixture
async def set_out(
    boot: Callable[..., Awaitable[Guest]], folders: Directories, scratch: Path, capabilities: HostCapabilities
) -> AsyncIterator[SetOut]:
    """Boot a guest, and make what it will arrive at."""
    async with AsyncExitStack() as stack:

        async def start(**document: Any) -> Journey:
            disks = [{"path": str(scratch)}]
            guest = await boot(
                Design.MICROKERNELIZED, disks=disks, accelerator=Accelerator.TCG, cpus=1, **document
            )
            spec = guest.machine.spec
            taps = open_taps(spec, stack.enter_context(ExitStack()))
            memory = Path(stack.enter_context(TemporaryDirectory(dir="/dev/shm"))) / "memory"
            create_memory_file(memory, spec.memory_mib, None)
            program = Program(*capabilities.require_qemu())
            folder = folders.state / "destination"
            vmm = start_bare_vmm(spec, program, folder, memory, taps, "-incoming", "defer")
            return Journey(guest, await stack.enter_async_context(vmm))

        yield start


def build_read(buffer: str, part: int, *, times: int = 1) -> str:
    """Have the disk's driver write a part of the disk into the pages of a buffer."""
    words = ["fio --name=read --filename=/dev/vda --direct=1 --ioengine=libaio --rw=read"]
    words += [f"--offset={part * PART_MIB}m --bs={PART_MIB}m --size={PART_MIB}m --loops={times}"]
    return " ".join([*words, f"--mem=mmapshared:{buffer}"])


def build_sums(file: str, *, skip_mib: int = 0) -> str:
    """The checksums of a buffer, or of a part of the disk, piece by piece."""
    first = skip_mib // SUMMED_MIB
    numbers = " ".join(str(first + number) for number in range(PART_MIB // SUMMED_MIB))
    return f"for n in {numbers}; do dd if={file} bs={SUMMED_MIB}M skip=$n count=1 2>/dev/null | md5sum; done"


READ_CACHED = build_sums("/dev/vda", skip_mib=OTHER * PART_MIB)
HOLD_OPEN = "sleep 1000 </dev/vda >/dev/null 2>&1 &"  # the kernel keeps a device's pages while it is open
COUNT_READS = "cut -c-30 /sys/block/vda/stat"


def sum_part(image: Path, part: int) -> list[str]:
    """What these would be for a part of the disk."""
    data = image.read_bytes()[part * PART_MIB * MIB :][: PART_MIB * MIB]
    pieces = (data[at : at + SUMMED_MIB * MIB] for at in range(0, len(data), SUMMED_MIB * MIB))
    return [hashlib.md5(piece, usedforsecurity=False).hexdigest() for piece in pieces]


async def sum_buffer(journey: Journey, buffer: str) -> list[str]:
    return (await journey.ask(build_sums(buffer))).split()[::2]


async def begin(journey: Journey, *buffers: str) -> None:
    """Fill the buffers with old data, copy all memory once, then start fio."""
    guest = journey.guest
    for buffer in buffers:
        await guest.output(f"dd if=/dev/zero of={buffer} bs=1M count={PART_MIB + 1} 2>/dev/null")
        await guest.output(build_read(buffer, OLD))
    await journey.begin()
    write_and_read_back = build_verify_commands("/dev/vda", seed=0, size_mib=8)[0]
    load = LOAD.format(round=write_and_read_back.replace("--randseed=0", "--randseed=$n --invalidate=0"))
    await guest.output(f"cat >/tmp/load <<'END'{load}END\nsh /tmp/load >/dev/null 2>&1 & true")


async def check_buffer(journey: Journey, buffer: str, image: Path) -> None:
    assert await sum_buffer(journey, buffer) == sum_part(image, NEW)


async def check_load(journey: Journey) -> None:
    """The round of fio that was under way ends well."""
    assert await journey.ask(END_OF_LOAD) == ""


class Stream:
    """The host's end of a TCP stream whose bytes wait in the guest's kernel; ``open_stream`` makes it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._data = os.urandom(STREAM_BYTES)
        self.digest = hashlib.md5(self._data, usedforsecurity=False).hexdigest()
        self._writer = writer

    async def fill(self) -> None:
        """Send it all, and wait until the guest's kernel has it."""
        self._writer.write(self._data)
        descriptor = self._writer.get_extra_info("socket").fileno()
        async with asyncio.timeout(120):
            while self._writer.transport.get_write_buffer_size() or _count_unacknowledged(descriptor):
                await asyncio.sleep(0.02)

    def end(self) -> None:
        """There is no more to read."""
        self._writer.close()


@asynccontextmanager
async def open_stream(guest: Guest) -> AsyncIterator[Stream]:
    """A stream to a reader in the guest that does not read until it is told to."""
    connected: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: connected.put_nowait(writer), HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await guest.output(
            "killall udhcpc; ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up; "
            f"(nc {HOST} {port} </dev/null >/tmp/got; touch /tmp/ended) >/dev/null 2>&1 & true"
        )
        stream = Stream(await asyncio.wait_for(connected.get(), 120))
        await guest.output("killall -STOP nc")
        try:
            yield stream
        finally:
            stream.end()


def _count_unacknowledged(descriptor: int) -> int:
    """Bytes that a TCP peer has not acknowledged (SIOCOUTQ, tcp(7))."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.mark.usefixtures("network")
async def test_what_drivers_write_arrives(set_out: SetOut, scratch: Path) -> None:
    journey = await set_out(nics=[{"bridge": BRIDGE, "mac": "52:54:00:77:00:02"}])
    async with open_stream(journey.guest) as stream:
        await begin(journey, FIRST)
        await journey.guest.output(build_read(FIRST, NEW, times=4))
        await journey.guest.output(f"{HOLD_OPEN} {READ_CACHED}")
        await stream.fill()
        await journey.arrive()
        await check_buffer(journey, FIRST, scratch)
        await check_load(journey)
        reads = await journey.ask(COUNT_READS)
        assert (await journey.ask(READ_CACHED)).split()[::2] == sum_part(scratch, OTHER)
        assert await journey.ask(COUNT_READS) == reads, "it was not in the page cache"
        stream.end()
        await journey.ask("killall -CONT nc; while [ ! -e /tmp/ended ]; do sleep 0.1; done")
        assert (await journey.ask("md5sum </tmp/got")).split()[0] == stream.digest


@pytest.fixture
def faults() -> Iterator[int]:
    descriptor = os.memfd_create("faults")
    os.write(descriptor, json.dumps({"forget_dirty": True}).encode())
    yield descriptor
    os.close(descriptor)


async def test_a_driver_that_marks_nothing_loses_what_it_wrote(
    faults: int, set_out: SetOut, scratch: Path
) -> None:
    """It acknowledges logging and does not do it: the test above can fail."""
    journey = await set_out()
    disk = journey.disk
    await wait_spare(disk)
    descriptors = {**disk.plan.descriptors, "faults": faults}
    disk.plan = disk.crew.plan = replace(disk.plan, driver="faulty-block", descriptors=descriptors)
    await disk.crew.dismiss_spare()
    await disk.replace(latest=False)
    await begin(journey, FIRST)
    await journey.guest.output(build_read(FIRST, NEW, times=4))
    await journey.arrive()
    assert await sum_buffer(journey, FIRST) == sum_part(scratch, OLD)


async def test_successors_go_on_marking(set_out: SetOut, scratch: Path) -> None:
    journey = await set_out()
    disk, guest = journey.disk, journey.guest
    await begin(journey, FIRST, SECOND)
    await wait_spare(disk)
    killed = disk.describe().pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await guest.output(build_read(FIRST, NEW))
    successor = disk.describe()
    assert (successor.state, successor.deaths) == (DeviceState.RUNNING, 1)
    await disk.replace(latest=False)
    await guest.output(build_read(SECOND, NEW))
    await journey.arrive()
    for buffer in (FIRST, SECOND):
        await check_buffer(journey, buffer, scratch)
    await check_load(journey)
