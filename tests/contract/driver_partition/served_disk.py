"""A disk that a partition serves: what its owner prepares, and the front end in a guest's place."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from duovisor.channel.frontend import FrontEnd
from duovisor.channel.page import create_page
from duovisor.controlling.drivers.block_client import BlockClient
from duovisor.controlling.partitions.control import ControlConnection, bind_listener
from duovisor.controlling.partitions.limits import build_limits

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.partitions.factory import PartitionFactory
    from duovisor.controlling.partitions.partition import Partition

IMAGE_BYTES = 4 << 20
VM_UID = 0x70001234


class ServedDisk:
    """An image, its page, and partitions that serve it to ``client``."""

    def __init__(self, factory: PartitionFactory, folder: Path) -> None:
        self.factory = factory
        self.folder = folder
        self.image = folder / "disk.raw"
        self.image.write_bytes(os.urandom(IMAGE_BYTES))
        self.partitions: list[Partition] = []
        self.channel: socket.socket
        self._stack = ExitStack()
        self._page = self._keep(create_page())
        self.front = self._stack.enter_context(FrontEnd())
        self.client = BlockClient(self.front)

    def close(self) -> None:
        """End the guest; every partition that serves it ends with it."""
        self._stack.close()

    def release(self) -> None:
        """Close all that is still open."""
        self.close()
        for partition in self.partitions:
            partition.control.close()

    async def create(self) -> Partition:
        """A partition at its gate."""
        name = f"disk{len(self.partitions)}"
        partition = await self.factory.create(
            name=f"vm/{name}",
            uid=VM_UID,
            gid=VM_UID,
            log=self.folder / f"{name}.log",
            limits=build_limits(64),
        )
        self.partitions.append(partition)
        return partition

    async def serve(self) -> Partition:
        """A partition that serves on a new connection."""
        partition = await self.create()
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = {"channel": theirs.fileno()}
            await self._assign(partition, "serve", descriptors)
        self.channel = ours
        self.front.connect(ours)
        assert await partition.control.next_event() == {"event": "serving", "connection": "new"}
        return partition

    async def stand_by(self, active: Partition, hang_s: float = 0.0) -> Partition:
        """A spare of ``active`` that has its first snapshot."""
        spare = await self.create()
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pidfd = os.pidfd_open(active.process.pid)
        with theirs, ours:
            descriptors = {"succession": theirs.fileno(), "active": pidfd}
            await self._assign(spare, "stand_by", descriptors, hang_s=hang_s)
            await active.control.request(
                "add_successor", name="spare", descriptors={"succession": ours.fileno()}
            )
        os.close(pidfd)
        while not (await spare.control.request("status"))["ready"]:
            pass  # each round is a request and its reply
        return spare

    async def connect(self, partition: Partition) -> ControlConnection:
        """A further connection to a partition, as a service makes it that came back."""
        return await ControlConnection.connect(self.folder / f"{partition.name.partition('/')[2]}.control")

    async def _assign(
        self, partition: Partition, do: str, descriptors: dict[str, int], **fields: float
    ) -> None:
        image = os.open(self.image, os.O_RDWR)
        path = self.folder / f"{partition.name.partition('/')[2]}.control"
        with bind_listener(path) as listener:
            given = {**descriptors, "image": image, "page": self._page, "listener": listener.fileno()}
            await partition.control.request(
                do, driver="block", options=["--queue-size", "128"], poll_us=50, descriptors=given, **fields
            )
        os.close(image)

    def _keep(self, descriptor: int) -> int:
        self._stack.callback(os.close, descriptor)
        return descriptor
