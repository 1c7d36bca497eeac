"""AML, the byte code of ACPI: just the terms that our DSDT has.

Source: ACPI 6.4, chapter 20 (grammar) and 6.4 (resource descriptors); each function names its term.
"""

from __future__ import annotations

import struct


def build_name(name: str, value: bytes) -> bytes:
    """Name (NameString, DataRefObject)."""
    return b"\x08" + _name_string(name) + value


def build_scope(name: str, *terms: bytes) -> bytes:
    """Scope (Location) { TermList }."""
    return b"\x10" + _with_length(_name_string(name) + b"".join(terms))


def build_device(name: str, *terms: bytes) -> bytes:
    """Device (DeviceName) { TermList }."""
    return b"\x5b\x82" + _with_length(_name_string(name) + b"".join(terms))


def build_method(name: str, arguments: int, *terms: bytes) -> bytes:
    """Method (MethodName, NumArgs, Serialized) { TermList }."""
    return b"\x14" + _with_length(_name_string(name) + bytes((arguments | 1 << 3,)) + b"".join(terms))


def build_notify(device: str, value: int) -> bytes:
    """Notify (Object, NotificationValue)."""
    return b"\x86" + _name_string(device) + build_integer(value)


def build_package(*elements: bytes) -> bytes:
    """Package (NumElements) { PackageList }."""
    return b"\x12" + _with_length(bytes((len(elements),)) + b"".join(elements))


def build_string(text: str) -> bytes:
    """A string."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def build_integer(value: int) -> bytes:
    """An integer, in as few bytes as it needs."""
    if value in (0, 1):
        return bytes((value,))
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4)):
        if value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    return b"\x0e" + value.to_bytes(8, "little")


def build_eisa_id(text: str) -> bytes:
    """EISAID ("PNP0A03"): three letters of five bits and four hexadecimal digits (20.2.7)."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    number = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + number.to_bytes(4, "big")


def build_resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate () { … }: a buffer of descriptors that ends with an end tag (6.4.2.9)."""
    data = b"".join(descriptors) + b"\x79\0"
    return b"\x11" + _with_length(build_integer(len(data)) + data)


def build_ports(base: int, count: int) -> bytes:
    """IO (Decode16, base, base, 1, count): 6.4.2.5."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, count)


def build_bus_range(first: int, last: int) -> bytes:
    """WordBusNumber (ResourceProducer, MinFixed, MaxFixed, …): 6.4.3.5.3."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 2, 0x0C, 0, 0, first, last, 0, last - first + 1)


def build_memory_range(start: int, end: int) -> bytes:
    """DWordMemory (ResourceProducer, …, MinFixed, MaxFixed, NonCacheable, ReadWrite, …): 6.4.3.5.2."""
    return struct.pack("<BHBBBIIIII", 0x87, 23, 0, 0x0C, 1, 0, start, end - 1, 0, end - start)


def build_interrupt(number: int) -> bytes:
    """Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {number}: 6.4.3.6."""
    return struct.pack("<BHBBI", 0x89, 6, 0x03, 1, number)


def _name_string(name: str) -> bytes:
    """A name such as ``PWRB``, ``\\_SB`` or ``\\_SB.PWRB``: 20.2.2."""
    root = b"\\" if name.startswith("\\") else b""
    segments = [segment.ljust(4, "_").encode("ascii") for segment in name.lstrip("\\").split(".")]
    return root + (b"\x2e" if len(segments) == 2 else b"") + b"".join(segments)


def _with_length(content: bytes) -> bytes:
    """PkgLength, which counts itself, and what it is the length of: 20.2.4."""
    if len(content) + 1 < 1 << 6:
        return bytes((len(content) + 1,)) + content
    for extra in (1, 2, 3):
        length = len(content) + 1 + extra
        if length < 1 << 4 + 8 * extra:
            return bytes((extra << 6 | length & 0xF,)) + (length >> 4).to_bytes(extra, "little") + content
    raise ValueError(f"{len(content)} bytes are too long for a package")
