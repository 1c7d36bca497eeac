"""The dirty log: the right bits, set atomically, and only inside the log."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.channel.guest import BOTH, BUFFERS, GUEST, Guest

from duovisor.channel.dirty_log import DirtyLog, map_dirty_log
from duovisor.channel.errors import ProtocolError
from duovisor.channel.features import LOG_ALL

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG_BYTES = 64


@pytest.fixture
def log_file() -> Iterator[int]:
    descriptor = os.memfd_create("log")
    os.ftruncate(descriptor, 4096)
    yield descriptor
    os.close(descriptor)


def marked(descriptor: int, offset: int = 0) -> set[int]:
    data = os.pread(descriptor, LOG_BYTES, offset)
    return {8 * index + bit for index, byte in enumerate(data) for bit in range(8) if byte >> bit & 1}


lengths = st.one_of(st.integers(0, 70_000), st.integers(0, LOG_BYTES * 8 * 4096))


@given(st.integers(0, LOG_BYTES * 8 * 4096 - 1), lengths, st.binary(max_size=LOG_BYTES))
def test_exactly_the_touched_pages_are_marked(address: int, length: int, before: bytes) -> None:
    descriptor = os.memfd_create("log")
    os.ftruncate(descriptor, 4096)
    os.pwrite(descriptor, before, 64)
    log = map_dirty_log(descriptor, LOG_BYTES, 64)
    expected = marked(descriptor, 64)
    if address + length > log.guest_end:
        with pytest.raises(ProtocolError, match="ends before guest address"):
            log.mark(address, length)
    else:
        log.mark(address, length)
        if length:
            expected |= set(range(address // 4096, (address + length - 1) // 4096 + 1))
    assert marked(descriptor, 64) == expected
    assert os.pread(descriptor, 64, 0) == os.pread(descriptor, 64, 64 + LOG_BYTES) == bytes(64)
    os.close(descriptor)


SWEEP_ODD_PAGES = """
import sys
from duovisor.channel.dirty_log import map_dirty_log
log = map_dirty_log(int(sys.argv[1]), 4096, 0)
for _ in sys.stdin.buffer:
    for page in range(1, 4096 * 8, 2):
        log.mark(page * 4096, 1)
    print(flush=True)
"""


def test_bits_of_two_processes_in_one_word_are_not_lost(log_file: int) -> None:
    """Two processes set the odd and the even bits of the same words at the same time."""
    log = map_dirty_log(log_file, 4096, 0)
    other = subprocess.Popen(
        [sys.executable, "-c", SWEEP_ODD_PAGES, str(log_file)],
        pass_fds=[log_file], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with other:
        assert other.stdin is not None
        assert other.stdout is not None
        for _ in range(4):
            os.pwrite(log_file, bytes(4096), 0)
            other.stdin.write(b"\n")
            other.stdin.flush()
            for page in range(0, 4096 * 8, 2):
                log.mark(page * 4096, 1)
            other.stdout.readline()
            assert os.pread(log_file, 4096, 0) == b"\xff" * 4096
        other.stdin.close()


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (12, 0), (8, 4), (4104, 0), (8, 4096), (2**63, 2**63)])
def test_impossible_logs_are_refused(log_file: int, size: int, offset: int) -> None:
    with pytest.raises(ProtocolError, match="dirty log"):
        map_dirty_log(log_file, size, offset)


def test_a_queue_marks_what_the_device_wrote_and_its_used_ring(log_file: int) -> None:
    guest = Guest(features=BOTH)
    guest.address.flags = 1
    queue = guest.start_device()
    log: DirtyLog = map_dirty_log(log_file, LOG_BYTES, 0)
    queue.set_log(log, BOTH)
    data = GUEST + BUFFERS
    readable, writable = [(data, 8)], [(data + 0x5000, 0x1001), (data + 0x9000, 1)]
    table = (data + 0x20000, guest.view[BUFFERS + 0x20000 : BUFFERS + 0x20100])
    head = guest.front.prepare(readable, writable, table)

    def do_one() -> None:
        guest.front.submit(head)
        queue.complete(queue.pop()[0], 1)
        queue.publish()

    do_one()
    assert marked(log_file) == set()  # LOG_ALL is not on
    queue.set_log(log, BOTH | LOG_ALL)
    do_one()
    first = data // 4096
    assert marked(log_file) == {first + 5, first + 6, first + 9, guest.front.used_address // 4096}
    guest.close()
