"""The formatted disk step by step: what waits for what, and what is done again when a process is lost."""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING

import pytest
from tests.unit.channel.guest import BUFFERS, GUEST, MEMORY_BYTES, Guest
from tests.unit.drivers.format_fake import FEATURES, FakeFormatProcess

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers import formatted
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.formatted import FormattedDevice, State, create_formatted_device
from duovisor.controlling.drivers.options import parse_block_options
from duovisor.controlling.drivers.replay_memory import create_replay, open_replay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.channel.virtqueue import Virtqueue

DISK_BYTES = 8 << 20
OUT, IN, FLUSH = layout.REQUEST_OUT, layout.REQUEST_IN, layout.REQUEST_FLUSH
DISCARD, ZEROES, GET_ID = layout.REQUEST_DISCARD, layout.REQUEST_WRITE_ZEROES, layout.REQUEST_GET_ID


class Rig:
    """A guest, a driver without a back end, and a fake format process around one disk."""

    def __init__(self, *words: str) -> None:
        self.words = ["--size", str(DISK_BYTES), "--queue-size", "64", *words]
        self.guest = Guest(64)
        self.replay = create_replay(4 << 20)
        self.memory = open_replay(os.dup(self.replay))
        self.disk = bytearray(random.Random(0).randbytes(DISK_BYTES))
        self.server = FakeFormatProcess(self.memory, self.disk)
        self.place = BUFFERS
        self.statuses: dict[int, memoryview] = {}
        self.devices: list[FormattedDevice] = []
        self.start_driver()

    def start_driver(self, *, connected: bool = True) -> None:
        """A first driver, or the successor of one that is gone."""
        descriptors = {"replay": os.dup(self.replay)}
        if connected:
            descriptors["format"] = self.server.give_connection()
        self.device = create_formatted_device(parse_block_options(self.words), descriptors)
        self.devices.append(self.device)
        self.queue: Virtqueue = self.guest.start_device()

    def submit(self, kind: int, sector: int = 0, data: bytes | int = b"", *, flags: int = 0) -> int:
        """Make a request available; ``data``: what to write, how much to read, or the sectors of a range."""
        if kind in (DISCARD, ZEROES):
            assert isinstance(data, int)
            data = layout.RANGE.pack(sector, data, flags)
            sector = 0
        reads = isinstance(data, int)
        length = data if isinstance(data, int) else len(data)
        place, self.place = self.place, self.place + 256 + -(-length // 64) * 64
        assert self.place <= MEMORY_BYTES
        view, address = self.guest.view, GUEST + place
        layout.REQUEST_HEADER.pack_into(view, place + 128, kind, 0, sector)
        if isinstance(data, bytes):
            view[place + 192 : place + 192 + length] = data
        pieces = [(address + 192, length)] if length else []
        head = self.guest.front.prepare(
            [(address + 128, 16), *([] if reads else pieces)],
            [*(pieces if reads else []), (address + 144, 1)],
            (address, view[place : place + 128]),
        )
        view[place + 144] = 0xFF
        self.statuses[head] = view[place + 144 : place + 145]
        self.read_at = place + 192
        self.guest.front.submit(head)
        return head

    def turn(self) -> list[int]:
        """One turn of the driver's loop; the heads that the guest finds done then."""
        self.device.handle(self.queue, self.queue.pop())
        self.queue.publish()
        self.device.reap()
        return [head for head, _ in self.guest.front.reap()]

    def connect(self) -> None:
        """Bring the connection into service."""
        for _ in range(8):
            self.turn()
            self.server.talk()
        self.turn()

    def run(self) -> list[int]:
        """Let everybody work until nothing is left; the heads that were done."""
        done = self.turn()
        while ordered := self.server.take():
            for each in ordered:
                self.server.execute(each)
            done += self.turn()
        return done

    def status(self, head: int) -> int:
        return self.statuses[head][0]

    def replace_format(self, disk: bytearray) -> None:
        """The format process is killed; the next one finds ``disk``, what had reached the file."""
        self.server.die()
        self.turn()
        self.server = FakeFormatProcess(self.memory, disk)
        self.disk = disk
        self.device.attach("format", self.server.give_connection())
        self.connect()

    def close(self) -> None:
        for device in self.devices:
            device.close()
        self.server.die()
        self.guest.close()
        self.memory.close()
        os.close(self.replay)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def test_touches_nothing_before_the_first_request(rig: Rig) -> None:
    rig.device.reap()
    assert rig.device.state is State.IDLE
    rig.server.talk()
    assert rig.server.asked == []


def test_serves_every_kind_of_request(rig: Rig) -> None:
    write = rig.submit(OUT, 8, b"w" * 4096)
    rig.connect()
    assert rig.device.state is State.SERVING
    assert rig.run() == [write]
    assert rig.disk[4096:8192] == b"w" * 4096
    read = rig.submit(IN, 8, 4096)
    assert rig.run() == [read]
    assert rig.guest.view[rig.read_at : rig.read_at + 4096] == b"w" * 4096
    others = [
        rig.submit(FLUSH),
        rig.submit(DISCARD, 8, 1),
        rig.submit(ZEROES, 9, 2, flags=1),
        rig.submit(GET_ID, 0, 20),
    ]
    assert sorted(rig.run()) == sorted(others)
    assert rig.disk[4096:8192] == bytes(3 * 512) + b"w" * (4096 - 3 * 512)
    assert all(rig.status(head) == layout.STATUS_OK for head in [write, read, *others])


def test_large_requests_go_in_parts(rig: Rig) -> None:
    data = random.Random(1).randbytes(300 << 10)
    write = rig.submit(OUT, 1, data)
    rig.connect()
    assert rig.run() == [write]
    read = rig.submit(IN, 1, 140 << 10)
    rig.turn()
    parts = rig.server.take()
    assert [each.length for each in parts] == [128 << 10, 12 << 10]
    for each in reversed(parts):
        rig.server.execute(each)
    assert rig.turn() == [read]
    assert rig.guest.view[rig.read_at : rig.read_at + (140 << 10)] == data[: 140 << 10]


@pytest.mark.parametrize(
    ("kind", "sector", "data", "flags"),
    [
        (OUT, DISK_BYTES // 512, b"x" * 512, 0), (IN, DISK_BYTES // 512 - 1, 1024, 0),
        (OUT, 0, b"x" * 100, 0), (IN, 1 << 60, 512, 0), (ZEROES, DISK_BYTES // 512, 1, 0), (DISCARD, 0, 0, 0),
    ],
)  # fmt: skip
def test_what_cannot_be_is_an_error(rig: Rig, kind: int, sector: int, data: bytes | int, flags: int) -> None:
    head = rig.submit(kind, sector, data, flags=flags)
    rig.connect()
    assert rig.status(head) == layout.STATUS_IO_ERROR
    assert rig.server.take() == []


@pytest.mark.parametrize(("kind", "flags"), [(DISCARD, 1), (ZEROES, 2), (99, 0)])
def test_what_is_not_supported_says_so(rig: Rig, kind: int, flags: int) -> None:
    head = rig.submit(kind, 0, 1 if kind != 99 else b"", flags=flags)
    rig.connect()
    assert rig.status(head) == layout.STATUS_UNSUPPORTED


def test_an_error_of_the_format_process_reaches_the_guest(rig: Rig) -> None:
    head = rig.submit(OUT, 0, b"x" * 512)
    rig.connect()
    rig.server.execute(rig.server.take()[0], status=1)
    assert rig.turn() == [head]
    assert rig.status(head) == layout.STATUS_IO_ERROR
    rig.replace_format(rig.disk)
    assert rig.server.take() == []  # what failed is not made again


def test_overlapping_changes_follow_each_other(rig: Rig) -> None:
    heads = [rig.submit(OUT, 0, b"1" * 1024), rig.submit(ZEROES, 1, 4), rig.submit(OUT, 8, b"2" * 512)]
    rig.connect()
    first = rig.server.take()
    assert len(first) == 1
    rig.server.execute(first[0])
    assert rig.turn() == heads[:1]
    ordered = rig.server.take()
    assert len(ordered) == 2  # they touch different sectors
    for each in ordered:
        rig.server.execute(each)
    assert rig.turn() == heads[1:]


def test_requests_wait_for_the_first_format_process(rig: Rig) -> None:
    rig.start_driver(connected=False)
    head = rig.submit(IN, 0, 512)
    assert rig.turn() == []
    rig.device.attach("format", rig.server.give_connection())
    rig.connect()
    assert rig.run() == [head]


def test_unflushed_writes_are_made_again(rig: Rig) -> None:
    before = bytearray(rig.disk)
    rig.submit(OUT, 0, b"a" * 512)
    rig.submit(OUT, 1, b"b" * 1024)
    rig.connect()
    rig.run()
    rig.submit(OUT, 2, b"c" * 512)
    rig.submit(ZEROES, 4, 1)
    rig.run()
    rig.replace_format(before)
    read = rig.submit(IN, 0, 512)
    assert rig.run() == [read]
    assert rig.disk[:2560] == b"a" * 512 + b"b" * 512 + b"c" * 512 + before[1536:2048] + bytes(512)


def test_flushed_writes_are_not(rig: Rig) -> None:
    rig.submit(OUT, 0, b"a" * 512)
    rig.connect()
    rig.run()
    rig.submit(FLUSH)
    rig.run()
    rig.submit(OUT, 9, b"b" * 512)
    rig.run()
    rig.replace_format(rig.disk)
    assert [(each.kind, each.offset) for each in rig.server.take()] == [(OUT, 9 * 512)]


def test_a_flush_covers_only_what_was_done_when_it_began(rig: Rig) -> None:
    rig.submit(OUT, 0, b"a" * 512)
    rig.connect()
    flush = rig.submit(FLUSH)
    rig.turn()
    write, flushing = rig.server.take()
    rig.server.execute(flushing)
    rig.server.execute(write)
    assert flush in rig.turn()
    rig.replace_format(rig.disk)
    assert [each.kind for each in rig.server.take()] == [OUT]


def test_what_was_in_flight_is_done_after_what_is_made_again(rig: Rig) -> None:
    before = bytearray(rig.disk)
    rig.submit(OUT, 0, b"a" * 512)
    rig.connect()
    rig.run()
    heads = [rig.submit(OUT, 0, b"b" * 512), rig.submit(IN, 100, 512)]
    rig.turn()
    rig.replace_format(before)
    done = rig.run()
    assert sorted(done) == sorted(heads)
    assert rig.disk[:512] == b"b" * 512


def test_a_successor_waits_for_its_predecessor_s_changes(rig: Rig) -> None:
    """Killed with a write under way: the guest's next write there must not be overtaken by it."""
    rig.submit(OUT, 0, b"a" * 512)
    rig.connect()
    (late,) = rig.server.take()
    rig.start_driver()
    rig.submit(OUT, 0, b"b" * 512)
    assert rig.turn() == []
    assert rig.server.take() == []
    rig.server.execute(late)
    rig.turn()
    assert len(rig.run()) == 2
    assert rig.disk[:512] == b"b" * 512


def test_a_successor_sets_up_nothing_again(rig: Rig) -> None:
    rig.submit(OUT, 0, b"a" * 512)
    rig.connect()
    rig.run()
    asked = len(rig.server.asked)
    rig.start_driver()
    head = rig.submit(IN, 0, 512)
    rig.turn()
    rig.server.talk()
    assert len(rig.server.asked) == asked + 2  # its kick and call descriptors
    assert rig.run() == [head]


@pytest.mark.parametrize("steps", range(5))
def test_a_successor_completes_a_set_up_that_was_begun(rig: Rig, steps: int) -> None:
    head = rig.submit(OUT, 0, b"a" * 512)
    for _ in range(steps):
        rig.turn()
        rig.server.talk()
    rig.start_driver()
    rig.connect()
    assert rig.run() == [head]
    assert rig.disk[:512] == b"a" * 512


def test_a_successor_makes_again_what_its_predecessor_had_begun_to(rig: Rig) -> None:
    before = bytearray(rig.disk)
    rig.submit(OUT, 0, b"a" * 512)
    rig.submit(OUT, 0, b"b" * 512)
    rig.connect()
    rig.run()
    rig.replace_format(before)
    (first,) = rig.server.take()  # the second write overlaps it and waits
    assert rig.device.state is State.REPLAYING
    rig.start_driver()
    read = rig.submit(IN, 0, 512)
    assert rig.turn() == []
    rig.server.execute(first)
    rig.turn()
    assert rig.run() == [read]
    assert rig.disk[:512] == b"b" * 512


def test_a_spare_that_gets_the_connection_too_leaves_it_alone(rig: Rig) -> None:
    spare = FormattedDevice(parse_block_options(rig.words), os.dup(rig.replay), rig.server.give_connection())
    spare.attach("format", rig.server.give_connection())
    rig.server.talk()
    assert rig.server.asked == []
    rig.devices.append(spare)


def test_a_full_log_is_flushed_early(rig: Rig) -> None:
    rig.submit(IN, 0, 512)
    rig.connect()
    rig.run()
    kinds = []
    for number in range(600):
        rig.place = BUFFERS
        rig.guest.front.release(rig.submit(OUT, number * 16, b"x" * 8192))
        rig.turn()
        while ordered := rig.server.take():
            for each in ordered:
                kinds.append(each.kind)
                rig.server.execute(each)
            rig.turn()
    assert kinds.count(OUT) == 600
    assert 1 <= kinds.count(FLUSH) <= 5
    assert kinds.index(FLUSH) > 200


def test_a_full_log_holds_writes_back(rig: Rig) -> None:
    """With the flush unanswered, writes wait; reads behind them too; nothing is lost."""
    rig.submit(IN, 0, 512)
    rig.connect()
    rig.run()
    held, done = [], 0
    for number in range(30):
        rig.place = BUFFERS
        rig.submit(OUT, number * 512, b"x" * (256 << 10))
        done += len(rig.turn())
        for each in rig.server.take():
            if each.kind == FLUSH:
                held.append(each)
            else:
                rig.server.execute(each)
        done += len(rig.turn())
    assert len(held) == 1
    assert done == 16  # 4 MiB
    rig.server.execute(held[0])
    assert done + len(rig.run()) == 30


def test_a_guest_without_a_cache_waits_for_the_medium(rig: Rig) -> None:
    rig.device.write_config(layout.WCE_OFFSET, b"\0", migrating=False)
    head = rig.submit(OUT, 0, b"a" * 512)
    rig.connect()
    (write,) = rig.server.take()
    rig.server.execute(write)
    assert rig.turn() == []
    (flush,) = rig.server.take()
    assert flush.kind == FLUSH
    rig.server.execute(flush)
    assert rig.turn() == [head]


def test_one_change_at_a_time_for_who_needs_it() -> None:
    rig = Rig()
    rig.memory.words[3] = 1
    rig.start_driver()
    for number in range(3):
        rig.submit(OUT, number * 8, b"x" * 512)
    rig.submit(IN, 0, 512)
    rig.connect()
    assert [each.kind for each in rig.server.take()] == [OUT]
    rig.close()


def test_read_only_never_writes() -> None:
    rig = Rig("--read-only")
    rig.server.features = FEATURES & ~layout.FEATURE_FLUSH | layout.FEATURE_READ_ONLY
    heads = [rig.submit(OUT, 0, b"x" * 512), rig.submit(FLUSH), rig.submit(ZEROES, 0, 1)]
    rig.connect()
    assert rig.server.take() == []
    assert [rig.status(head) for head in heads] == [1, 0, 1]
    read = rig.submit(IN, 0, 512)
    assert rig.run() == [read]
    rig.close()


@pytest.mark.parametrize(
    ("features", "sectors", "said"),
    [
        (FEATURES & ~layout.FEATURE_FLUSH, None, "lacks the features 0x200"),
        (FEATURES | layout.FEATURE_READ_ONLY, None, "for reading only"),
        (FEATURES, 7, "serves 3584 bytes; the disk has 8388608"),
    ],
)
def test_a_format_process_that_does_not_fit(
    rig: Rig, capfd: pytest.CaptureFixture[str], features: int, sectors: int | None, said: str
) -> None:
    rig.server.features = features
    rig.server.sectors = rig.server.sectors if sectors is None else sectors
    head = rig.submit(IN, 0, 512)
    rig.connect()
    assert rig.device.state is State.IDLE
    assert said in capfd.readouterr().err
    rig.replace_format(rig.disk)
    assert rig.run() == [head]


def test_a_hostile_format_process_is_left(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    head = rig.submit(IN, 0, 512)
    rig.connect()
    rig.server.answer(77)
    assert rig.turn() == []
    assert "the format process answers descriptor 77" in capfd.readouterr().err
    rig.replace_format(rig.disk)
    assert rig.run() == [head]


def test_without_an_answer_requests_stay_in_flight(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formatted, "DRAIN_S", 0.05)
    head = rig.submit(OUT, 0, b"a" * 512)
    rig.connect()
    rig.device.drain()
    (late,) = rig.server.take()
    rig.server.execute(late)
    assert rig.turn() == []
    rig.start_driver()
    assert rig.run() == [head]


def test_drains(rig: Rig) -> None:
    head = rig.submit(OUT, 0, b"a" * 512)
    rig.connect()
    rig.server.execute(rig.server.take()[0])
    os.eventfd_write(rig.device._ring.call_descriptor, 1)
    rig.device.drain()
    assert rig.guest.front.reap() == [(head, 1)]


def test_a_lone_request_is_watched_for_a_moment(rig: Rig) -> None:
    """Its answer is taken in the turn in which it was submitted."""
    rig.submit(IN, 0, 512)
    rig.connect()
    rig.run()
    rig.device._window_ns = 10_000_000_000  # a moment, even for a machine with much else to do

    def answer() -> None:
        while not (ordered := rig.server.take()):
            pass
        rig.server.execute(ordered[0])

    thread = threading.Thread(target=answer)
    thread.start()
    head = rig.submit(IN, 8, 512)
    rig.device.handle(rig.queue, rig.queue.pop())
    assert rig.guest.front.reap() == [(head, 513)]
    thread.join()


def test_the_buffers_of_many_reads_are_given_back(rig: Rig) -> None:
    rig.submit(IN, 0, 512)
    rig.connect()
    rig.run()
    for number in range(60):
        rig.submit(IN, number * 8, 4096)
    rig.run()
    held = os.fstat(rig.replay).st_blocks
    rig.submit(FLUSH)
    rig.run()
    assert os.fstat(rig.replay).st_blocks <= held - 8 * (60 - 8)


@pytest.mark.parametrize(
    ("words", "descriptors", "said"),
    [
        (["--size", "512"], {}, "the descriptor replay is missing"),
        ([], {"replay": 0}, "option --size is 0"),
        (["--size", "777"], {"replay": 0}, "option --size is 777"),
        (["--size", "512"], {"replay": 0}, "is no replay memory"),
    ],
)
def test_what_a_driver_is_not_started_with(words: list[str], descriptors: dict[str, int], said: str) -> None:
    with pytest.raises(DriverError, match=said):
        create_formatted_device(parse_block_options(words), descriptors)


def test_a_descriptor_of_another_name(rig: Rig) -> None:
    descriptor = os.dup(rig.replay)
    with pytest.raises(DriverError, match="no use for a descriptor named image"):
        rig.device.attach("image", descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
