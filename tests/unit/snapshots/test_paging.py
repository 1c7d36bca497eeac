"""What is loaded of a saved memory, and what is said of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.drivers.control import Packet
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.pager import BLOCK_BYTES, find_blocks, parse_load, parse_pace
from duovisor.controlling.snapshots import paging
from duovisor.controlling.snapshots.paging import can_page, describe_loaded

if TYPE_CHECKING:
    from pathlib import Path


def test_blocks_with_content_are_found(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.touch()
    size = 10 * BLOCK_BYTES + 4096
    os.truncate(path, size)
    with path.open("r+b") as file:
        assert find_blocks(file.fileno(), size) == bytes(11)
        for start, length in ((2 * BLOCK_BYTES - 1, 2), (5 * BLOCK_BYTES, 3 * BLOCK_BYTES), (size - 1, 1)):
            file.seek(start)
            file.write(b"x" * length)
        file.flush()
        assert find_blocks(file.fileno(), size) == bytes([0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1])


def test_an_empty_memory_has_none(tmp_path: Path) -> None:
    with (tmp_path / "memory").open("w+b") as file:
        assert find_blocks(file.fileno(), 0) == b""


def test_what_is_said_of_it() -> None:
    report = {"total": 900 << 20, "there": 900 << 20, "faults": 12}
    assert describe_loaded(report, 20 << 20, 1.25) == (
        "900 MiB of memory loaded, 20 MiB of it before the guest ran; pages were waited for 12 times; 1.2 s"
    )
    assert describe_loaded({"total": "much", "faults": []}, None, 0.0) == "memory loaded; 0.0 s"


@pytest.mark.parametrize("pace", [-1, 3601, "1", None, True, float("nan")])
def test_a_pace_that_is_none(pace: object) -> None:
    with pytest.raises(DriverError, match="pace_s is"):
        parse_pace(Packet({"pace_s": pace}, []))


def test_an_order_without_what_it_needs() -> None:
    with pytest.raises(DriverError, match="missing: listener, memory, source, userfault, vmm"):
        parse_load(Packet({}, []))


def test_where_there_is_no_userfaultfd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "DEV_USERFAULTFD", tmp_path / "none")
    assert not can_page()
    (tmp_path / "none").touch()  # no such device
    before = len(os.listdir("/proc/self/fd"))
    assert not can_page()
    assert len(os.listdir("/proc/self/fd")) == before
