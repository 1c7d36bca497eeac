"""Opening a store's file: what is refused, with which error, and that refusing changes nothing."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.store.errors import (
    StoreCorruptError,
    StoreFormatError,
    StoreInUseError,
    StoreIoError,
)
from duovisor.controlling.store.sqlite import open_sqlite_store
from duovisor.controlling.store.sqlite_file import FORMAT_VERSION, open_store_file
from duovisor.controlling.store.sqlite_lock import lock_path_of

if TYPE_CHECKING:
    from pathlib import Path


async def _make(path: Path, *, entries: int = 1) -> None:
    async with open_sqlite_store(path) as store:
        for number in range(entries):
            await store.put(f"/{number:04d}", b"x" * 500)


async def test_what_was_written_is_there_when_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "store.sqlite"
    async with open_sqlite_store(path) as store:
        written = await store.put("/a", b"1")
        await store.put("/b", b"1")
        await store.delete("/b")
        revision = await store.revision()
    async with open_sqlite_store(path) as store:
        assert await store.get("/a") == written
        assert await store.get("/b") is None
        assert await store.revision() == revision
        assert (await store.put("/a", b"2")).mod_revision == revision + 1


async def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "store.sqlite"
    async with open_sqlite_store(path) as store:
        await store.put("/tokens/a", b"hash")
        modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ["store.sqlite", "store.sqlite-wal", "store.sqlite-shm", "store.sqlite.lock"], 0o600
    )
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    file = open_store_file(tmp_path / "store.sqlite")
    assert file.writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert file.writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    file.close()


def test_a_second_opener_is_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    file = open_store_file(path)
    with pytest.raises(StoreInUseError, match=f"in use by process {os.getpid()} "):
        open_store_file(path)
    file.writer.execute("UPDATE meta SET value = 7 WHERE name = 'revision'")  # the first is not disturbed
    file.close()
    open_store_file(path).close()


def _hold(path: Path, opened: multiprocessing.synchronize.Event) -> None:
    open_store_file(path)
    opened.set()
    multiprocessing.Event().wait()


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    context = multiprocessing.get_context("spawn")
    opened = context.Event()
    holder = context.Process(target=_hold, args=(path, opened))
    holder.start()
    try:
        assert opened.wait(30)
        with pytest.raises(StoreInUseError, match=f"in use by process {holder.pid} "):
            open_store_file(path)
    finally:
        holder.kill()
        holder.join()
    open_store_file(path).close()


async def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"This is my diary, not a database.\n" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreFormatError, match="is not a duovisor store"):
        open_store_file(path)
    assert path.read_bytes() == before


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE diary (day)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreFormatError, match="database of another program"):
        open_store_file(path)
    assert path.read_bytes() == before


async def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await _make(path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreFormatError, match=f"has format {FORMAT_VERSION + 1}; this duovisor knows up to"):
        open_store_file(path)
    assert path.read_bytes() == before


async def test_a_damaged_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await _make(path, entries=200)
    damaged = bytearray(path.read_bytes())
    damaged[4096 * 2 : 4096 * 8] = os.urandom(4096 * 6)
    path.write_bytes(damaged)
    with pytest.raises(StoreCorruptError, match="is damaged") as raised:
        open_store_file(path)
    assert raised.value.code == "store-corrupt"
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("length", [50, 4096, 10_000, 4096 * 10])
async def test_a_file_cut_short_is_refused_and_kept(tmp_path: Path, length: int) -> None:
    path = tmp_path / "store.sqlite"
    await _make(path, entries=200)
    cut = path.read_bytes()[:length]
    path.write_bytes(cut)
    with pytest.raises((StoreCorruptError, StoreFormatError)):
        open_store_file(path)
    assert path.read_bytes() == cut


async def test_damage_under_an_open_store_is_told(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await _make(path, entries=2000)
    async with open_sqlite_store(path) as store:
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(path.stat().st_size - 4096))
        with pytest.raises(StoreCorruptError):
            await store.range("/", limit=2000)


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.touch()
    open_store_file(path).close()
    assert path.stat().st_size > 0


def test_a_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.mkdir()
    with pytest.raises(StoreIoError):
        open_store_file(path)


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StoreIoError, match="cannot open"):
        open_store_file(tmp_path / "state" / "store.sqlite")


def test_a_refused_file_is_not_left_locked(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"not a database" * 100)
    for _ in range(2):
        with pytest.raises(StoreFormatError):
            open_store_file(path)
    path.unlink()
    open_store_file(path).close()
    assert lock_path_of(path).exists()
