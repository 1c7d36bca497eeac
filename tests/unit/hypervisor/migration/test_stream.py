"""The parser of migration streams: what QEMU wrote, and what nobody should have written."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.migration_streams import (
    END_OF_PAGES,
    PAGES,
    TIMER,
    Device,
    build_configuration,
    build_memory,
    build_stream,
    inside_disk,
    named,
    number,
    subsection,
)
from tests.recorded.streams import RECORDED, load_stream

from duovisor.hypervisor.migration import stream
from duovisor.hypervisor.migration.errors import StreamError
from duovisor.hypervisor.migration.memory import describe_flags
from duovisor.hypervisor.migration.stream import parse_stream
from duovisor.spec.vm import Design

SMALL = build_stream([TIMER, Device("cpu", 12, b"c" * 40, instance_id=1)])
WHOLE = load_stream("7.2", Design.MONOLITHIC, "bridged")
MOON = build_configuration() + subsection("configuration/moon", b"")
EMPTY = b'{"page_size": 4096, "devices": []}'
ONE_DEVICE = json.dumps({"page_size": 4096, "devices": [TIMER.describe()]}).encode()
LATER = {"subsections": [{"vmsd_name": "timer/a", "version": 2, "fields": []}]}
FIELD = {"name": "x", "type": "uint8", "size": 1}


def timer(document: dict[str, Any], content: bytes = b"") -> bytes:
    """A stream of one device with this content, described so."""
    return build_stream([Device("timer", 2, content, document=document)])


@pytest.mark.parametrize(("version", "design", "case"), RECORDED)
def test_what_qemu_wrote_is_understood(version: str, design: Design, case: str) -> None:
    found = parse_stream(load_stream(version, design, case))
    assert found.machine == f"pc-q35-{version}"
    assert found.capabilities == {"x-ignore-shared"}
    assert found.memory_blocks["ram"] == 256 << 20
    names = [section.name for section in found.sections]
    assert names[0] == "timer"
    assert names[-1] == "globalstate"
    assert {"cpu", "apic", "0000:00:10.0/virtio-blk" if design is Design.MONOLITHIC else names[0]} <= set(
        names
    )
    assert ("slirp" in names) == (case == "user")


def test_sections_are_where_they_are_said_to_be() -> None:
    found = parse_stream(SMALL)
    assert [(each.name, each.instance_id, each.version) for each in found.sections] == [
        ("timer", 0, 2), ("cpu", 1, 12),
    ]  # fmt: skip
    cpu = found.sections[1]
    assert SMALL[cpu.body : cpu.end] == b"c" * 40
    assert SMALL[cpu.start] == 4
    assert SMALL[cpu.end] == 0x7E
    assert SMALL[found.description :].startswith(b'{"page_size"')
    assert found.memory_blocks == {"pc.rom": 0x2000}


def test_fields_arrays_and_nested_subsections_are_measured() -> None:
    inner = subsection("timer/a/b", b"xy")
    content = b"f" * (1 + 3 * 4) + subsection("timer/a", b"z" + inner)
    document = {
        "fields": [FIELD, {"name": "array", "type": "uint32", "size": 4, "array_len": 3}],
        "subsections": [{
            "vmsd_name": "timer/a", "version": 1, "fields": [FIELD],
            "subsections": [{"vmsd_name": "timer/a/b", "version": 1, "fields": [{**FIELD, "size": 2}]}],
        }],
    }  # fmt: skip
    assert len(parse_stream(timer(document, content)).sections) == 1


def test_a_device_with_a_function_of_its_own_has_no_version_in_the_description() -> None:
    document = {"name": "old", "instance_id": 0, "size": 3, "fields": [{"name": "data", "size": 3}]}
    description = json.dumps({"page_size": 4096, "devices": [document]}).encode()
    found = parse_stream(build_stream([Device("old", 7, b"abc")], description=description))
    assert found.sections[0].version == 7


def test_newer_qemus_describe_the_configuration_too() -> None:
    document = {"configuration": {"x": 1}, "page_size": 4096, "devices": [TIMER.describe()]}
    assert parse_stream(build_stream([TIMER], description=json.dumps(document).encode())).sections


@pytest.mark.parametrize("command", [(1, 0), (2, 4), (11, 0)])
def test_commands_without_meaning_for_the_state_are_passed(command: tuple[int, int]) -> None:
    kind, size = command
    text = b"\x08" + number(kind, 2) + number(size, 2) + bytes(size)
    assert parse_stream(build_stream([TIMER], memory=text + build_memory(PAGES))).sections


def test_every_truncation_is_refused() -> None:
    for end in range(len(SMALL)):
        with pytest.raises(StreamError):
            parse_stream(SMALL[:end])


@given(st.integers(0, len(WHOLE) - 1))
@settings(deadline=None, max_examples=150)
def test_a_truncated_recording_is_refused(end: int) -> None:
    with pytest.raises(StreamError):
        parse_stream(WHOLE[:end])


def test_no_byte_of_a_device_can_be_missing_or_too_many() -> None:
    first = parse_stream(SMALL).sections[0].start
    last = parse_stream(SMALL).description - 5
    for place in range(first, last):
        for broken in (SMALL[:place] + SMALL[place + 1 :], SMALL[:place] + b"\x33" + SMALL[place:]):
            with pytest.raises(StreamError):
                parse_stream(broken)


@given(st.integers(0, len(SMALL) * 8 - 1))
@settings(deadline=None, max_examples=400)
def test_a_flipped_bit_is_refused_or_is_content(bit: int) -> None:
    flipped = bytearray(SMALL)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        found = parse_stream(bytes(flipped))
    except StreamError:
        return
    before = parse_stream(SMALL)
    assert [(each.body, each.end) for each in found.sections] == [
        (each.body, each.end) for each in before.sections
    ]


@given(st.binary(max_size=600))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_refused(data: bytes) -> None:
    for start in (b"", SMALL[:8], SMALL[:60]):
        with pytest.raises(StreamError):
            parse_stream(start + data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["name", "size", "fields", "array_len", "subsections", "version", "vmsd_name"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_description_of_a_device_is_refused(document: Any) -> None:
    description = json.dumps({"page_size": 4096, "devices": [document]}).encode()
    with pytest.raises(StreamError):
        parse_stream(build_stream([TIMER], description=description))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (b"", "magic: 4 bytes announced, 0 left"),
        (b"LibvirtQemudSave" + SMALL, "the magic number is 0x4c696276"),
        (SMALL.replace(b"QEVM\0\0\0\x03", b"QEVM\0\0\0\x02"), "the stream's version is 0x2, not 0x3"),
        (SMALL + b"\0", "no VM description at the end"),
        (build_stream([TIMER], configuration=b""), "the section after the version is 0x1, not 0x7"),
        (build_stream([TIMER], memory=b""), "the memory's section is missing"),
        (build_stream([TIMER], memory=build_memory() + build_memory()), "section ram, instance 0, number 2"),
        (build_stream([TIMER, TIMER]), "timer, instance 0, number 11: twice"),
        (build_stream([TIMER], trailer=b""), "section type"),
        (build_stream([TIMER], trailer=b"\0\0\0"), "2 bytes between the end and the VM description"),
        (build_stream([TIMER], trailer=b"\x09\0"), "unknown section type 0x9"),
        (build_stream([TIMER], trailer=b"\x08\0\x03\0\0\0"), "unknown command 3 with 0 bytes"),
        (build_stream([TIMER], trailer=b"\x02" + number(2)), "a part of section 2, which is not under way"),
        (
            build_stream([TIMER], configuration=MOON),
            "unknown part configuration/moon",
        ),
        (timer({}, b"").replace(b"\x7e" + number(10), b"\x7f" + number(10)), "timer has no footer here"),
        (timer({"version": 3}), "timer: version 2, but 3 in the description"),
        (timer({"name": "clock"}), "section timer where the VM description has clock"),
        (timer({"fields": [{**FIELD, "size": 2}]}, b"x"), "timer has no footer here"),
        (timer({"fields": [{**FIELD, "size": -1}]}), "timer: the VM description has a field of no size"),
        (timer({"fields": [{**FIELD, "size": 1 << 70}]}), "timer: 1180591620717411303424 bytes announced"),
        (timer({"fields": [{**FIELD, "array_len": 1 << 40}]}), "timer: 1099511627776 bytes announced"),
        (timer({"fields": [{**FIELD, "size": "1"}]}), "timer: the VM description has a field of no size"),
        (timer({"fields": [[]]}), "timer: the VM description has a field of no size"),
        (timer({"fields": None}), "timer: the VM description has no list of its fields"),
        (timer({"subsections": {}}), "timer: the VM description's subsections are no list"),
        (timer({"subsections": [7]}), "timer: the VM description has a subsection we cannot read"),
        (
            timer(LATER, subsection("timer/a", b"")),
            "timer, subsection timer/a of version 2 does not begin here",
        ),
        (build_stream([TIMER], description=b'{"page_size": 4096'), "the VM description is not JSON"),
        (build_stream([TIMER], description=b'{"page_size": 4096}'), "no list of devices"),
        (build_stream([TIMER], description=b'{"page_size": 8192, "devices": []}'), "not one of pages of"),
        (build_stream([TIMER], description=EMPTY), "is not in the VM description"),
        (build_stream([TIMER], description=b'{"page_size": 4096, "devices": [{}]}'), "device 0 of the"),
        (
            build_stream([], description=ONE_DEVICE),
            "no section of timer",
        ),
        (build_stream([TIMER], description=b'{"page_size": ' + b"9" * 5000 + b"}"), "is not JSON"),
        (build_stream([TIMER], description=b'{"page_size": ' + b"[" * 50000), "is not JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(broken: bytes, said: str) -> None:
    with pytest.raises(StreamError) as caught:
        parse_stream(broken)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        (number(0x40, 8) + named("pc.rom"), "a memory page has the flags XBZRLE"),
        (number(0x200, 8), "a memory page has the flags MULTIFD_FLUSH"),
        (number(0x400, 8), "a memory page has the flags 0x400"),
        (number(0, 8), "a memory page has the flags none"),
        (number(0x2008, 8) + named("pc.rom") + bytes(4096), "a page at 0x2000 is outside block 'pc.rom'"),
        (number(0x08, 8) + named("moon") + bytes(4096), "a page at 0x0 is outside block 'moon'"),
        (number(0x28, 8) + bytes(4096), "a page at 0x0 is outside block ''"),
        (number(0x02, 8) + named("pc.rom") + b"\x01", "the filling of a zero page is 0x1"),
        (number(0x08, 8) + named("") + bytes(4096), "b'' is no name"),
        (number(0x08, 8) + b"\x02\xff\xff", "is no name"),
        (number(0x1018, 8), "a memory page has the flags PAGE EOS"),
    ],
)  # fmt: skip
def test_wrong_pages_are_named(pages: bytes, said: str) -> None:
    with pytest.raises(StreamError) as caught:
        parse_stream(build_stream([TIMER], memory=build_memory(pages)))
    assert said in caught.value.message


@pytest.mark.parametrize(
    "blocks",
    [
        number(0x2008, 8),  # no flag that says what it is
        number(0x2004, 8) + named("a") + number(0x3000, 8) + bytes(8),  # larger than all of them
        number(0x2004, 8) + named("a") + number(0x1800, 8) + bytes(8),  # no whole pages
        number(0x2004, 8) + (named("a") + number(0x1000, 8) + bytes(8)) * 2,  # twice
        number(0x2004, 8) + named("a") + number(0, 8) + bytes(8),
    ],
)
def test_wrong_memory_blocks_are_refused(blocks: bytes) -> None:
    header = b"\x01" + number(2) + named("ram") + number(0) + number(4)
    with pytest.raises(StreamError, match=r"memory block|the memory's size"):
        parse_stream(build_stream([TIMER], memory=header + blocks + END_OF_PAGES + b"\x7e" + number(2)))


def test_blocks_have_an_address_only_without_shared_ones() -> None:
    with pytest.raises(StreamError):
        parse_stream(build_stream([TIMER], configuration=build_configuration()))


def test_a_stream_of_no_possible_size_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_STREAM_BYTES", len(SMALL) - 1)
    with pytest.raises(StreamError, match="at most"):
        parse_stream(SMALL)


def test_hostile_streams_cost_no_more_than_their_size() -> None:
    many = build_stream([Device("x" * 200, 1, b"", instance_id=each) for each in range(4000)])
    nested: dict[str, Any] = {"fields": []}
    for _ in range(200):
        nested = {"fields": [], "subsections": [{"vmsd_name": "a", "version": 1, **nested}]}
    long = build_stream(
        [TIMER], description=b'{"page_size": 4096, "devices": [' + b"{}," * (1 << 20) + b"{}]}"
    )
    for data in (many, timer(nested), long, b"QEVM\0\0\0\x03" + b'{"page_size": ' * 50000):
        tracemalloc.start()
        before = time.process_time()
        try:
            parse_stream(data)
        except StreamError:
            pass
        seconds, (_, peak) = time.process_time() - before, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seconds < 10
        assert peak < 100 * len(data) + (1 << 20)


def test_flags_are_named() -> None:
    assert describe_flags(0x1000 | 0x08 | 0x20) == "PAGE CONTINUE"
    assert describe_flags(0x800) == "0x800"


def test_a_disk_of_the_builder_is_one() -> None:
    assert parse_stream(build_stream([inside_disk()])).sections[0].name == "0000:00:10.0/virtio-blk"
