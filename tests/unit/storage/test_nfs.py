"""A pool on NFS is used while it is mounted and its server answers; when not, nothing else suffers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from tests.unit.storage.conftest import MIB, Host, ref, refuse_online
from tests.unit.storage.served_folder import ServedFolder, served

from duovisor.controlling.storage.answers import Answers
from duovisor.controlling.storage.errors import PoolRefusedError, PoolUnavailableError
from duovisor.controlling.storage.mounts import find_mount, parse_mounts
from duovisor.controlling.storage.nfs import check_mount
from duovisor.controlling.storage.records import PoolKind, VolumeFormat, VolumeState
from duovisor.controlling.storage.space_watch import AWAY, BACK, SpaceWatch
from duovisor.controlling.storage.views import get_pool, list_pools, list_volumes

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.storage.storage import Storage

__all__ = ["served"]

MOUNTINFO = r"""
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 21 0:40 / /srv/a\040b rw,relatime shared:9 master:2 - nfs4 nas:/vms rw,vers=4.2,hard,proto=tcp
31 21 0:41 / /srv/soft rw,relatime - nfs nas:/vms rw,vers=3,soft,proto=tcp
32 30 0:42 / /srv/a\040b/covered rw - tmpfs tmpfs rw
nonsense
"""


@pytest.mark.parametrize(
    ("path", "point", "is_nfs"),
    [
        ("/srv/a b", "/srv/a b", True),
        ("/srv/a b/pool", "/srv/a b", True),
        ("/srv/a b/covered/pool", "/srv/a b/covered", False),
        ("/srv/a bc", "/", False),
        ("/srv/soft", "/srv/soft", True),
    ],
)
def test_what_a_path_lies_on(path: str, point: str, is_nfs: bool) -> None:
    mount = find_mount(path, MOUNTINFO)
    assert mount is not None
    assert (mount.point, mount.is_nfs) == (point, is_nfs)


def test_a_mount_that_lies_over_another() -> None:
    over = "33 30 0:43 / /srv/a\\040b rw - ext4 /dev/vdb rw\n"
    mount = find_mount("/srv/a b/pool", MOUNTINFO + over)
    assert mount is not None
    assert (mount.number, mount.type) == (33, "ext4")
    assert find_mount("/srv", "") is None


def test_only_nfs_that_is_mounted_hard() -> None:
    mounts = {mount.point: mount for mount in parse_mounts(MOUNTINFO)}
    check_mount("/srv/a b", mounts["/srv/a b"])
    for point, said in (("/", "not on NFS but on ext4"), ("/srv/soft", "is mounted soft")):
        with pytest.raises(PoolRefusedError, match=said):
            check_mount(point, mounts[point])
    with pytest.raises(PoolRefusedError, match="not on NFS"):
        check_mount("/srv", None)


async def test_no_answer_is_waited_for_once() -> None:
    """Who asks meanwhile starts no second thread, and the first one's answer ends it."""
    answers, server, asked = Answers(timeout_s=0.1), threading.Event(), []

    def question() -> int:
        asked.append(threading.current_thread().name)
        server.wait()
        return 7

    for _ in range(3):
        with pytest.raises(PoolUnavailableError, match="pool far does not answer"):
            await answers.ask("pool far", question)
    assert asked == ["pool far"]
    assert await answers.ask("pool near", lambda: 8) == 8
    server.set()
    patient = Answers(timeout_s=60)
    assert await patient.ask("pool far", question) == 7

    def fail() -> None:
        raise OSError("Stale file handle")

    with pytest.raises(OSError, match="Stale"):
        await patient.ask("pool far", fail)


async def test_a_folder_that_is_not_on_nfs_is_refused(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(PoolRefusedError, match="is not on NFS"):
        await storage.pools.create("far", str(tmp_path / "far"), PoolKind.NFS)
    assert not (tmp_path / "far").exists()
    assert await list_pools(storage) == ()


async def test_a_folder_on_nfs_is_a_pool_of_that_kind(storage: Storage, served: ServedFolder) -> None:
    served.mount()
    with pytest.raises(PoolRefusedError, match="is on NFS") as caught:
        await storage.pools.create("far", str(served.path))
    assert "--kind nfs" in caught.value.remedy


async def test_a_server_that_tells_users_apart_is_refused(storage: Storage, served: ServedFolder) -> None:
    """qemu-img and qemu-storage-daemon are users of their own, which could read nothing there."""
    served.mount("--perms=u+rwX")
    with pytest.raises(PoolRefusedError, match="to no other user") as caught:
        await storage.pools.create("far", str(served.path), PoolKind.NFS)
    assert "all_squash" in caught.value.remedy
    assert list(served.behind.iterdir()) == []


async def test_what_is_not_mounted_is_not_written_to(storage: Storage, served: ServedFolder) -> None:
    served.mount()
    await storage.pools.create("far", str(served.path), PoolKind.NFS)
    await storage.create(ref("far/a"), 2 * MIB, VolumeFormat.QCOW2)
    await storage.clone(ref("far/a"), ref("far/b"), linked=True)
    await storage.clone(ref("far/b"), ref("far/c"), linked=False, volume_format=VolumeFormat.RAW)
    await storage.resize(ref("far/b"), 4 * MIB, refuse_online)
    files = sorted(path.name for path in served.behind.iterdir())
    assert files == ["a.qcow2", "b.qcow2", "c.raw"]
    served.unmount()
    for change in (
        storage.create(ref("far/d"), MIB, VolumeFormat.RAW),
        storage.delete(ref("far/c")),
        storage.resize(ref("far/b"), 8 * MIB, refuse_online),
    ):
        with pytest.raises(PoolUnavailableError, match="is not mounted"):
            await change
    assert list(served.path.iterdir()) == []
    assert "is not mounted" in (await get_pool(storage, "far")).problem
    page = await list_volumes(storage, "far", 100, None)
    assert {view.state for view in page.items} == {VolumeState.MISSING}
    served.mount()
    assert (await get_pool(storage, "far")).problem == ""
    assert sorted(path.name for path in served.behind.iterdir()) == files
    for name in ("c", "b", "a"):
        await storage.delete(ref(f"far/{name}"))
    # FUSE lets go of a file that was open in its own time
    assert [path for path in served.behind.iterdir() if not path.name.startswith(".fuse_hidden")] == []


async def test_a_server_that_is_away_holds_up_nobody(
    host: Host, storage: Storage, served: ServedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.mount()
    await storage.pools.create("far", str(served.path), PoolKind.NFS)
    await storage.create(ref("far/a"), MIB, VolumeFormat.RAW)
    told: list[tuple[str, str]] = []
    watch = SpaceWatch(storage.pools, lambda action, pool, _: told.append((action, pool)))
    with served.away(), monkeypatch.context() as patch:
        patch.setattr(storage.pools.answers, "_timeout_s", 0.2)
        for _ in range(20):  # more than there are threads for everybody
            with pytest.raises(PoolUnavailableError, match="does not answer"):
                await storage.create(ref("far/b"), MIB, VolumeFormat.RAW)
        assert "does not answer" in (await get_pool(storage, "far")).problem
        (view,) = (await list_volumes(storage, None, 100, None)).items
        assert view.state is VolumeState.MISSING
        await watch.look()
        await watch.look()
        assert (await storage.recover()).problems != ()
        await storage.create(ref("near"), MIB, VolumeFormat.RAW)
    assert (await get_pool(storage, "far")).problem == ""
    await watch.look()
    far = [action for action, pool in told if pool == "far"]
    assert far[:2] == [AWAY, BACK]
    await storage.create(ref("far/b"), MIB, VolumeFormat.RAW)
    assert sorted(path.name for path in served.behind.iterdir()) == ["a.raw", "b.raw"]
    assert host.files == ["near.raw"]
