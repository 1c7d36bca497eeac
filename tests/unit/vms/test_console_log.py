"""The console log: the latest output, never more than its bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.console_log import ConsoleLog, older, read_console_log, remove_console_log

if TYPE_CHECKING:
    from pathlib import Path


def test_the_latest_is_kept_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = b"".join(b"%07d\n" % number for number in range(1000))
    for half in (text[:4000], text[4000:]):
        log = ConsoleLog(path, file_bytes=1024)
        for start in range(0, len(half), 100):
            log.write(half[start : start + 100])
        log.close()
    kept = read_console_log(path, 1 << 20)
    assert text.endswith(kept)
    assert 1024 <= len(kept) <= 2048
    assert path.stat().st_size + older(path).stat().st_size == len(kept)
    assert read_console_log(path, 10) == text[-10:]
    remove_console_log(path)
    remove_console_log(path)
    assert read_console_log(path, 10) == b""


def test_a_full_disk_does_not_hold_up_the_guest(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    log = ConsoleLog(tmp_path / "log")
    log.write(b"lost")
    log.close()
