"""Fixtures of driver partitions: a factory of this test's own, and an attack as each kind of owner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from tests.contract.driver_partition.served_disk import ServedDisk

import duovisor
from duovisor.controlling.partitions.factory import PartitionFactory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SOURCE = str(Path(duovisor.__file__).parent.parent)
OWNER = Path(__file__).parent / "attacked_owner.py"
STRANGER = 54321
LOOK = "import sys; open(sys.argv[1]); sys.exit(sys.version_info < (3, 11))"
ROOT = os.geteuid() == 0


@pytest_asyncio.fixture
async def factory(folder: Path) -> AsyncIterator[PartitionFactory]:
    """A factory that ends its partitions with the test, and has said nothing."""
    made = await PartitionFactory.start(log=folder / "factory.log", end_with_owner=True)
    yield made
    await made.close()
    assert (folder / "factory.log").read_text() == ""


@pytest.fixture(scope="session", params=["root-forked", "root-waited", "stranger-forked", "stranger-waited"])
def attack(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, Any], bool]]:
    """What an attacking partition looked like and what came of it; whether its owner was root."""
    owner, _, how = request.param.partition("-")
    as_root = owner == "root"
    if as_root and not ROOT:
        pytest.skip("needs root")
    user = STRANGER if ROOT and not as_root else None
    python = find_python(user)
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o777)
        victim = path / "victim"
        victim.write_text("as it was")
        victim.chmod(0o666)
        done = run_python(python, user, str(OWNER), name, str(victim), how)
        assert done.returncode == 0, done.stderr
        assert victim.read_text() == "as it was"
        yield json.loads(done.stdout), as_root


def find_python(user: int | None) -> str:
    """A Python that the user can start: ours may lie in root's home."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            if run_python(python, user, "-c", LOOK, str(OWNER)).returncode == 0:
                return python
        except OSError:
            pass  # not there, or not for this user
    pytest.skip("there is no Python 3.11 that another user could start, or these files are closed to others")


def run_python(python: str, user: int | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments], user=user, group=user, extra_groups=None if user is None else [],
        env={"PYTHONPATH": SOURCE, "PATH": os.defpath}, cwd="/", capture_output=True, text=True,
        check=False, timeout=180,
    )  # fmt: skip


@pytest.fixture
def disk(factory: PartitionFactory, folder: Path) -> Iterator[ServedDisk]:
    """A disk of 4 MiB of random content, to be served."""
    made = ServedDisk(factory, folder)
    yield made
    made.release()
