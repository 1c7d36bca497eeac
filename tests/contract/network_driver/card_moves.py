"""TAPs on a bridge for a card that moves from one to the other, and a guest that checks what it gets."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.contract.network_driver import flood
from tests.networks import BRIDGE, enter_network, list_ports

from duovisor.controlling.networks.bridged import open_bridged_tap
from duovisor.spec.vm import NicSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

CARD = NicSpec(network="bridge", bridge=BRIDGE)
MAC = flood.GUEST.hex(":")
HEADER_BYTES = len(flood.HEADER)
READ_BYTES = 70_000
QUEUE = 1000  # frames that a TAP lets wait
FEW = 2
END_S = 60.0


@contextmanager
def enter_quiet_network() -> Iterator[None]:
    """Be in a network namespace whose bridge says nothing by itself; no TAP may be left on it."""
    with enter_network():
        with open(f"/proc/sys/net/ipv6/conf/{BRIDGE}/disable_ipv6", "w") as file:
            file.write("1")
        yield
        assert list_ports() == [], "a TAP was left behind"


@contextmanager
def open_taps() -> Iterator[list[int]]:
    """Two TAPs for one card."""
    taps = [open_bridged_tap("move", 0, CARD, MAC) for _ in range(2)]
    try:
        yield taps
    finally:
        for tap in taps:
            os.close(tap)


@contextmanager
def open_sender() -> Iterator[int]:
    """The TAP of another card on the bridge."""
    tap = open_bridged_tap("sender", 1, CARD, flood.SENDER.hex(":"))
    try:
        yield tap
    finally:
        os.close(tap)


def speak(tap: int) -> None:
    """The guest sends something: the bridge learns where it is."""
    os.write(tap, flood.HEADER + b"\xff" * 6 + flood.GUEST + b"\x88\xb6" + bytes(50))


def read_all(tap: int) -> list[bytes]:
    """The frames that wait in a TAP, with their headers."""
    frames = []
    while True:
        try:
            frames.append(os.read(tap, READ_BYTES))
        except BlockingIOError:
            return frames


def run_bridge(*words: str) -> str:
    """Run ``bridge`` and return what it prints."""
    return subprocess.run(["bridge", *words], check=True, capture_output=True, text=True).stdout


def find_places() -> list[dict[str, object]]:
    """What the bridge knows of the guest's address, on each VLAN."""
    shown = json.loads(run_bridge("-j", "-d", "fdb", "show", "br", BRIDGE))
    return [dict(each) for each in shown if each["mac"] == MAC]


def find_place() -> dict[str, object]:
    """The same outside VLANs; a kernel that knows VLANs may have an entry for the default one, too."""
    (place,) = [each for each in find_places() if "vlan" not in each]
    return place


class Guest:
    """Reads what it is sent, checks each frame, and lets the sender know how far it is."""

    def __init__(self, page: mmap.mmap) -> None:
        self._page = page
        self.seen: set[int] = set()
        self.last = 0
        self.reordered = self.repeated = self.garbled = 0
        self.sender: subprocess.Popen[bytes] | None = None

    def read(self, tap: int, at_most: int = 500) -> None:
        """Take frames that wait, but do not wait for others."""
        for _ in range(at_most):
            try:
                frame = os.read(tap, READ_BYTES)
            except BlockingIOError:
                return
            self._take(frame)

    def drain(self, tap: int) -> None:
        """Let the sender end, and take what it has sent."""
        assert self.sender is not None
        self._page[flood.END_AT] = 1
        deadline = time.monotonic() + END_S
        while self.sender.poll() is None:
            assert time.monotonic() < deadline
            self.read(tap)
            time.sleep(0.001)
        time.sleep(0.2)
        self.read(tap, QUEUE)

    def _take(self, frame: bytes) -> None:
        number = flood.find_number(frame)
        if number is None:  # the bridge's own
            return
        for_all = flood.is_for_all(number)
        sound = flood.build_frame(number)  # some kernels leave the end of the header, the count, as it was
        self.garbled += (frame[:10], frame[HEADER_BYTES:]) != (sound[:10], sound[HEADER_BYTES:])
        if number in self.seen:
            self.repeated += not for_all
            return
        self.seen.add(number)
        flood.NUMBER.pack_into(self._page, flood.RECEIVED_AT, len(self.seen))
        if not for_all:
            self.reordered += number < self.last
            self.last = max(self.last, number)


@contextmanager
def flooded(window: int, overtaken_share: float = 0.0) -> Iterator[Guest]:
    """A guest that is sent frames; on leaving, all of them must have come, once, in order and whole.

    ``overtaken_share`` of them may be out of order, and a few where only few were sent.
    """
    page = os.memfd_create("flood")
    os.truncate(page, flood.PAGE_BYTES)
    with open_sender() as tap, mmap.mmap(page, flood.PAGE_BYTES) as shared:
        words = [sys.executable, flood.__file__, str(tap), str(page), str(window)]
        guest = Guest(shared)
        with subprocess.Popen(words, pass_fds=[tap, page]) as sender:
            guest.sender = sender
            try:
                while flood.NUMBER.unpack_from(shared, flood.SENT_AT)[0] == 0:
                    assert sender.poll() is None
                    time.sleep(0.01)
                yield guest
            finally:
                sender.kill()
        sent = flood.NUMBER.unpack_from(shared, flood.SENT_AT)[0]
    os.close(page)
    assert sent > 10
    missing = set(range(1, sent + 1)) - guest.seen
    assert not missing, f"{sorted(missing)[:20]} of {sent} frames are missing"
    assert (guest.repeated, guest.garbled) == (0, 0), f"{guest.repeated}, {guest.garbled} of {sent}"
    overtaken = max(FEW, sent * overtaken_share) if overtaken_share else 0
    assert guest.reordered <= overtaken, f"{guest.reordered} of {sent} are out of order"


def run_source(guest: Guest, tap: int, *, for_s: float = 0.002) -> None:
    """The guest runs, and speaks."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        guest.read(tap)
    speak(tap)
