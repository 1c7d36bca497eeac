"""One guest through two designs and back: saved, translated and loaded by real QEMUs while it works."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from tests.bare_vmm import BareVmm, Program, start_bare_vmm
from tests.networks import BRIDGE, HOST
from tests.vm.service_host import BOOT_TIMEOUT_S

from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.machine_networks import open_taps
from duovisor.hypervisor.migration import handover
from duovisor.hypervisor.migration.errors import HandoverError
from duovisor.hypervisor.migration.handover import load, prepare, save
from duovisor.hypervisor.migration.translator import translate
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager

    from duovisor.controlling.images.image import Image
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import VirtualMachineSpec

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("network")]

MEMORY_MIB = 256
ADDRESS = "10.77.0.2"
# writes random blocks, reads them back past the page cache, and counts; what differs is noted
LOAD = """
i=0
while :; do
  dd if=/dev/urandom of=/tmp/block bs=64k count=4
  dd if=/tmp/block of=/dev/vda bs=64k seek=$((i % 100 * 4)) conv=notrunc,fsync
  echo 3 >/proc/sys/vm/drop_caches
  dd if=/dev/vda bs=64k skip=$((i % 100 * 4)) count=4 | cmp - /tmp/block || echo round $i >>/tmp/wrong
  i=$((i + 1)); echo $i >/tmp/next; mv /tmp/next /tmp/rounds
done
"""


class Place(NamedTuple):
    """What the VMMs of one guest share."""

    memory: Path
    disk: Path
    folder: Path
    image: Image
    program: Program
    taps: dict[str, int]

    def build_spec(self, design: Design) -> VirtualMachineSpec:
        return build_case_spec(design, self.disk, self.image)

    def start(self, design: Design, name: str, *options: str) -> AbstractAsyncContextManager[BareVmm]:
        spec = self.build_spec(design)
        return start_bare_vmm(spec, self.program, self.folder / name, self.memory, self.taps, *options)


def build_case_spec(design: Design, disk: Path, image: Image) -> VirtualMachineSpec:
    nic = {"bridge": BRIDGE, "mac": "52:54:00:77:00:02"}
    document = {"name": "crosser", "memory_mib": MEMORY_MIB, "design": design, "disks": [{"path": str(disk)}]}
    return build_spec(add_image({**document, "nics": [nic]}, image))


@pytest.fixture
def place(folders: Directories, probe_image: Image, capabilities: HostCapabilities) -> Iterator[Place]:
    disk = folders.state / "disk.raw"
    with ExitStack() as stack:
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))) / "memory"
        for path, size in ((disk, 64 << 20), (memory, MEMORY_MIB << 20)):
            with path.open("wb") as file:
                file.truncate(size)
        taps = open_taps(build_case_spec(Design.MONOLITHIC, disk, probe_image), stack)
        program = Program(*capabilities.require_qemu())
        yield Place(memory, disk, folders.state, probe_image, program, taps)


async def ask(vmm: BareVmm, command: str) -> str:
    """What a command prints in the guest, which is reached through the VMM that it is in now."""
    async with connect_probe(vmm.port_path(PORT_NAME)) as probe:
        await probe.wait_booted(BOOT_TIMEOUT_S)
        done = await probe.run(command, timeout_s=60)
        assert done.exit == 0, done.output
        return done.output.decode()


async def check_guest(vmm: BareVmm) -> None:
    """The load goes on, found nothing wrong, and the card still reaches the host."""
    before = int(await ask(vmm, "cat /tmp/rounds"))
    async with asyncio.timeout(300):
        while int(await ask(vmm, "sleep 1; cat /tmp/rounds")) < before + 2:
            pass
    assert (
        await ask(vmm, f"cat /tmp/wrong 2>/dev/null; ping -c1 -W5 {HOST} >/dev/null && echo reached")
        == "reached\n"
    )


async def move(source: BareVmm, destination: BareVmm, *, stop_first: bool) -> dict[str, float]:
    """Take the guest over; milliseconds of each step that it waits for."""
    await prepare(source.qmp)
    await prepare(destination.qmp)
    marks = [("", time.perf_counter())]

    def mark(step: str) -> None:
        marks.append((step, time.perf_counter()))

    if stop_first:
        await source.qmp.stop()
        mark("stop")
    state = await save(source.qmp)
    mark("save")
    translated = translate(state, destination.spec.design)
    mark("translate")
    await load(destination.qmp, translated, last_words=destination.process.last_words)
    mark("load")
    await destination.qmp.cont()
    mark("cont")
    await source.qmp.quit()
    return {step: round((end - start) * 1000, 1) for (_, start), (step, end) in pairwise(marks)}


@asynccontextmanager
async def boot(place: Place) -> AsyncIterator[BareVmm]:
    async with place.start(Design.MONOLITHIC, "first") as vmm:
        await vmm.qmp.cont()
        await ask(
            vmm,
            f"killall udhcpc; ip addr add {ADDRESS}/24 dev eth0; ip link set eth0 up; ping -c1 -W5 {HOST}",
        )
        await ask(
            vmm, f"echo 0 >/tmp/rounds; cat >/tmp/load <<'END'{LOAD}END\nsh /tmp/load >/dev/null 2>&1 &"
        )
        await check_guest(vmm)
        yield vmm


async def test_a_working_guest_crosses_the_border_and_comes_back(place: Place) -> None:
    async with AsyncExitStack() as stack:
        vmm = await stack.enter_async_context(boot(place))
        for number, design in enumerate((Design.MICROKERNELIZED, Design.MONOLITHIC) * 2):
            incoming = place.start(design, f"next{number}", "-incoming", "defer")
            following = await stack.enter_async_context(incoming)
            steps = await move(vmm, following, stop_first=number < 2)
            print(f"to {design}:", ", ".join(f"{step} {took} ms" for step, took in steps.items()))
            vmm = following
            await check_guest(vmm)


async def test_whatever_fails_the_guest_goes_on_where_it_was(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        vmm = await stack.enter_async_context(boot(place))
        await prepare(vmm.qmp)

        with pytest.raises(HandoverError, match="was not saved within"):
            await save(vmm.qmp, timeout_s=0.0001)
        await check_guest(vmm)  # by itself

        monkeypatch.setattr(handover, "MAX_STREAM_BYTES", 1 << 16)
        monkeypatch.setattr(handover, "PIPE_BYTES", 1 << 14)
        with pytest.raises(HandoverError, match="has more than 65536 bytes"):
            await save(vmm.qmp)
        monkeypatch.undo()
        await check_guest(vmm)  # as well

        state = translate(await save(vmm.qmp), Design.MICROKERNELIZED)
        wrong = state.replace(b"/vhost-user-blk\0\0\0\0\0\0\0\1", b"/vhost-user-blk\0\0\0\0\0\0\0\7")
        for number, (given, words) in enumerate(((wrong, "vhost-user-blk"), (state[:99999], "error while"))):
            incoming = place.start(Design.MICROKERNELIZED, f"next{number}", "-incoming", "defer")
            async with incoming as following:
                await prepare(following.qmp)
                with pytest.raises(HandoverError, match=words):
                    await load(following.qmp, given, timeout_s=60, last_words=following.process.last_words)
        await vmm.qmp.cont()
        await check_guest(vmm)
