"""Every driver offers the dirty log: QEMU refuses to migrate a VM one of whose back ends does not."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

import pytest
from tests.unit.drivers.net_card import Wire

from duovisor.channel import messages as m
from duovisor.channel.connection import Connection, Message
from duovisor.channel.features import LOG_ALL, PROTOCOL_LOG_SHMFD
from duovisor.channel.messages import Request
from duovisor.channel.session import Session
from duovisor.controlling.drivers import net, registry
from duovisor.controlling.drivers.console_device import ConsoleDevice
from duovisor.controlling.drivers.encrypted import KEY_BYTES
from duovisor.controlling.drivers.entropy import EntropyDevice
from duovisor.controlling.drivers.formatted import FormattedDevice
from duovisor.controlling.drivers.registry import DRIVERS
from duovisor.controlling.drivers.replay_memory import create_replay
from duovisor.controlling.drivers.resting import describe_device

if TYPE_CHECKING:
    from duovisor.channel.ring import Ring

MIB = 1 << 20
SOURCE = b"""
from duovisor.channel.device import VirtioDevice
from duovisor.controlling.drivers.storage_device import StorageDevice

class Mine(%s):
    device_id = %d
"""
FACTS = json.dumps(describe_device(EntropyDevice()))
# the words of each driver, and what its descriptors hold; those that are no files are made in ``give``
NEEDS: dict[str, tuple[list[str], dict[str, bytes]]] = {
    "block": ([], {"image": bytes(MIB)}),
    "failing-block": ([], {"image": bytes(MIB)}),
    "parked-block": ([], {"image": bytes(MIB)}),
    "faulty-block": ([], {"image": bytes(MIB), "faults": b"{}"}),
    "formatted": (["--size", str(MIB)], {"replay": b""}),
    "encrypted": ([], {"image": bytes(MIB), "key": os.urandom(KEY_BYTES)}),
    "own-disk": (["mine.py", "2", "{}"], {"image": bytes(MIB), "source": SOURCE % (b"StorageDevice", 2)}),
    "failing-own-disk": ([FACTS], {}),
    "parked-own-disk": ([FACTS], {}),
    "net": ([], {"tap": b""}),
    "failing-net": ([], {"tap": b""}),
    "parked-net": ([], {"tap": b""}),
    "console": ([], {"console": b""}),
    "failing-console": ([], {}),
    "rng": ([], {}),
    "own": (["mine.py", "4", "{}"], {"source": SOURCE % (b"VirtioDevice", 4)}),
    "failing-device": ([FACTS], {}),
    "parked-device": ([FACTS], {}),
}


class NoQueues:
    """No queue ever starts."""

    def queue_started(self, ring: Ring) -> None: ...

    def queue_stopping(self, ring: Ring) -> None: ...


def give(name: str, content: bytes) -> int:
    """A descriptor for a driver."""
    if name == "replay":
        return create_replay(4 * MIB)
    if name == "console":
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours.detach()
    descriptor = os.memfd_create(name)
    os.write(descriptor, content)
    return descriptor


def ask(session: Session, front: Connection, request: Request) -> int:
    session.serve_message(Message(request, 0, b"", []))
    return m.parse_u64(front.wait(5).payload)


@pytest.mark.parametrize("name", NEEDS)
def test_the_dirty_log_is_offered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    monkeypatch.setattr(net, "_take_tap", lambda _: wire)
    words, contents = NEEDS[name]
    descriptors = {each: give(each, content) for each, content in contents.items()}
    create = DRIVERS["block" if name == "formatted" else name]
    ours, theirs = socket.socketpair()
    front, back = Connection(ours), Connection(theirs)
    device = create(words, descriptors)
    session = Session(back, device, NoQueues())
    assert ask(session, front, Request.GET_FEATURES) & LOG_ALL
    assert ask(session, front, Request.GET_PROTOCOL_FEATURES) & PROTOCOL_LOG_SHMFD
    for each in (session, back, front, wire, wire.end):
        each.close()
    if isinstance(device, ConsoleDevice | FormattedDevice):
        device.close()


def test_no_driver_is_left_out() -> None:
    assert set(NEEDS) - {"formatted"} == set(registry.DRIVERS)
