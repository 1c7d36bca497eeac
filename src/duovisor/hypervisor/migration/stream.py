"""QEMU's migration stream, read as a whole and to its last byte.

::

    "QEVM", 3 · configuration (machine, capabilities) · ram: start, parts, end
    · a full section for each device · end of file · VM description (JSON)

Each section ends with a footer that repeats its number. Sources: QEMU ``migration/savevm.c`` and
``savevm.h``; tried with streams of 7.2 and 10.0. What a later QEMU may add is refused, not guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor.hypervisor.migration import memory
from duovisor.hypervisor.migration.description import DeviceDescription, parse_description, walk_fields
from duovisor.hypervisor.migration.errors import StreamError
from duovisor.hypervisor.migration.memory import MemoryBlocks
from duovisor.hypervisor.migration.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Mapping

# A stream of ours has 0.3 to 2 MiB (2.2 KiB a processor, 45 KiB a virtio device, 200 KiB of firmware), with
# UEFI some 4 MiB more
MAX_STREAM_BYTES = 64 << 20
IGNORE_SHARED = "x-ignore-shared"

_MAGIC, _VERSION = 0x5145564D, 3
_EOF, _START, _PART, _END, _FULL, _SUBSECTION = 0x00, 0x01, 0x02, 0x03, 0x04, 0x05
_DESCRIPTION, _CONFIGURATION, _COMMAND, _FOOTER = 0x06, 0x07, 0x08, 0x7E
_OPEN_RETURN_PATH, _PING, _SWITCHOVER_START = 1, 2, 11  # the last since QEMU 10.0
_COMMAND_BYTES = {_OPEN_RETURN_PATH: 0, _PING: 4, _SWITCHOVER_START: 0}  # others: of post-copy and COLO
_DESCRIPTION_HEADER = 5
# before QEMU 9.1, and since
_DESCRIPTION_STARTS = (b'{"page_size": ', b'{"configuration": ')


@dataclass(frozen=True, slots=True)
class Section:
    """A device's section as offsets into the stream: its header at ``start``, the rest ``body`` to ``end``.

    The footer's 5 bytes follow at ``end``.
    """

    section_id: int
    name: str
    instance_id: int
    version: int
    start: int
    body: int
    end: int
    description: DeviceDescription


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream that was understood to its last byte; ``description`` is the JSON's offset in ``data``."""

    data: bytes
    machine: str
    capabilities: frozenset[str]
    memory_blocks: Mapping[str, int]
    sections: tuple[Section, ...]
    description: int


def parse_stream(data: bytes) -> Stream:
    """Read a stream. Raises ``StreamError``, what is wrong and where, for all that is not understood."""
    if len(data) > MAX_STREAM_BYTES:
        raise StreamError(0, f"{len(data)} bytes, {MAX_STREAM_BYTES} at most")
    return _Parser(data).parse()


def find_description(data: bytes) -> int:
    """Where the VM description's text begins. Raises ``StreamError``.

    Only the walk to this place proves that it is one: so far it is text that looks so and goes to the end.
    """
    for text in _DESCRIPTION_STARTS:
        start = data.rfind(text)
        header = start - _DESCRIPTION_HEADER
        length = len(data) - start
        if header >= 0 and data[header:start] == bytes((_DESCRIPTION,)) + length.to_bytes(4, "big"):
            return start
    raise StreamError(len(data), "no VM description at the end: cut off, or not of QEMU")


class _Parser:
    """Goes through the stream once; ``_expected`` are the devices that the description still has."""

    def __init__(self, data: bytes) -> None:
        reader = Reader(data)
        # what the first bytes say is the better message when both ends are wrong
        reader.expect(_MAGIC, reader.u32("magic"), "the magic number")
        reader.expect(_VERSION, reader.u32("version"), "the stream's version")
        self._description = find_description(data)
        self._expected = parse_description(data[self._description :], self._description)
        reader.end = self._description - _DESCRIPTION_HEADER
        self._reader = reader
        self._blocks = MemoryBlocks()
        self._memory_id: int | None = None
        self._memory_ended = False
        self._sections: list[Section] = []
        self._seen: set[tuple[str, int] | int] = set()

    def parse(self) -> Stream:
        reader = self._reader
        machine, capabilities = self._read_configuration()
        while (kind := reader.u8("section type")) != _EOF:
            match kind:
                case 0x01:
                    self._read_memory_start(addressed=IGNORE_SHARED in capabilities)
                case 0x02 | 0x03:
                    self._read_memory_part(last=kind == _END)
                case 0x04:
                    self._read_full()
                case 0x08:
                    self._read_command()
                case _:
                    raise reader.fail(f"unknown section type {kind:#x}", reader.at - 1)
        if reader.at != reader.end:
            raise reader.fail(f"{reader.end - reader.at} bytes between the end and the VM description")
        if not self._memory_ended:
            raise reader.fail("the memory's section is missing or does not end")
        if len(self._sections) != len(self._expected):
            raise reader.fail(f"no section of {self._expected[len(self._sections)].name[:64]}")
        return Stream(
            reader.data, machine, capabilities, self._blocks.bytes, tuple(self._sections), self._description
        )

    def _read_configuration(self) -> tuple[str, frozenset[str]]:
        reader = self._reader
        reader.expect(_CONFIGURATION, reader.u8("configuration"), "the section after the version")
        machine = reader.take(reader.u32("machine"), "machine")
        capabilities: list[str] = []
        seen: set[str] = set()
        while reader.data[reader.at : reader.at + 1] == bytes((_SUBSECTION,)):
            start = reader.skip(1, "configuration")
            name, version = reader.name("configuration"), reader.u32("configuration")
            if name in seen or version != 1:
                raise reader.fail(f"{name} twice, or of version {version}", start)
            seen.add(name)
            match name:
                case "configuration/capabilities":
                    count = reader.u32(name)
                    capabilities += [reader.name(name) for _ in range(min(count, reader.end))]
                case "configuration/uuid":
                    reader.skip(16, name)
                case _:
                    raise reader.fail(f"unknown part {name}", start)
        return machine.decode(errors="replace"), frozenset(capabilities)

    def _read_command(self) -> None:
        reader = self._reader
        start = reader.at
        command, size = reader.u16("command"), reader.u16("command")
        if _COMMAND_BYTES.get(command) != size:
            raise reader.fail(f"unknown command {command} with {size} bytes", start)
        reader.skip(size, "command")

    def _read_header(self) -> tuple[int, str, int, int]:
        reader = self._reader
        start = reader.at
        section_id = reader.u32("section")
        name = reader.name("section")
        instance, version = reader.u32(name), reader.u32(name)
        if section_id in self._seen or (name, instance) in self._seen:
            raise reader.fail(f"section {name}, instance {instance}, number {section_id}: twice", start)
        self._seen |= {section_id, (name, instance)}
        return section_id, name, instance, version

    def _read_footer(self, section_id: int, name: str) -> None:
        reader = self._reader
        start = reader.at
        if reader.u8(name) != _FOOTER or reader.u32(name) != section_id:
            raise reader.fail(f"{name} has no footer here", start)

    def _read_memory_start(self, *, addressed: bool) -> None:
        start = self._reader.at
        section_id, name, instance, version = self._read_header()
        if (name, instance, version) != (memory.SECTION, 0, memory.SECTION_VERSION):
            raise self._reader.fail(f"section {name}, instance {instance}, version {version} in parts", start)
        self._memory_id = section_id
        self._blocks.read_setup(self._reader, addressed=addressed)
        self._read_footer(section_id, name)

    def _read_memory_part(self, *, last: bool) -> None:
        start = self._reader.at
        section_id = self._reader.u32("section")
        if section_id != self._memory_id or self._memory_ended:
            raise self._reader.fail(f"a part of section {section_id}, which is not under way", start)
        self._memory_ended = last
        self._blocks.read_pages(self._reader)
        self._read_footer(section_id, memory.SECTION)

    def _read_full(self) -> None:
        reader = self._reader
        start = reader.at - 1
        section_id, name, instance, version = self._read_header()
        if len(self._sections) == len(self._expected):
            raise reader.fail(f"section {name} is not in the VM description", start)
        described = self._expected[len(self._sections)]
        if (described.name, described.instance_id) != (name, instance):
            raise reader.fail(f"section {name} where the VM description has {described.name[:64]}", start)
        if described.version not in (version, None):
            raise reader.fail(f"{name}: version {version}, but {described.version} in the description", start)
        body = reader.at
        walk_fields(reader, described.document, name)
        end = reader.at
        self._read_footer(section_id, name)
        self._sections.append(Section(section_id, name, instance, version, start, body, end, described))
