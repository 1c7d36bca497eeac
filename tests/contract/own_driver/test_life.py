"""A driver of one's own lives as the built-in ones do: killed, updated, refused."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.errors import DriverFileError, PartitionError
from duovisor.controlling.supervision.records import DeviceState, DriverEventKind

if TYPE_CHECKING:
    from .conftest import Stage

KINDS = DriverEventKind

COUNTER = """
import time
from dataclasses import dataclass

from duovisor.channel.device import VirtioDevice


@dataclass
class Told:
    at: float
    text: str


class Answering(VirtioDevice):
    device_id = 4

    def __init__(self, *, text: str, times: int = 1) -> None:
        self.told = Told(time.monotonic(), text * times)

    def handle_request(self, chain):
        answer = self.told.text.encode()
        chain.writable[0][: len(answer)] = answer
        return len(answer)

    def statistics(self):
        return {"letters": len(self.told.text)}
"""


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def test_it_serves_with_its_options_and_survives_kills(stage: Stage) -> None:
    device = stage.build_device(COUNTER, text="ab", times=3)
    await device.start()
    for count in range(1, 4):
        assert await stage.ask() == b"ababab"
        await stage.wait_spare()
        kill(device.describe().pid)
        assert await stage.ask() == b"ababab"
        told = await stage.wait_told(KINDS.RECOVERED, count)
        assert "the spare took over" in told.message
    assert device.crew.active is not None
    status = await device.crew.active.request("status")
    assert status["statistics"]["device"] == {"letters": 6}


async def test_the_entropy_driver_survives_kills(stage: Stage) -> None:
    device = stage.build_device(None)
    await device.start()
    seen = set()
    for count in range(1, 4):
        seen.add(await stage.ask())
        await stage.wait_spare()
        kill(device.describe().pid)
        seen.add(await stage.ask())
        await stage.wait_told(KINDS.RECOVERED, count)
    assert len(seen) == 6
    assert all(len(each) == 64 for each in seen)
    assert len(await stage.ask(room=100_000)) == 1 << 16


async def test_an_update_takes_the_file_as_it_is_now(stage: Stage) -> None:
    device = stage.build_device(COUNTER, text="a")
    await device.start()
    assert await stage.ask() == b"a"
    await stage.wait_spare()
    stage.file.write_text(COUNTER.replace("text * times", "'new ' + text"))
    await device.replace(latest=False)
    assert await stage.ask() == b"a"  # a restart keeps the code
    done = await device.replace(latest=True)
    assert await stage.ask() == b"new a"
    assert done.old_code != done.new_code
    kill(device.describe().pid)
    assert await stage.ask() == b"new a"


@pytest.mark.parametrize("broken", ["class Nothing: pass", "this is no Python", "import nowhere\n" + COUNTER])
async def test_an_update_that_cannot_be_leaves_the_driver_alone(stage: Stage, broken: str) -> None:
    device = stage.build_device(COUNTER, text="a")
    await device.start()
    assert await stage.ask() == b"a"
    pid = device.describe().pid
    stage.file.write_text(broken)
    with pytest.raises((DriverFileError, PartitionError)):
        await device.replace(latest=True)
    assert device.describe().pid == pid
    await stage.wait_spare()
    kill(pid)
    assert await stage.ask() == b"a"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (COUNTER.replace("text * times", "text / times"), "my_driver.py:18: TypeError: unsupported operand"),
        (COUNTER + "\n1 / 0\n", "my_driver.py:28: ZeroDivisionError: division by zero"),
        (COUNTER + "\nraise SystemExit(3)\n", "my_driver.py:28: SystemExit: 3"),
        ("import nowhere\n" + COUNTER, "my_driver.py:1: there is no module nowhere in a partition"),
        ("import sqlite3\n" + COUNTER, "my_driver.py:1: there is no module"),
        (COUNTER + "\nclass Other(VirtioDevice): pass\n", "defines Answering and Other"),
        (COUNTER + "\ndel Answering\n", "defines no class; it must define one class derived from"),
        (COUNTER.replace("self.told =", "self.queues = 'x'; self.told ="), "queues of a device is 'x'"),
        (COUNTER.replace("self.told =", "self.device_id = 9; self.told ="), "type 9, but its file says 4"),
        (COUNTER + "\n    def read_config(self):\n        return 'text'\n", "read_config returned 'text'"),
        (
            COUNTER + "\n    def read_config(self):\n        raise KeyError(1)\n",
            "read_config failed: KeyError",
        ),
    ],
    ids=lambda text: text[-40:] if "\n" in text else None,
)
async def test_what_cannot_serve_is_refused_with_one_clear_line(
    stage: Stage, source: str, complaint: str
) -> None:
    device = stage.build_device(source, text="a")
    with pytest.raises(PartitionError) as refused:
        await device.start()
    assert complaint in refused.value.message


async def test_wrong_options_are_refused(stage: Stage) -> None:
    device = stage.build_device(COUNTER, colour="red")
    with pytest.raises(PartitionError, match="unexpected keyword argument 'colour'"):
        await device.start()


async def test_it_sees_nothing_of_the_host(stage: Stage) -> None:
    source = COUNTER.replace("answer = self.told.text.encode()", "answer = self.look()")
    source += """
    def look(self):
        import os, socket
        found = [sorted(os.environ)]
        for attempt in (
            lambda: open("/etc/passwd"), lambda: open("/x", "w"), lambda: socket.socket(), lambda: os.fork(),
            lambda: os.kill(-1, 9), lambda: os.system("true"), lambda: os.listdir("/"),
        ):
            try:
                found.append(attempt())
            except OSError as error:
                found.append(error.errno)
        return repr(found).encode()
"""
    device = stage.build_device(source, text="")
    await device.start()
    found = eval((await stage.ask(room=4096)).decode())
    assert all(isinstance(each, int) and each > 0 for each in found[1:]), found


async def test_given_up_its_requests_wait_until_a_restart(stage: Stage) -> None:
    source = COUNTER.replace("answer = self.told.text.encode()", "answer = self.answer(chain)")
    source += """
    def answer(self, chain):
        if bytes(chain.readable[0]) == b"poison":
            raise RuntimeError("poisoned")
        return b"fine"
"""
    device = stage.build_device(source, text="")
    await device.start()
    assert await stage.ask(b"good") == b"fine"
    await stage.wait_spare()
    poisoned = asyncio.create_task(stage.ask(b"poison", timeout_s=300))
    told = await stage.wait_told(KINDS.FAILED)
    assert "RuntimeError: poisoned" in told.message
    assert "its requests wait" in told.message
    assert device.describe().state is DeviceState.FAILED
    assert not stage.paused
    assert not poisoned.done()
    stage.file.write_text(source.replace('b"poison"', "None"))
    await device.replace(latest=True)
    assert await poisoned == b"fine"
    assert await stage.ask(b"good") == b"fine"
    assert device.describe().state is DeviceState.RUNNING
