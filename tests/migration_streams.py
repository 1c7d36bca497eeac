"""Small migration streams, built field by field from what QEMU's source says; for tests of broken ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

DISK_FEATURES = 0x30006E54  # what Linux 6.1 negotiates with a disk, bits 0 to 31
VERSION_1 = 1 << 32
MODERN_STATE_BYTES = 16 + 1024 * 28
END_OF_PAGES = (0x10).to_bytes(8, "big")


class Device(NamedTuple):
    """A section, and what the description says of it; by default one field of the right size."""

    name: str
    version: int
    content: bytes
    instance_id: int = 0
    document: dict[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        kind = self.name.rpartition("/")[2]
        opaque = "virtio" if "/" in self.name else "data"
        document = {
            "name": self.name, "instance_id": self.instance_id, "vmsd_name": kind, "version": self.version,
            "fields": [{"name": opaque, "type": opaque, "size": len(self.content)}],
        }  # fmt: skip
        return {**document, **(self.document or {})}


def named(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


def number(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "big")


def subsection(name: str, content: bytes, version: int = 1) -> bytes:
    return b"\x05" + named(name) + number(version) + content


def build_memory(pages: bytes = b"") -> bytes:
    """The section ``ram``, number 2: one block of two pages; its part carries ``pages``."""
    block = named("pc.rom") + number(0x2000, 8) + number(0xC0000, 8)
    header = b"\x01" + number(2) + named("ram") + number(0) + number(4)
    start = header + number(0x2000 | 0x04, 8) + block + END_OF_PAGES + b"\x7e" + number(2)
    part = b"\x02" + number(2) + pages + END_OF_PAGES + b"\x7e" + number(2)
    return start + part + b"\x03" + number(2) + END_OF_PAGES + b"\x7e" + number(2)


PAGES = (
    number(0x0000 | 0x08, 8) + named("pc.rom") + b"\x90" * 4096  # a page
    + number(0x1000 | 0x02 | 0x20, 8) + b"\0"  # one of zeros, in the same block
)  # fmt: skip


def build_configuration(*capabilities: str) -> bytes:
    names = number(len(capabilities)) + b"".join(map(named, capabilities))
    return b"\x07" + number(10) + b"pc-q35-7.2" + subsection("configuration/capabilities", names)


def build_stream(
    devices: Sequence[Device],
    *,
    configuration: bytes = build_configuration("x-ignore-shared"),
    memory: bytes = build_memory(PAGES),
    description: bytes | None = None,
    trailer: bytes = b"\0",
) -> bytes:
    """A whole stream; sections get the numbers from 10 on."""
    sections = b"".join(
        b"\x04" + number(10 + index) + named(each.name) + number(each.instance_id) + number(each.version)
        + each.content + b"\x7e" + number(10 + index)
        for index, each in enumerate(devices)
    )  # fmt: skip
    if description is None:
        document = {"page_size": 4096, "devices": [each.describe() for each in devices]}
        description = json.dumps(document).encode()
    start = b"QEVM" + number(3) + configuration + memory + sections + trailer
    return start + b"\x06" + number(len(description)) + description


def build_virtio(
    own: bytes,
    *,
    features: int = DISK_FEATURES | VERSION_1,
    queues: int = 1,
    vectors: int = 2,
    capabilities: bytes | None = None,
    subsections: bytes | None = None,
) -> bytes:
    """The state of a virtio device whose own part is ``own``; without MSI-X if it has no ``vectors``."""
    space = bytearray(256)
    if vectors:
        space[0x06], space[0x34] = 0x10, 0x40
        space[0x40:0x44] = b"\x11\0" + (vectors - 1).to_bytes(2, "little")
    if capabilities is not None:
        space[0x06], space[0x34] = 0x10, 0x40
        space[0x40 : 0x40 + len(capabilities)] = capabilities
    pci = number(2) + space + bytes(16)
    if vectors:
        pci += bytes(vectors * 16 + (vectors + 7) // 8) + number(0, 2)
    registers = b"\x0f\0" + number(0, 2) + number(features & 0xFFFFFFFF) + number(60) + bytes(60)
    vector = bytes(2) if vectors else b""
    rings = number(queues) + (number(256) + number(0, 8) + number(7, 2) + vector) * queues
    if subsections is None:
        subsections = build_subsections(features)
    return pci + registers + rings + own + subsections


def build_subsections(features: int = DISK_FEATURES | VERSION_1) -> bytes:
    """Those that QEMU writes for a device in use."""
    return (
        subsection("virtio/64bit_features", number(features, 8))
        + subsection("virtio/virtqueues", bytes(1024 * 16))
        + subsection("virtio/extra_state", subsection("virtio_pci/modern_state", bytes(MODERN_STATE_BYTES)))
        + subsection("virtio/started", b"\x01")
    )


def inside_disk(content: bytes | None = None, place: str = "0000:00:10.0") -> Device:
    """A disk of the monolithic design."""
    return Device(f"{place}/virtio-blk", 2, build_virtio(b"\0") if content is None else content)


def outside_disk(content: bytes | None = None, place: str = "0000:00:10.0") -> Device:
    """A disk of the microkernelized design."""
    return Device(f"{place}/vhost-user-blk", 1, build_virtio(b"") if content is None else content)


TIMER = Device("timer", 2, bytes(24))
