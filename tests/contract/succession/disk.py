"""A disk under load: drivers that die, the owner's duties, and the same disk in memory to compare with."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

from tests.contract.succession.crew import Crew, Nursery, wait_until
from tests.contract.succession.load import Load, finish, wait_for_answers

from duovisor.channel import features as bits
from duovisor.channel.errors import ChannelError
from duovisor.channel.frontend import FrontEnd

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = bits.CHANNEL_PROTOCOL_FEATURES
BLOCK = 4096


class Disk:
    """A crew under load, the same disk in memory, and the owner's duties when a driver dies."""

    def __init__(
        self, crew: Crew, *, depth: int = 4, length: int = BLOCK, protocol: int = ALL, features: int = -1
    ) -> None:
        self.crew = crew
        self.source = random.Random(depth)
        self.reference = bytearray(crew.content())
        self.front = FrontEnd(
            memory_bytes=(2 << 20) + crew.queues * depth * (length + 3 * BLOCK), queues=crew.queues,
            queue_size=128, protocol_features=protocol, features=features & (1 << 64) - 1 & ~bits.LOG_ALL,
        )  # fmt: skip
        self.depth = depth
        self.length = length
        self.loads: list[Load] = []
        self.outcomes: list[str] = []
        self.again = True  # whether those who come next get a spare too

    def connect(self, *, die_at: int = 0, spare: bool = True, mortal: bool = False) -> None:
        """Start an active driver, which may die on the way, and its spare; end up with one of them."""
        channel = self.crew.start_active(mortal=mortal or bool(die_at))
        if spare:
            self.crew.add_spare()
        assert self.crew.active is not None
        if die_at:
            self.crew.active.ask("die", at=die_at)
        try:
            self.front.connect(channel)
        except ChannelError:
            self.replace()
        if not self.loads:
            self._prepare()

    def _prepare(self) -> None:
        blocks = len(self.reference) // self.length // self.crew.queues
        for queue in range(self.crew.queues):
            mine = range(queue * blocks, (queue + 1) * blocks)
            load = Load(self.front, queue, self.reference, mine, self.length, self.depth)
            self.loads.append(load)

    def replace(self) -> None:
        """The connection is lost: another active driver on a new one."""
        if self.crew.spare is not None:
            self.outcomes.append(self.crew.promote()["event"])
            assert self.outcomes[-1] == "interrupted"
        assert self.crew.active is None or self.crew.active.gone
        self.connect(spare=self.again)

    def settle(self) -> None:
        """If the active driver is gone, find out who goes on, and give that one a spare."""
        if self.crew.active is None or not self.crew.active.gone:
            return
        if self.crew.spare is None:
            self.replace()
            return
        self.outcomes.append(self.crew.promote()["event"])
        if self.outcomes[-1] == "took-over":
            if self.again:
                self.crew.add_spare()
        else:
            assert self.outcomes[-1] == "interrupted"
            wait_until(lambda: self.crew.disconnected, "an interrupted connection is left open")
            self.connect(spare=self.again)

    def submit(self) -> None:
        for load in self.loads:
            load.submit(self.source)

    def answer_all(self) -> None:
        """Wait until everything is answered, whoever dies meanwhile."""
        while any(load.flying for load in self.loads):
            self.settle()
            assert self.crew.active is not None
            wait_for_answers([load for load in self.loads if load.flying], self.crew.active.pidfd)
        self.settle()

    def check(self) -> None:
        """Everything is answered and the image is what it should be."""
        finish(self.loads)
        assert self.crew.content() == self.reference


@contextlib.contextmanager
def make_disk(
    nursery: Nursery, *, queues: int = 2, image_bytes: int = 1 << 20, **settings: int
) -> Iterator[Disk]:
    """A disk in memory, with nobody who serves it yet."""
    crew = Crew(nursery, image_bytes, queues)
    disk = Disk(crew, **settings)
    try:
        yield disk
    finally:
        disk.front.close()
        crew.close()
