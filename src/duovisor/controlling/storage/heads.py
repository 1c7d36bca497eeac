"""What an uploaded image is, read from its own bytes; one that needs other files is refused.

Sources: as ``controlling.formats.headers``; Microsoft's "Virtual Hard Disk Image Format Specification" (the
footer, also in front of a dynamic disk).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from duovisor.controlling.formats.headers import HEAD_BYTES, HeaderError, guess_format, parse_backing
from duovisor.controlling.storage.errors import VolumeContentError
from duovisor.controlling.storage.records import ImageFormat, VolumeFormat
from duovisor.spec.vm import DiskFormat

if TYPE_CHECKING:
    from pathlib import Path

FOOTER_BYTES = 512
SECTOR_BYTES = 512
_VHD_COOKIE, _VHD_CREATOR_AT, _VHD_TYPE_AT = b"conectix", 28, 60
_VHD_WHOLE = (2, 3)  # fixed, dynamic; 4 is based on another
_VHD_COUNTS_CYLINDERS = (b"vpc ", b"qemu")  # Virtual PC, and QEMU as long as it says nothing else
_QCOW2_SIZE_AT = 24


def identify(path: Path, said: ImageFormat | None, size_bytes: int) -> ImageFormat:
    """The format of a file that stands alone, of the first so many bytes of one.

    It may block. Raises ``VolumeContentError``.
    """
    head, tail = _read_ends(path, size_bytes)
    found = said or guess(head, tail)
    check_alone(head, tail, found)
    if found is ImageFormat.RAW and (not size_bytes or size_bytes % SECTOR_BYTES):
        raise VolumeContentError(
            f"a raw image of {size_bytes} bytes is no disk, whose size is a multiple of {SECTOR_BYTES}",
            remedy=f"truncate -s %{SECTOR_BYTES} FILE rounds it up; is it really a raw image?",
        )
    return found


def find_options(path: Path, image_format: ImageFormat, size_bytes: int) -> dict[str, str]:
    """What QEMU has to be told of an identified image besides its format; may block.

    A VHD says how large it is twice: in bytes, and in cylinders, which often come to a little less. QEMU
    believes the cylinders, but of a few makers, and so would lose the end of the others' disks: the second
    partition table of a GPT.
    """
    if image_format is not ImageFormat.VHD:
        return {}
    head, tail = _read_ends(path, size_bytes)
    footer = _find_vhd_footer(head, tail) or b""
    creator = footer[_VHD_CREATOR_AT : _VHD_CREATOR_AT + 4]
    return {} if creator in _VHD_COUNTS_CYLINDERS else {"force_size_calc": "current_size"}


def _read_ends(path: Path, size_bytes: int) -> tuple[bytes, bytes]:
    """The head and the last bytes of a file, or of an image at the beginning of a device."""
    with path.open("rb") as file:
        head = file.read(min(HEAD_BYTES, size_bytes))
        tail_at = max(0, size_bytes - FOOTER_BYTES)
        file.seek(tail_at)
        return head, file.read(size_bytes - tail_at)


def guess(head: bytes, tail: bytes) -> ImageFormat:
    """The format whose signature is there, else raw; pure."""
    if known := guess_format(head):
        return ImageFormat(known.value)
    return ImageFormat.VHD if _find_vhd_footer(head, tail) else ImageFormat.RAW


def check_alone(head: bytes, tail: bytes, image_format: ImageFormat) -> None:
    """Raises ``VolumeContentError`` unless it is of this format and needs no other file; pure."""
    if image_format is ImageFormat.VHD:
        _check_vhd(head, tail)
        return
    try:
        backing = parse_backing(head, DiskFormat(image_format.value))
    except HeaderError as error:
        remedy = error.remedy.replace("{path}", "FILE")
        raise VolumeContentError(f"the image {error}", remedy=remedy) from error
    if backing is not None:
        raise VolumeContentError(
            f"the image is based on {backing.name!r}; only one that stands alone can be uploaded",
            remedy="qemu-img convert -O qcow2 FILE NEW.qcow2 makes one, where that file is",
        )


def _check_vhd(head: bytes, tail: bytes) -> None:
    footer = _find_vhd_footer(head, tail)
    if footer is None:
        raise VolumeContentError("the image is no vhd image: it bears no signature of that format")
    kind = int.from_bytes(footer[_VHD_TYPE_AT : _VHD_TYPE_AT + 4])
    if kind not in _VHD_WHOLE:
        raise VolumeContentError(
            f"the image is a VHD of type {kind}, which is based on another; only whole ones can be uploaded",
            remedy="merge it where its parent is",
        )


def _find_vhd_footer(head: bytes, tail: bytes) -> bytes | None:
    for part in (head[:FOOTER_BYTES], tail):
        if part.startswith(_VHD_COOKIE) and len(part) == FOOTER_BYTES:
            return part
    return None


def read_size(path: Path, image_format: VolumeFormat) -> int:
    """What a guest sees of a volume's file, in bytes, as its header says; may block. Raises ``OSError``."""
    with path.open("rb") as file:
        if image_format is VolumeFormat.RAW:
            return file.seek(0, os.SEEK_END)
        file.seek(_QCOW2_SIZE_AT)
        return int.from_bytes(file.read(8))
