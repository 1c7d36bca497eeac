"""``kill -9`` in the middle of writing: what was acknowledged is there, and nothing is half there."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from duovisor.controlling.store.sqlite import open_sqlite_store

if TYPE_CHECKING:
    from pathlib import Path

KILLS = 10
SEED = 20_240_607

# Eight clients share group commits; little history is kept, so that compactions are killed as well.
WRITER = """
import asyncio, itertools, os, sys
from pathlib import Path
from duovisor.controlling.store.records import Delete, Put, Transaction
from duovisor.controlling.store.sqlite import open_sqlite_store

async def client(store, numbers):
    for number in numbers:
        name = f"{number:09d}"
        await store.commit(Transaction(then=(
            Put(f"/a/{name}", name.encode()), Put("/last", name.encode()),
            Put(f"/b/{name}", name.encode() * 100), Delete(f"/a/{number - 1000:09d}"),
            Delete(f"/b/{number - 1000:09d}"),
        )))
        os.write(1, f"{name}\\n".encode())

async def main():
    async with open_sqlite_store(Path(sys.argv[1]), kept_revisions=20) as store:
        os.write(1, b"ready\\n")
        numbers = itertools.count(int(sys.argv[2]))
        await asyncio.gather(*(client(store, numbers) for _ in range(8)))

asyncio.run(main())
"""


def _write_until_killed(path: Path, first: int, delay_s: float) -> list[str]:
    """What a writer had acknowledged when it was killed ``delay_s`` seconds after it had begun."""
    argv = [sys.executable, "-c", WRITER, str(path), str(first)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        said = _read_for(writer.stdout.fileno(), delay_s)
        writer.kill()
        said += writer.stdout.read()
    assert writer.returncode == -9
    return said.decode().split()


def _read_for(fd: int, duration_s: float) -> bytes:
    """Keep a pipe from filling up for a while; what came through it."""
    said = b""
    end_s = time.monotonic() + duration_s
    while (left_s := end_s - time.monotonic()) > 0:
        if select.select([fd], [], [], left_s)[0]:
            said += os.read(fd, 65536)
    return said


async def test_acknowledged_transactions_survive_kill_and_none_is_half_there(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    chance = random.Random(SEED)
    first, acknowledged_in_all = 1, 0
    for _ in range(KILLS):
        acknowledged = _write_until_killed(path, first, chance.uniform(0.0, 0.3))
        acknowledged_in_all += len(acknowledged)
        async with open_sqlite_store(path) as store:
            a = {e.key[3:]: e for e in (await store.range("/a/", limit=10_000)).entries}
            b = {e.key[3:]: e for e in (await store.range("/b/", limit=10_000)).entries}
            last = await store.get("/last")
        newest = max(map(int, acknowledged), default=0)
        assert {name for name in acknowledged if int(name) > newest - 900} <= a.keys()
        assert {name: e.mod_revision for name, e in a.items()} == {n: e.mod_revision for n, e in b.items()}
        assert all(e.value == name.encode() * 100 for name, e in b.items())
        if a:
            final = max(a.values(), key=lambda e: e.mod_revision)
            assert last is not None
            assert (last.value, last.mod_revision) == (final.value, final.mod_revision)
        first = 1 + max(map(int, a), default=0)
    assert acknowledged_in_all > KILLS
