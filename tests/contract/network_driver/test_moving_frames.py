"""What waits in a TAP when its card moves: segmentation and checksums left undone, and how much there is."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.contract.network_driver import flood
from tests.contract.network_driver.card_moves import (
    HEADER_BYTES,
    MAC,
    QUEUE,
    enter_quiet_network,
    open_sender,
    open_taps,
    read_all,
    speak,
)
from tests.networks import why_no_namespace

from duovisor.controlling.networks.moving import prepare_move
from duovisor.controlling.networks.offloads import set_offloads

if TYPE_CHECKING:
    from collections.abc import Iterator

TUNSETVNETHDRSZ = 0x400454D8
CHECKSUM, TCP_V4 = 1, 2
SEGMENT_BYTES = 1448
IPV4 = b"\x08\x00"


pytestmark = pytest.mark.skipif(bool(why_no_namespace()), reason=why_no_namespace() or "none")


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    with enter_quiet_network():
        yield


def build_segments(payload: bytes) -> bytes:
    """A TCP frame whose segmentation and checksum its receiver is to do, as another guest sends it."""
    segment = struct.pack(">HHIIBBHHH", 1000, 2000, 1, 1, 5 << 4, 16, 65535, 0, 0) + payload
    addresses = bytes([10, 77, 0, 3, 10, 77, 0, 2])
    packet = struct.pack(">BBHHHBB", 0x45, 0, 20 + len(segment), 0, 0, 64, 6)
    words = sum(struct.unpack(">9H", packet + addresses))
    checksum = ~(words + (words >> 16)) & 0xFFFF
    header = struct.pack("<BBHHHHH", 1, 1, 54, SEGMENT_BYTES, 34, 16, 0)
    ethernet = flood.GUEST + flood.SENDER + IPV4
    return header + ethernet + packet + struct.pack(">H", checksum) + addresses + segment


def find_large(frames: list[bytes]) -> list[bytes]:
    """Those of the sender: the bridge speaks, too."""
    return [each for each in frames if each[24:26] == IPV4 and len(each) > 60_000]


def find_undone(frame: bytes) -> tuple[int, ...]:
    """The flags, kind and size of segments, and place of the checksum, from a frame's header."""
    flags, kind, _, size, start, offset = struct.unpack_from("<BBHHHH", frame)
    return flags, kind, size, start, offset


def set_tap(tap: int, *, offloads: int, header_bytes: int = 12) -> None:
    fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack("=i", header_bytes))
    set_offloads(tap, offloads)


def test_segments_and_checksums_stay_undone() -> None:
    with open_sender() as sender, open_taps() as (old, new):
        set_tap(old, offloads=CHECKSUM | TCP_V4)
        frames = [build_segments(bytes([index]) * 60_000) for index in range(20)]
        for paused in (False, True):
            with closing(prepare_move(old, new, MAC)) as move:
                speak(old)
                set_tap(new, offloads=0, header_bytes=10)  # as QEMU does when it starts
                for frame in frames[:10]:
                    os.write(sender, frame)
                move.divert(source_reads=not paused)
                for frame in frames[10:]:
                    os.write(sender, frame)
                move.settle()
                set_tap(new, offloads=CHECKSUM | TCP_V4)  # and when it has loaded its state
                got = find_large(read_all(new))
                assert sorted(each[-1] for each in got) == list(range(20))
                for frame in got:
                    assert find_undone(frame) == (CHECKSUM, 1, SEGMENT_BYTES, 34, 16)
                    assert frame[HEADER_BYTES:] == frames[frame[-1]][HEADER_BYTES:]
                if paused:
                    assert [each[-1] for each in got] == list(range(20))
                move.back()
                assert find_large(read_all(old)) == []


def test_what_waits_moves_within_its_bound() -> None:
    with open_sender() as sender, open_taps() as (old, new), closing(prepare_move(old, new, MAC)) as move:
        for number in range(1, QUEUE + 500):
            os.write(sender, flood.build_frame(number))
        diverted = move.divert(source_reads=False)
        assert diverted.frames >= QUEUE
        for number in range(1501, 1511):
            os.write(sender, flood.build_frame(number))
        returned = move.back()
        assert returned.frames >= QUEUE
        numbers = [number for number in map(flood.find_number, read_all(old)) if number is not None]
        assert numbers[:900] == list(range(1, 901))
