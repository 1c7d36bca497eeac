"""What an image's first bytes say of it; pure, and safe on any bytes.

QEMU's tools would follow what a header names while they tell of it: files of others, network addresses, whole
``json:`` descriptions. These functions only read. Sources: QEMU ``docs/interop/qcow2.txt``,
``block/vmdk.c``, ``block/vdi.c``, ``block/vhdx.h``.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import NamedTuple

from duovisor.spec.vm import DiskFormat

HEAD_BYTES = 128 << 10  # the first cluster of a qcow2, the descriptor of a VMDK: all that is looked at

_QCOW2 = Struct(">4sIQIIQI")  # magic, version, backing file: place and length, cluster bits, size, encryption
_QCOW2_FEATURES_AT, _QCOW2_LENGTH_AT = 72, 100
_QCOW2_FORMAT_EXTENSION = 0xE2792ACA
_QCOW2_CORRUPT, _QCOW2_EXTERNAL_DATA = 1 << 1, 1 << 2
_VMDK = Struct("<4sIIQQQQ")  # magic, version, flags, capacity, grain, descriptor: place and length in sectors
_VMDK_ONE_FILE = ("monolithicSparse", "streamOptimized")
_VDI_SIGNATURE_AT, _VDI_SIGNATURE = 0x40, b"\x7f\x10\xda\xbe"
_MAGIC = {
    b"QFI\xfb": DiskFormat.QCOW2,
    b"KDMV": DiskFormat.VMDK,
    b"COWD": DiskFormat.VMDK,
    b"# Di": DiskFormat.VMDK,
    b"vhdx": DiskFormat.VHDX,
}


class HeaderError(ValueError):
    """Why an image cannot be used, and what to do (``remedy``, with ``{path}`` in it)."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class Backing(NamedTuple):
    """What is below an image, as its header names it; ``format`` is the name of a QEMU driver, or empty."""

    name: str
    format: str


def guess_format(head: bytes) -> DiskFormat | None:
    """The format whose signature an image bears; ``None``: it may be raw."""
    if head[_VDI_SIGNATURE_AT : _VDI_SIGNATURE_AT + 4] == _VDI_SIGNATURE:
        return DiskFormat.VDI
    return _MAGIC.get(head[:4])


def parse_backing(head: bytes, disk_format: DiskFormat) -> Backing | None:
    """Check an image's head against its format; return what is below it. Raises ``HeaderError``."""
    if disk_format is DiskFormat.RAW:
        return None
    found = guess_format(head)
    if found is not disk_format:
        looks = f"it begins as {found} does" if found else "it bears no signature of that format"
        raise HeaderError(f"is no {disk_format} image: {looks}", "correct the disk's format")
    match disk_format:
        case DiskFormat.QCOW2:
            return parse_qcow2(head)
        case DiskFormat.VMDK:
            return parse_vmdk(head)
        case _:
            return None  # QEMU knows no backing files of these


def parse_qcow2(head: bytes) -> Backing | None:
    """What is below a qcow2 image. Raises ``HeaderError`` for what QEMU should not be given."""
    if len(head) < _QCOW2_LENGTH_AT + 4:
        raise HeaderError("ends in the middle of its header")
    _, version, place, length, _, _, encryption = _QCOW2.unpack_from(head)
    if version not in (2, 3):
        raise HeaderError(f"is qcow2 of version {version}; 2 and 3 are known")
    if encryption:
        raise HeaderError("is encrypted", "qemu-img convert -O qcow2 decrypts it into a new image")
    features = int.from_bytes(head[_QCOW2_FEATURES_AT : _QCOW2_FEATURES_AT + 8]) if version == 3 else 0
    if features & _QCOW2_EXTERNAL_DATA:
        raise HeaderError("keeps its data in another file", "qemu-img convert -O qcow2 {path} NEW.qcow2")
    if features & _QCOW2_CORRUPT:
        raise HeaderError("is marked as corrupt", "qemu-img check -r all {path}")
    if not place:
        return None
    if not 0 < length <= 1023 or place + length > len(head):
        raise HeaderError(f"names its backing file in {length} bytes at {place}, where no name can be")
    name = head[place : place + length].decode(errors="surrogateescape")
    header_bytes = int.from_bytes(head[_QCOW2_LENGTH_AT : _QCOW2_LENGTH_AT + 4]) if version == 3 else 72
    return Backing(name, _find_backing_format(head, header_bytes))


def _find_backing_format(head: bytes, start: int) -> str:
    while start + 8 <= len(head):
        kind, length = int.from_bytes(head[start : start + 4]), int.from_bytes(head[start + 4 : start + 8])
        if kind == 0 or start + 8 + length > len(head):
            break
        if kind == _QCOW2_FORMAT_EXTENSION:
            return head[start + 8 : start + 8 + length].decode(errors="replace")
        start += 8 + -(-length // 8) * 8
    return ""


def parse_vmdk(head: bytes) -> Backing | None:
    """What is below a VMDK image of one file. Raises ``HeaderError`` for one that consists of several."""
    remedy = "qemu-img convert -O vmdk -o subformat=monolithicSparse {path} NEW.vmdk"
    if head[:4] != b"KDMV" or len(head) < _VMDK.size:
        raise HeaderError("is a VMDK that consists of several files", remedy)
    _, _, _, capacity, _, place, length = _VMDK.unpack_from(head)
    text = head[place * 512 : (place + length) * 512].split(b"\0")[0].decode(errors="surrogateescape")
    kind = _find_vmdk_value(text, "createType")
    if not capacity or not place or kind not in _VMDK_ONE_FILE:
        raise HeaderError(f"is a VMDK of kind {kind or 'unknown'}, which this platform does not read", remedy)
    name = _find_vmdk_value(text, "parentFileNameHint")
    return Backing(name, DiskFormat.VMDK) if name else None


def _find_vmdk_value(text: str, key: str) -> str:
    found = re.search(rf'^{key}="([^"\n]*)"', text, re.MULTILINE)
    return found[1] if found else ""
