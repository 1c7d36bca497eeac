"""Broken migration streams: a sound one of either design, changed as the input says, and translated.

Whatever was done to it, the translator refuses it, or carries it to the other design and back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz.input_bytes import InputBytes
from tests.migration_streams import (
    TIMER,
    Device,
    build_stream,
    build_virtio,
    inside_disk,
    number,
    outside_disk,
)

from duovisor.hypervisor.migration.errors import StreamError, TranslationError
from duovisor.hypervisor.migration.stream import parse_stream
from duovisor.hypervisor.migration.translator import translate
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Callable

CHANGES = 6
CARD = Device(
    "0000:00:08.0/virtio-net",
    11,
    build_virtio(bytes(534) + number(1) + bytes(7), features=1 << 32 | 3, queues=3, vectors=0),
)
STREAMS = {
    Design.MONOLITHIC: build_stream([TIMER, inside_disk(), CARD]),
    Design.MICROKERNELIZED: build_stream([TIMER, outside_disk(), CARD]),
}
DESIGNS = tuple(Design)


def find_places(data: bytes) -> list[int]:
    """Where something is decided: the ends of sections, and their neighbours."""
    stream = parse_stream(data)
    places = [0, 8, stream.description]
    for section in stream.sections:
        places += [section.start, section.body, section.end]
    return places


PLACES = {design: find_places(data) for design, data in STREAMS.items()}


def replace_bytes(data: bytearray, place: int, source: InputBytes) -> None:
    new = source.take(source.number(1) % 9)
    data[place : place + len(new)] = new


def insert_bytes(data: bytearray, place: int, source: InputBytes) -> None:
    data[place:place] = source.take(source.number(1) % 9)


def remove_bytes(data: bytearray, place: int, source: InputBytes) -> None:
    del data[place : place + source.edge(16, (1, 8, 4096))]


def change_number(data: bytearray, place: int, source: InputBytes) -> None:
    data[place : place + 4] = source.edge(32).to_bytes(4, "big")


def repeat_bytes(data: bytearray, place: int, source: InputBytes) -> None:
    count = source.edge(12, (28, 64))
    data[place:place] = data[place : place + count]


ACTIONS: tuple[Callable[[bytearray, int, InputBytes], None], ...] = (
    replace_bytes, change_number, insert_bytes, remove_bytes, repeat_bytes,
)  # fmt: skip


def run_one(data: bytes) -> None:
    """One broken stream."""
    source = InputBytes(data)
    origin = source.choose(DESIGNS)
    stream = bytearray(STREAMS[origin])
    for _ in range(CHANGES):
        if not source.remaining:
            break
        place = source.choose(PLACES[origin]) + source.number(1) - 64
        source.choose(ACTIONS)(stream, min(max(place, 0), len(stream)), source)
    changed = bytes(stream)
    for target in DESIGNS:
        try:
            there = translate(changed, target)
            back = next(design for design in DESIGNS if design is not target)
            assert there == changed or translate(there, back) == changed
        except (StreamError, TranslationError):
            pass  # it was refused
