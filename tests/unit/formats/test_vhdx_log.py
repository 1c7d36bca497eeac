"""VHDX images that a kill left with a log that is announced and empty."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.unit.formats.test_headers import needs_qemu_img

from duovisor.controlling.disk_lock import lock_disk
from duovisor.controlling.errors import DiskLockedError
from duovisor.controlling.formats.vhdx_log import (
    HEADER_BYTES,
    HEADERS_AT,
    VhdxHeader,
    clear_stale_log,
    crc32c,
    find_current_header,
    has_valid_entry,
    mend_image,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GUID = b"0123456789abcdef"
pytestmark = needs_qemu_img


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "image.vhdx"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", str(path), "64M"], check=True)
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def read_header(image: int) -> VhdxHeader:
    header = find_current_header([os.pread(image, HEADER_BYTES, at) for at in HEADERS_AT])
    assert header is not None
    return header


def write_header(image: int, header: VhdxHeader, guid: bytes) -> None:
    """As QEMU does before it writes a log entry: into the other place, with the next sequence number."""
    data = bytearray(header.data)
    data[8:16] = (header.sequence + 1).to_bytes(8, "little")
    data[48:64] = guid
    os.pwrite(image, add_checksum(data), HEADERS_AT[1 - header.place])


def add_checksum(data: bytearray) -> bytes:
    data[4:8] = bytes(4)
    data[4:8] = crc32c(bytes(data)).to_bytes(4, "little")
    return bytes(data)


def build_entry(guid: bytes, length: int = 8192) -> bytearray:
    entry = bytearray(length)
    entry[:4] = b"loge"
    entry[8:12] = length.to_bytes(4, "little")
    entry[32:48] = guid
    return bytearray(add_checksum(entry))


def write_by_qemu(image: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["qemu-io", "-f", "vhdx", "-c", "write -P 7 0 1M", f"/proc/{os.getpid()}/fd/{image}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value


def test_a_sound_image_is_left_alone(image: int) -> None:
    before = os.pread(image, 1 << 20, 0)
    assert not clear_stale_log(image)
    assert os.pread(image, 1 << 20, 0) == before


def test_an_announced_and_empty_log_is_cleared(image: int) -> None:
    write_header(image, read_header(image), GUID)
    assert read_header(image).log_guid == GUID
    assert "Operation not supported" in write_by_qemu(image).stdout  # what QEMU makes of it
    sequence = read_header(image).sequence
    assert clear_stale_log(image)
    header = read_header(image)
    assert (header.log_guid, header.sequence) == (bytes(16), sequence + 1)
    assert write_by_qemu(image).returncode == 0
    assert not clear_stale_log(image)


def test_a_log_with_a_valid_entry_is_left_to_qemu(image: int) -> None:
    header = read_header(image)
    write_header(image, header, GUID)
    os.pwrite(image, build_entry(GUID), header.log_at + 4096)
    assert not clear_stale_log(image)
    assert read_header(image).log_guid == GUID


def test_entries_that_do_not_count() -> None:
    entry = build_entry(GUID)
    torn = entry[:-1] + b"x"
    long = build_entry(GUID, 8192)
    long[8:12] = (1 << 30).to_bytes(4, "little")
    assert has_valid_entry(bytes(4096) + entry, GUID)
    assert has_valid_entry(
        bytes(entry[4096:] + bytes(4096) + entry[:4096]), GUID
    )  # around the end of the ring
    assert not has_valid_entry(bytes(4096) + torn, GUID)
    assert not has_valid_entry(bytes(4096) + entry, b"another guid ...")
    assert not has_valid_entry(bytes(long), GUID)
    assert not has_valid_entry(b"", GUID)


def test_what_is_no_vhdx_is_left_alone(tmp_path: Path) -> None:
    for content in (b"", bytes(1 << 20), b"head" * (1 << 18)):
        path = tmp_path / "image"
        path.write_bytes(content)
        assert not mend_image(str(path))
        assert path.read_bytes() == content


def test_a_log_beyond_all_bounds_is_left_alone(image: int) -> None:
    header = read_header(image)
    data = bytearray(header.data)
    data[48:64] = GUID
    data[8:16] = (header.sequence + 1).to_bytes(8, "little")
    data[72:80] = ((1 << 64) - 4096).to_bytes(8, "little")
    os.pwrite(image, add_checksum(data), HEADERS_AT[1 - header.place])
    assert not clear_stale_log(image)


def test_an_image_in_use_is_not_touched(image: int, tmp_path: Path) -> None:
    write_header(image, read_header(image), GUID)
    lock_disk(image, "image", read_only=False)
    with pytest.raises(DiskLockedError):
        mend_image(str(tmp_path / "image.vhdx"))
    assert read_header(image).log_guid == GUID
