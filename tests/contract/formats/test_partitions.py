"""The whole as it runs: active and spare driver in confined partitions, the format process in its sandbox."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.contract.driver_partition.served_disk import ServedDisk
from tests.contract.formats.load import Load
from tests.contract.formats.stack import check_image, compare_images, create_image
from tests.contract.formats.test_process import make_environment, needs_tools

from duovisor.controlling.formats.chain import read_chain
from duovisor.controlling.formats.process import create_disk_replay, start_format_process
from duovisor.controlling.partitions.control import bind_listener
from duovisor.controlling.partitions.errors import PartitionRefusedError
from duovisor.controlling.partitions.factory import PartitionFactory
from duovisor.spec.vm import DiskFormat, DiskSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.controlling.formats.process import FormatProcess
    from duovisor.controlling.partitions.partition import Partition

pytestmark = needs_tools
SIZE = 24 << 20


class FormattedDisk(ServedDisk):
    """A disk whose drivers share one connection to a format process."""

    def __init__(self, factory: PartitionFactory, folder: Path) -> None:
        super().__init__(factory, folder)
        path = folder / "disk.qcow2"
        create_image(path, DiskFormat.QCOW2, SIZE)
        path.chmod(0o600)
        self.disk = DiskSpec(path=str(path), format=DiskFormat.QCOW2)
        self.replay = self._keep(create_disk_replay(self.disk))
        self.environment = make_environment(folder)

    async def start_format(self) -> None:
        chain = read_chain(self.disk.path, self.disk.format)
        self.format: FormatProcess = start_format_process(self.environment, "disk", self.disk, chain)

    async def begin(self) -> None:
        """Start everything: the format process, the active driver and its spare."""
        await self.start_format()
        assert await self.format.read_size() == SIZE
        self.connection = self.format.connect()
        self.active = await self.serve()
        self.spare = await self.stand_by(self.active)

    async def replace_format(self) -> None:
        """Kill the format process; the next one is attached to both drivers."""
        os.kill(self.format.process.program_pid(), signal.SIGKILL)
        await self.format.process.wait()
        self.connection.close()
        await self.start_format()
        self.connection = self.format.connect()
        for partition in (self.active, self.spare):
            await partition.control.request("attach", descriptors={"format": self.connection.fileno()})

    async def replace_driver(self) -> None:
        """Kill the active driver; the spare takes over and gets a spare of its own."""
        await self.active.process.kill()
        self.active.control.close()
        await self.wait_serving(self.spare)
        self.active = self.spare
        self.spare = await self.stand_by(self.active)

    async def hand_over(self) -> None:
        """Let the active driver go in order."""
        await self.active.control.request("hand_over", to="spare")
        assert await self.active.process.wait() == 0
        await self.wait_serving(self.spare)
        self.active = self.spare
        self.spare = await self.stand_by(self.active)

    async def wait_serving(self, partition: Partition) -> None:
        while (event := await partition.control.next_event())["event"] != "serving":
            pass
        assert event["connection"] == "inherited"

    async def end(self) -> None:
        self.close()
        for partition in (self.active, self.spare):
            assert await partition.process.wait() == 0
        self.connection.close()
        await self.format.process.stop()

    async def _assign(
        self, partition: Partition, do: str, descriptors: dict[str, int], **fields: float
    ) -> None:
        path = self.folder / f"{partition.name.partition('/')[2]}.control"
        given = {**descriptors, "replay": self.replay, "page": self._page, "format": self.connection.fileno()}
        options = ["--queue-size", "128", "--size", str(SIZE)]
        with bind_listener(path) as listener:
            given["listener"] = listener.fileno()
            await partition.control.request(
                do, driver="block", options=options, poll_us=50, descriptors=given, **fields
            )


@pytest_asyncio.fixture
async def disk() -> AsyncIterator[FormattedDisk]:
    folder = Path(tempfile.mkdtemp(prefix="dvt-", dir="/tmp"))
    folder.chmod(0o755)
    factory = await PartitionFactory.start(log=folder / "factory.log", end_with_owner=True)
    made = FormattedDisk(factory, folder)
    await made.begin()
    yield made
    made.release()
    made.connection.close()
    await factory.close()
    await made.format.process.kill()
    shutil.rmtree(folder)


async def test_any_of_them_may_die(disk: FormattedDisk) -> None:
    source, reference = random.Random(3), disk.folder / "reference"
    load = Load(disk.front, SIZE, 3)
    for number in range(15):
        load.run(source.uniform(0.0, 0.03))
        step = (disk.replace_driver, disk.replace_format, disk.hand_over)[number % 3]
        await step()
    load.run(0.05, at_least=300)
    load.finish()
    load.save(reference)
    await disk.end()
    check_image(Path(disk.disk.path), DiskFormat.QCOW2)
    compare_images(Path(disk.disk.path), DiskFormat.QCOW2, reference)


async def test_both_die_at_once(disk: FormattedDisk) -> None:
    disk.client.write(0, b"a" * 4096)
    os.kill(disk.format.process.program_pid(), signal.SIGKILL)
    await disk.active.process.kill()
    await disk.wait_serving(disk.spare)
    await disk.format.process.wait()
    disk.connection.close()
    await disk.start_format()
    disk.connection = disk.format.connect()
    await disk.spare.control.request("attach", descriptors={"format": disk.connection.fileno()})
    assert disk.client.read(0, 4096) == b"a" * 4096
    disk.active = disk.spare
    await disk.end()


async def test_a_descriptor_of_another_name_is_refused(disk: FormattedDisk) -> None:
    given = {"image": disk.connection.fileno()}
    with pytest.raises(PartitionRefusedError, match="no use for a descriptor named image"):
        await disk.active.control.request("attach", descriptors=given)
    disk.client.write(0, b"a" * 4096)
    assert disk.client.read(0, 4096) == b"a" * 4096
