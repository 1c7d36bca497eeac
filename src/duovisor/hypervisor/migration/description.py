"""The VM description at the end of a migration stream: QEMU's own account of which field has how many bytes.

Sections of a stream have no length; with this account they can be walked. What it says is checked against the
stream: a subsection must begin where it is said to begin, and a section's footer where the walk ends.
Source: QEMU ``migration/vmstate.c`` (``vmsd_desc_field_start``), the same in 7.2 and 10.0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duovisor.hypervisor.migration.errors import StreamError

if TYPE_CHECKING:
    from duovisor.hypervisor.migration.reader import Reader

MAX_DESCRIPTION_BYTES = 8 << 20
SUBSECTION = 0x05
SUBSECTION_DEPTH_MAX = 8
PAGE_BYTES = 4096  # of every x86 machine

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeviceDescription:
    """One device; ``vmsd_name`` and ``version`` are ``None`` where QEMU has a function for it."""

    name: str
    instance_id: int
    vmsd_name: str | None
    version: int | None
    document: Json


def parse_description(text: bytes, offset: int) -> tuple[DeviceDescription, ...]:
    """The devices in the order of their sections; ``offset`` is where the text begins in the stream.

    Raises ``StreamError``.
    """
    if len(text) > MAX_DESCRIPTION_BYTES:
        raise StreamError(
            offset, f"the VM description has {len(text)} bytes, {MAX_DESCRIPTION_BYTES} at most"
        )
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StreamError(offset, f"the VM description is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("page_size") != PAGE_BYTES:
        raise StreamError(offset, f"the VM description is not one of pages of {PAGE_BYTES} bytes")
    devices = document.get("devices")
    if not isinstance(devices, list):
        raise StreamError(offset, "the VM description has no list of devices")
    return tuple(_parse_device(device, number, offset) for number, device in enumerate(devices))


def _parse_device(document: Any, number: int, offset: int) -> DeviceDescription:
    match document:
        case {
            "name": str(name),
            "instance_id": int(instance),
            "vmsd_name": str(kind),
            "version": int(version),
        }:
            return DeviceDescription(name, instance, kind, version, document)
        case {"name": str(name), "instance_id": int(instance), "size": int()} if "vmsd_name" not in document:
            return DeviceDescription(name, instance, None, None, document)
    raise StreamError(offset, f"device {number} of the VM description is of a form that we do not know")


def walk_fields(reader: Reader, document: Json, name: str, depth: int = 0) -> None:
    """Pass the fields and subsections of ``document`` over. Raises ``StreamError``."""
    fields = document.get("fields")
    if not isinstance(fields, list):
        raise reader.fail(f"{name}: the VM description has no list of its fields")
    reader.skip(sum(_measure(reader, field, name) for field in fields), name)
    subsections = document.get("subsections", [])
    if not isinstance(subsections, list):
        raise reader.fail(f"{name}: the VM description's subsections are no list")
    for subsection in subsections:
        _walk_subsection(reader, subsection, name, depth + 1)


def _measure(reader: Reader, field: Any, name: str) -> int:
    """The bytes of one field; a ``match`` here would take as long as all the rest."""
    if type(field) is dict:
        size, length = field.get("size"), field.get("array_len", 1)
        if type(size) is int and type(length) is int and size >= 0 and length >= 0:
            return size * length
    raise reader.fail(f"{name}: the VM description has a field of no size that we can read")


def _walk_subsection(reader: Reader, document: Any, parent: str, depth: int) -> None:
    match document:
        case {"vmsd_name": str(name), "version": int(version)} if depth <= SUBSECTION_DEPTH_MAX:
            what = f"{parent}, subsection {name[:64]}"
        case _:
            raise reader.fail(f"{parent}: the VM description has a subsection we cannot read")
    start = reader.at
    if reader.u8(what) != SUBSECTION or reader.name(what) != name or reader.u32(what) != version:
        raise reader.fail(f"{what} of version {version} does not begin here", start)
    walk_fields(reader, document, what, depth)
