"""A process that forks storage drivers, active ones and spares, some with a fixed moment to die.

Started as ``python nursery.py FD`` with a SOCK_SEQPACKET socket. Each packet is a JSON order with
descriptors, each answer the pid of a new child, which obeys and tells over a control socket of its own.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from duovisor.channel import succession
from duovisor.channel.backend import Backend
from duovisor.channel.connection import Connection
from duovisor.channel.event_loop import EventLoop
from duovisor.channel.inflight import QueueInflight
from duovisor.channel.page import Page
from duovisor.channel.standby import Outcome, Standby
from duovisor.channel.virtqueue import Virtqueue
from duovisor.controlling.drivers.block_device import BlockDevice
from duovisor.controlling.drivers.image import open_image

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES = 4096
MAX_DESCRIPTORS = 16

# Where a driver may die: before and after each call of these.
STEPS: list[tuple[Any, str]] = [
    (Connection, "receive"),
    (Connection, "send"),
    (succession, "send_snapshot"),
    (QueueInflight, "recover"),
    (Virtqueue, "start"),
    (Virtqueue, "pop"),
    (Virtqueue, "complete"),
    (Virtqueue, "publish"),
    (Virtqueue, "notify"),
    (Virtqueue, "enable_notifications"),
]


class Life:
    """Counts steps and ends the process at the chosen one."""

    def __init__(self) -> None:
        self.steps = 0
        self.die_at = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: Any, name: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def mortal(*arguments: Any, **settings: Any) -> Any:
            self.step()
            result = call(*arguments, **settings)
            self.step()
            return result

        setattr(owner, name, mortal)

    def wrap_page(self) -> None:
        """Also between the two writes of ``busy`` and what is around them."""
        busy: Any = Page.__dict__["busy"]

        def write(page: Page, value: bool) -> None:
            self.step()
            busy.fset(page, value)
            self.step()

        setattr(Page, "busy", busy.setter(write))  # noqa: B010 - mypy allows no assignment to a property


class Child:
    """One driver. ``given`` are its descriptors by name."""

    def __init__(self, order: dict[str, Any], given: dict[str, int]) -> None:
        self.order = order
        self.given = given
        self.life = Life()
        self.control = socket.socket(fileno=given["control"])
        self.loop = EventLoop()
        self.backend: Backend | None = None
        self.resubmitted = 0
        image = open_image(given["image"], read_only=False, direct=False)
        self.device = BlockDevice(image, queues=order["queues"], threads=2)
        self.page = Page.open(given["page"])

    def run(self) -> None:
        self.count_resubmitted()
        if self.order.get("mortal"):
            for owner, name in STEPS:
                self.life.wrap(owner, name)
            self.life.wrap_page()
        self.loop.watch(self.control.fileno(), self.obey)
        if self.order["role"] == "active":
            channel = socket.socket(fileno=self.given["channel"])
            self.backend = Backend(channel, self.device, page=self.page, loop=self.loop, report=self.say)
        else:
            standby = Standby(
                self.device, page=self.page, succession=socket.socket(fileno=self.given["succession"]),
                active=self.given.get("active"), hang_s=self.order.get("hang_s", 0.0),
                on_hang=self.tell_hung, loop=self.loop, report=self.say,
            )  # fmt: skip
            self.tell(event="standing by")
            outcome = standby.run()
            self.tell(event=outcome, at_ns=time.monotonic_ns())
            if outcome is not Outcome.TOOK_OVER:
                return
            self.backend = standby.backend
        assert self.backend is not None
        self.tell(event=self.backend.run(), steps=self.life.steps)

    def count_resubmitted(self) -> None:
        recover = QueueInflight.recover

        def counting(region: QueueInflight, used_index: int) -> list[int]:
            heads = recover(region, used_index)
            self.resubmitted += len(heads)
            return heads

        setattr(QueueInflight, "recover", counting)  # noqa: B010 - mypy allows no assignment to a method

    def obey(self) -> None:
        received = receive(self.control)
        if received is None:
            self.loop.unwatch(self.control.fileno())
            return
        order, descriptors = received
        match order["do"]:
            case "add_successor":
                assert self.backend is not None
                self.tell(
                    reply=self.backend.add_successor(order["name"], socket.socket(fileno=descriptors[0]))
                )
            case "hand_over":
                assert self.backend is not None
                self.tell(reply=self.backend.hand_over(order["name"]))
            case "die":
                self.life.steps, self.life.die_at = 0, order["at"]
                self.tell(reply=True)
            case "statistics":
                assert self.backend is not None
                self.tell(reply={**self.backend.statistics(), "resubmitted": self.resubmitted})

    def tell_hung(self, queue: int | None, seconds: float) -> None:
        self.tell(event="hung", queue=queue, seconds=seconds)

    def say(self, line: str) -> None:
        if line.startswith("the successor"):
            return  # tests kill successors; what follows from that, they look at
        os.write(2, f"{os.getpid()}: {line}\n".encode())

    def tell(self, **what: object) -> None:
        try:
            self.control.send(json.dumps(what).encode())
        except OSError:
            pass  # the test has finished with us


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One packet and its descriptors; ``None`` at the end."""
    data, ancillary, _, _ = sock.recvmsg(MAX_BYTES, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4))
    descriptors = array.array("i")
    for _, _, content in ancillary:
        descriptors.frombytes(content)
    return (json.loads(data), list(descriptors)) if data else None


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the children reap themselves
    sys.setswitchinterval(0.0002)
    orders = socket.socket(fileno=int(sys.argv[1]))
    while (received := receive(orders)) is not None:
        order, descriptors = received
        pid = os.fork()
        if not pid:
            orders.close()
            code = 1
            try:
                Child(order, dict(zip(order["descriptors"], descriptors, strict=True))).run()
                code = 0
            except BaseException as error:
                os.write(2, f"{os.getpid()} {order['role']}: {error!r}\n".encode())
            os._exit(code)
        for descriptor in descriptors:
            os.close(descriptor)
        orders.send(b"%d" % pid)


if __name__ == "__main__":
    main()
