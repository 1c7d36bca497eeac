"""Drivers that misbehave, in real partitions: each is contained, and a good successor makes up for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.drivers.bounded_log import MAX_BYTES
from duovisor.controlling.supervision.records import DriverEventKind

if TYPE_CHECKING:
    from .conftest import Stage

KINDS = DriverEventKind

HEAD = """
import os, sys, threading, time

from duovisor.channel.device import VirtioDevice


class Bad(VirtioDevice):
    device_id = 4

    def write(self, chain, data):
        chain.writable[0][: len(data)] = data
        return len(data)

"""

# what each does to a request that says "bad"; any other it answers
BAD = {
    "raises": "raise RuntimeError('no')",
    "exits": "sys.exit(0)",
    "exits at once": "os._exit(0)",
    "returns text": "return 'many'",
    "returns too much": "return 65",
    "crashes": "import ctypes; ctypes.string_at(0)",
    "calls what is forbidden": "open('/etc/passwd')",
    "aborts": "os.abort()",
    "recurses": "return self.handle_request(chain)",
}
HANGS = {
    "loops": "\n            while True: pass",
    "sleeps": "time.sleep(1000)",
    "waits for itself": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
}
ANSWER = "\n        return self.write(chain, b'fine')\n"


def build_source(misdeed: str) -> str:
    return (
        f"{HEAD}    def handle_request(self, chain):\n"
        f"        if bytes(chain.readable[0]) == b'bad':\n            {misdeed}{ANSWER}"
    )


GOOD = f"{HEAD}    def handle_request(self, chain):{ANSWER}"
LEAKING = f"""{HEAD}    def handle(self, queue, chains):
        super().handle(queue, [chain for chain in chains if bytes(chain.readable[0]) != b'bad'])

    def handle_request(self, chain):{ANSWER}"""
TWICE = f"""{HEAD}    def handle(self, queue, chains):
        super().handle(queue, chains)
        for chain in chains:
            if bytes(chain.readable[0]) == b'bad':
                queue.complete(chain, 0)

    def handle_request(self, chain):{ANSWER}"""


@pytest.mark.parametrize("source", [*map(build_source, BAD.values()), TWICE], ids=[*BAD, "completes twice"])
async def test_one_that_ends_is_succeeded_until_it_is_given_up(stage: Stage, source: str) -> None:
    device = stage.build_device(source)
    await device.start()
    assert await stage.ask(b"good") == b"fine"
    await stage.wait_spare()
    bad = asyncio.create_task(stage.ask(b"bad", timeout_s=300))
    await stage.wait_told(KINDS.DIED)
    await stage.wait_told(KINDS.FAILED)  # each driver met the same request
    assert not bad.done(), "the guest was told something"
    stage.file.write_text(GOOD)
    await device.replace(latest=True)
    assert await bad == b"fine"
    assert await stage.ask(b"good") == b"fine"


@pytest.mark.parametrize("source", [*map(build_source, HANGS.values()), LEAKING], ids=[*HANGS, "leaks"])
async def test_one_that_hangs_is_ended(stage: Stage, source: str) -> None:
    device = stage.build_device(source, hang_s=0.5)
    await device.start()
    assert await stage.ask(b"good") == b"fine"
    await stage.wait_spare()
    await stage.submit(b"bad")
    told = await stage.wait_told(KINDS.HUNG)
    assert "queue 0 made no progress" in told.message
    await stage.wait_told(KINDS.DIED)
    assert not stage.front.queues[0].has_used(), "the guest was told something"


async def test_one_that_eats_memory_gets_no_more_than_its_limit(stage: Stage) -> None:
    misdeed = "self.held = [bytearray(1 << 20) for _ in range(1 << 20)]"
    device = stage.build_device(build_source(misdeed), hang_s=0)
    await device.start()
    assert device.plan.limits.data_bytes < 1 << 30
    await stage.submit(b"bad")
    async with asyncio.timeout(120):
        while "more memory than there is" not in stage.read_log():
            await asyncio.sleep(0.05)
    assert not stage.front.queues[0].has_used(), "the guest was told something"


async def test_what_it_prints_is_bounded(stage: Stage) -> None:
    misdeed = "\n            for _ in range(100): print('x' * 100_000); sys.stderr.write('y' * 100_000)"
    device = stage.build_device(build_source(misdeed))
    await device.start()
    assert await stage.ask(b"bad") == b"fine"
    log = stage.read_log()
    assert MAX_BYTES < len(log) < MAX_BYTES + 1000
    assert log.endswith("(what it prints from here on is dropped)\n")
    assert await stage.ask(b"bad") == b"fine"
    assert stage.read_log() == log


async def test_one_that_starts_threads_and_dies_is_succeeded(stage: Stage) -> None:
    misdeed = "[threading.Thread(target=time.sleep, args=(99,)).start() for _ in range(20)]; os._exit(1)"
    device = stage.build_device(build_source(misdeed))
    await device.start()
    await stage.wait_spare()
    await stage.submit(b"bad")
    await stage.wait_told(KINDS.RECOVERED)
