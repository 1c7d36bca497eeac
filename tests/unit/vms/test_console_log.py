"""The console log: the latest output, never more than its bound."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from duovisor.controlling.console_log import ConsoleLog, older, read_console_log, remove_console_log

if TYPE_CHECKING:
    from pathlib import Path


def test_the_latest_is_kept_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = b"".join(b"%07d\n" % number for number in range(1000))
    for half in (text[:4000], text[4000:]):
        with path.open("ab", buffering=0) as vmm:
            log = ConsoleLog(path, file_bytes=1024)
            for start in range(0, len(half), 100):
                log.count(vmm.write(half[start : start + 100]))
                assert path.stat().st_size < 1024
    kept = read_console_log(path, 1 << 20)
    assert text.endswith(kept)
    assert 1024 <= len(kept) < 2048
    assert stat.S_IMODE(older(path).stat().st_mode) == 0o600
    assert path.stat().st_size + older(path).stat().st_size == len(kept)
    assert read_console_log(path, 10) == text[-10:]
    remove_console_log(path)
    remove_console_log(path)
    assert read_console_log(path, 10) == b""


def test_what_was_not_counted_is_bounded_too(tmp_path: Path) -> None:
    """A log that grew while no service was there, and one of which more is printed than passes."""
    path = tmp_path / "log"
    text = b"".join(b"%07d\n" % number for number in range(1000))
    path.write_bytes(text[:4000])
    log = ConsoleLog(path, file_bytes=1024)
    assert (path.read_bytes(), older(path).read_bytes()) == (b"", text[2976:4000])
    path.write_bytes(text[4000:])
    log.count(1024)
    assert (path.read_bytes(), older(path).read_bytes()) == (b"", text[-1024:])


def test_a_full_disk_takes_nothing_from_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    older(path).symlink_to("/dev/full")
    path.write_bytes(b"x" * 1500)
    log = ConsoleLog(path, file_bytes=1024)
    log.count(1023)
    assert path.stat().st_size == 1500
    older(path).unlink()
    log.count(1)  # tried again when as much was printed
    assert (path.stat().st_size, older(path).stat().st_size) == (0, 1024)


def test_a_log_that_somebody_removed_is_no_error(tmp_path: Path) -> None:
    ConsoleLog(tmp_path / "log", file_bytes=1).count(1)
    assert not list(tmp_path.iterdir())
