"""The translator: recorded guests to the other design and back, and what it must not carry."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.migration_streams import (
    DISK_FEATURES,
    TIMER,
    VERSION_1,
    Device,
    build_stream,
    build_subsections,
    build_virtio,
    inside_disk,
    number,
    outside_disk,
    subsection,
)
from tests.recorded.streams import VERSIONS, load_stream

from duovisor.hypervisor.migration.errors import StreamError, TranslationError
from duovisor.hypervisor.migration.features import name_disk_features, name_nic_features
from duovisor.hypervisor.migration.stream import parse_stream
from duovisor.hypervisor.migration.translator import AllowedFeatures, translate
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.hypervisor.migration.stream import Stream

OTHER = {Design.MONOLITHIC: Design.MICROKERNELIZED, Design.MICROKERNELIZED: Design.MONOLITHIC}
MONOLITHIC, MICROKERNELIZED = Design.MONOLITHIC, Design.MICROKERNELIZED
VERSION = pytest.mark.parametrize("version", VERSIONS)
DESIGN = pytest.mark.parametrize("design", list(Design))
CASE = pytest.mark.parametrize("case", ["disks", "bridged"])

INSIDE = build_stream([TIMER, inside_disk()])
OUTSIDE = build_stream([TIMER, outside_disk()])
LATER_DISK = Device("0000:00:10.0/virtio-blk", 3, build_virtio(b"\0"))
LATER_STATE = subsection("virtio_pci/x", b"")
SHORT = build_virtio(b"", vectors=0, queues=2, subsections=b"")[:-1]
CARD = bytes(6 + 4 + 4 + 2 + 1 + 1) + number(2) + bytes(2 * 6) + bytes(512) + number(1) + bytes(7)
CARD_FEATURES = (1 << 32) | (1 << 28) | (1 << 15) | 3


def card(own: bytes = CARD, **virtio: Any) -> Device:
    state = {"features": CARD_FEATURES, "queues": 3, "vectors": 0, **virtio}
    return Device("0000:00:08.0/virtio-net", 11, build_virtio(own, **state))


def outline(stream: Stream) -> list[tuple[object, ...]]:
    """All that a stream says but the devices' content."""
    return [
        (each.section_id, each.name, each.instance_id, each.version, each.end - each.body, each.description)
        for each in stream.sections
    ]


@VERSION
@DESIGN
@CASE
def test_a_translation_has_the_form_of_what_qemu_writes(version: str, design: Design, case: str) -> None:
    """The two recordings are of two boots, so that their content differs; nothing else may."""
    translated = translate(load_stream(version, design, case), OTHER[design])
    expected = parse_stream(load_stream(version, OTHER[design], case))
    assert outline(parse_stream(translated)) == outline(expected)


@VERSION
@DESIGN
@CASE
def test_there_and_back_is_the_same_to_the_last_byte(version: str, design: Design, case: str) -> None:
    recorded = load_stream(version, design, case)
    there = translate(recorded, OTHER[design])
    assert there != recorded
    assert translate(there, design) == recorded


@VERSION
@DESIGN
def test_nothing_is_changed_for_the_same_design(version: str, design: Design) -> None:
    recorded = load_stream(version, design, "bridged")
    assert translate(recorded, design) is recorded


def test_a_guest_without_disks_is_the_same_in_both() -> None:
    stream = build_stream([TIMER, card()])
    for target in Design:
        assert translate(stream, target) == stream


def test_what_is_built_is_translated_into_what_is_built() -> None:
    assert translate(INSIDE, MICROKERNELIZED) == OUTSIDE
    assert translate(OUTSIDE, MONOLITHIC) == INSIDE


@VERSION
def test_user_networking_is_dropped_when_one_agrees(version: str) -> None:
    recorded = load_stream(version, MONOLITHIC, "user")
    assert translate(recorded, MONOLITHIC) is recorded
    entropy = [each for each in parse_stream(recorded).sections if each.name.endswith("/virtio-rng")]
    assert len(entropy) == 1
    without = cut_section(recorded, entropy[0].name)
    with pytest.raises(TranslationError, match="connections through user networking would be lost"):
        translate(without, MICROKERNELIZED)
    there = parse_stream(translate(without, MICROKERNELIZED, drop_user_network=True))
    after = [each.name.replace("vhost-user-blk", "virtio-blk") for each in there.sections]
    assert after == [each.name for each in parse_stream(without).sections if each.name != "slirp"]


def cut_section(data: bytes, name: str) -> bytes:
    """A recording without one of its devices."""
    stream = parse_stream(data)
    section = next(each for each in stream.sections if each.name == name)
    document = json.loads(data[stream.description :])
    document["devices"] = [each for each in document["devices"] if each["name"] != name]
    description = json.dumps(document).encode()
    rest = data[: section.start] + data[section.end + 5 : stream.description - 4]
    return rest + number(len(description)) + description


@VERSION
def test_an_entropy_source_is_refused(version: str) -> None:
    with pytest.raises(TranslationError, match="QEMU does not migrate vhost-user-rng"):
        translate(load_stream(version, MONOLITHIC, "user"), MICROKERNELIZED, drop_user_network=True)


def inside(content: bytes) -> bytes:
    return build_stream([inside_disk(content)])


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (inside(build_virtio(b"\x01")), "virtio-blk: requests wait for a disk that failed them"),
        (build_stream([inside_disk(), outside_disk(place="0000:00:11.0")]), "disks of both designs"),
        (build_stream([LATER_DISK]), "version 3 is unknown, not 2"),
        (build_stream([inside_disk(), Device("0000:00:02.0/virtio-gpu", 1, b"")]), "nobody has tried"),
        (build_stream([inside_disk(), Device("0000:00:02.0/vhost-vsock", 1, b"")]), "carry a vhost-vsock"),
        (build_stream([inside_disk(), Device("slirp", 4, b"")]), "would be lost"),
        (
            inside(build_virtio(b"\0", features=DISK_FEATURES | VERSION_1 | 1 << 40 | 1 << 7 | 1 << 50)),
            "what a disk has in one design only: SCSI, RING_RESET, bit 50",
        ),
        (
            build_stream([inside_disk(), card(features=CARD_FEATURES | 1 << 10 | 1 << 22)]),
            "virtio-net: the guest uses what a network card has in one design only: GUEST_UFO, MQ",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_is_refused(stream: bytes, said: str) -> None:
    with pytest.raises(TranslationError) as caught:
        translate(stream, MICROKERNELIZED)
    assert said in caught.value.message


def test_the_allowed_features_are_the_callers_choice() -> None:
    with pytest.raises(TranslationError, match="one design only: SEG_MAX, GEOMETRY"):
        translate(INSIDE, MICROKERNELIZED, allowed=AllowedFeatures(disk=VERSION_1))
    stream = build_stream([inside_disk(), card()])
    with pytest.raises(TranslationError, match="one design only: CSUM, GUEST_CSUM, MRG_RXBUF"):
        translate(stream, MICROKERNELIZED, allowed=AllowedFeatures(bridged_nic=VERSION_1))


def test_a_card_on_user_networking_may_have_any_feature() -> None:
    """It is QEMU's own in both designs; that it is one shows in its packets, which have no header."""
    offloads = CARD_FEATURES | 1 << 2 | 1 << 40
    own = CARD.replace(number(1) + bytes(7), number(0) + bytes(7)) + bytes(8)
    stream = build_stream([inside_disk(), card(own, features=offloads)])
    assert translate(stream, MICROKERNELIZED) == build_stream([outside_disk(), card(own, features=offloads)])


HEAD = build_subsections()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (build_virtio(b""), "the end of the list of requests is 0x5"),
        (build_virtio(b"\0\0"), "the mark of a subsection is 0x0"),
        (build_virtio(b"\0", subsections=HEAD + HEAD), "subsection virtio/64bit_features"),
        (build_virtio(b"\0", subsections=subsection("virtio/broken", b"\x01")), "subsection virtio/broken"),
        (build_virtio(b"\0", subsections=subsection("virtio/started", b"\x01", 2)), "virtio/started"),
        (
            build_virtio(b"\0", subsections=subsection("virtio/extra_state", LATER_STATE)),
            "subsection virtio_pci/x, not virtio_pci/modern_state",
        ),
        (SHORT, "queues: 28 bytes announced, 27 left"),
        (build_virtio(b"\0", queues=1025), "1025 queues"),
        (build_virtio(b"\0", capabilities=b"\x10\0\0\0"), "a PCI Express device"),
        (build_virtio(b"\0", capabilities=b"\x09\x40\0\0"), "the chain of PCI capabilities leads to 0x40"),
        (build_virtio(b"\0", capabilities=b"\x09\x3c\0\0"), "the chain of PCI capabilities leads to 0x3c"),
        (build_virtio(b"\0", capabilities=b"\x09\xfe\0\0"), "the chain of PCI capabilities leads to 0xfe"),
        (b"\0\0\0\x01" + build_virtio(b"\0")[4:], "the version of the PCI state is 0x1"),
        (b"", "PCI state: 4 bytes announced, 0 left"),
    ],
)  # fmt: skip
def test_a_disk_that_is_not_understood_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(StreamError) as caught:
        translate(inside(content), MICROKERNELIZED)
    assert said in caught.value.message


def test_a_card_with_more_queues_is_refused() -> None:
    with pytest.raises(StreamError, match="a network card with 5 queues"):
        translate(build_stream([inside_disk(), card(queues=5)]), MICROKERNELIZED)


@pytest.mark.parametrize(
    "spaces", [b'"name":"0000:00:10.0/virtio-blk"', b'"name":  "0000:00:10.0/virtio-blk"']
)
def test_a_description_not_written_by_qemu_is_refused(spaces: bytes) -> None:
    stream = parse_stream(INSIDE)
    description = INSIDE[stream.description :].replace(b'"name": "0000:00:10.0/virtio-blk"', spaces)
    changed = INSIDE[: stream.description - 4] + number(len(description)) + description
    with pytest.raises(TranslationError, match="its description is not written as QEMU writes it"):
        translate(changed, MICROKERNELIZED)


@given(st.integers(0, len(INSIDE) * 8 - 1))
@settings(deadline=None, max_examples=300)
def test_a_flipped_bit_is_refused_or_carried(bit: int) -> None:
    flipped = bytearray(INSIDE)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        there = translate(bytes(flipped), MICROKERNELIZED)
    except (StreamError, TranslationError):
        return
    assert translate(there, MONOLITHIC) == flipped


def test_it_takes_little_of_the_guests_pause() -> None:
    recorded = load_stream("7.2", MONOLITHIC, "bridged")
    took = []
    for _ in range(20):
        before = time.process_time()
        translate(recorded, MICROKERNELIZED)
        took.append(time.process_time() - before)
    assert min(took) < 0.01  # 1.5 ms where it was written


def test_features_have_names() -> None:
    assert name_disk_features(1 << 2 | 1 << 32 | 1 << 45) == "SEG_MAX, VERSION_1, bit 45"
    assert name_nic_features(1 << 5 | 1 << 29) == "MAC, EVENT_IDX"
