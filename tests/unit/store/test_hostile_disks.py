"""A full or read-only file system below the store; a user namespace lets anybody mount a small one."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from duovisor.controlling.store.errors import StoreFullError
from duovisor.controlling.store.sqlite import open_sqlite_store
from duovisor.controlling.store.sqlite_file import open_store_file

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.store.interface import Store

NAMESPACE = ("unshare", "--map-root-user", "--mount", "--")

# What the child does is told to the test as one line of JSON.
FULL_DISK = """
import asyncio, json, sys
from pathlib import Path
from duovisor.controlling.store.errors import StoreFullError
from duovisor.controlling.store.sqlite import open_sqlite_store

async def main(folder):
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(256 * 1024))
    async with open_sqlite_store(folder / "store.sqlite") as store:
        written, error = 0, None
        while error is None:
            try:
                await store.put(f"/{written:04d}", b"x" * 20000)
                written += 1
            except StoreFullError as full:
                error = full
        revision, page = await store.revision(), await store.range("/")
        together = await asyncio.gather(
            store.put("/big", b"x" * 200000), store.delete("/absent"), return_exceptions=True
        )
        ballast.unlink()
        after = await store.put("/after", b"x" * 20000)
    async with open_sqlite_store(folder / "store.sqlite") as store:
        reopened = await store.range("/")
    print(json.dumps({
        "written": written, "code": error.code, "remedy": error.remedy, "revision": revision,
        "keys": len(page.entries), "together": [type(item).__name__ for item in together],
        "after": after.mod_revision, "reopened": len(reopened.entries),
    }))

asyncio.run(main(Path(sys.argv[1])))
"""

READ_ONLY = """
import asyncio, json, subprocess, sys
from pathlib import Path
from duovisor.controlling.store.errors import StoreError
from duovisor.controlling.store.sqlite import open_sqlite_store

async def main(folder):
    async with open_sqlite_store(folder / "store.sqlite") as store:
        await store.put("/a", b"1")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    for name in ("store.sqlite", "new.sqlite", "new/store.sqlite"):
        try:
            async with open_sqlite_store(folder / name):
                print(json.dumps("opened"))
        except StoreError as error:
            print(json.dumps(error.code))

asyncio.run(main(Path(sys.argv[1])))
"""


def _run_on_tmpfs(folder: Path, script: str, *, size: str) -> list[Any]:
    """Run a script with a tmpfs on ``folder``; what it printed."""
    allowed = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip("this user may not make a mount namespace")
    shell = 'mount -t tmpfs -o size="$1" tmpfs "$2" && exec "$3" -c "$4" "$2"'
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", shell, "sh", size, folder, sys.executable, script],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_full_disk_refuses_writes_and_harms_nothing(tmp_path: Path) -> None:
    (seen,) = _run_on_tmpfs(tmp_path, FULL_DISK, size="1m")
    assert seen["written"] > 0
    assert seen["code"] == "store-full"
    assert "free some space" in seen["remedy"]
    assert seen["keys"] == seen["written"]
    assert seen["together"] == ["StoreFullError", "NoneType"]  # one that does not fit, beside one that does
    assert seen["after"] == seen["revision"] + 1
    assert seen["reopened"] == seen["written"] + 1


def test_a_read_only_file_system_is_told_when_opening(tmp_path: Path) -> None:
    assert _run_on_tmpfs(tmp_path, READ_ONLY, size="1m") == ["store-read-only"] * 3


def test_a_read_only_file_is_told_when_opening(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    open_store_file(path).close()
    path.chmod(0o400)
    before = path.read_bytes()
    opener = (
        "import sys; from pathlib import Path\n"
        "from duovisor.controlling.store.errors import StoreReadOnlyError\n"
        "from duovisor.controlling.store.sqlite_file import open_store_file\n"
        "try: open_store_file(Path(sys.argv[1]))\n"
        "except StoreReadOnlyError as error: print(error.code)\n"
    )
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*powerless, sys.executable, "-c", opener, path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "store-read-only\n"
    assert path.read_bytes() == before


async def _put_without_end(store: Store) -> None:
    for number in itertools.count():
        await store.put("/a", b"%d" % number + b"x" * 20_000)


async def test_the_quota_refuses_writes_until_history_is_forgotten(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "store.sqlite", quota_mib=1) as store:
        with pytest.raises(StoreFullError):
            await _put_without_end(store)
        before = await store.get("/a")
        assert before is not None
        assert before.mod_revision == await store.revision()
        await store.compact(await store.revision())
        after = await store.put("/a", b"y" * 20_000)
        assert after.mod_revision == before.mod_revision + 1
    assert (tmp_path / "store.sqlite").stat().st_size <= 1024 * 1024
