"""Volumes in an LVM thin pool, over LVM's words as Debian 12 has them; docs/storage.md says what was real."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.unit.storage.conftest import MIB, Host, ref, refuse_online
from tests.unit.storage.fake_lvm import GROUP, POOL, POOL_BYTES, POOL_ROW, THIN_ROW, FakeLvm

from duovisor import process
from duovisor.controlling.disk_lock import lock_disk
from duovisor.controlling.errors import HostLacksError
from duovisor.controlling.storage import lvm, thin_pool
from duovisor.controlling.storage.backend import HALF, UPLOAD
from duovisor.controlling.storage.documents import VolumeIntent
from duovisor.controlling.storage.errors import (
    PoolFullError,
    PoolRefusedError,
    PoolUnavailableError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeRefusedError,
)
from duovisor.controlling.storage.lending import Lender
from duovisor.controlling.storage.records import ImageFormat, PoolKind, VolumeFormat, VolumeState
from duovisor.controlling.storage.space_watch import AWAY, BACK, LOW, ROOM, SpaceWatch
from duovisor.controlling.storage.thin_pool import ThinPool
from duovisor.controlling.storage.uploads import Upload
from duovisor.controlling.storage.views import get_pool, list_volumes
from duovisor.process import ProgramFailedError
from duovisor.spec.vm import VirtualMachineSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from duovisor.controlling.storage.storage import Storage
    from duovisor.controlling.vms.volumes import Grow

PATH = f"/dev/{GROUP}/{POOL}"
CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLvm:
    fake = FakeLvm(tmp_path / "lvm")
    fake.install(monkeypatch)
    return fake


@pytest.fixture
async def thin(host: Host, fake: FakeLvm) -> AsyncIterator[Storage]:
    """A storage with the pool ``thin``, in which nothing half made may be left."""
    await host.storage.pools.create("thin", PATH, PoolKind.LVM_THIN)
    yield host.storage
    assert [name for name in fake.names if name.startswith(".")] == []
    assert fake.rows["others"] == THIN_ROW  # whatever was done


def test_what_lvm_prints() -> None:
    report = json.dumps({"report": [{"lv": [POOL_ROW, {**THIN_ROW, "lv_tags": "a,duovisor"}]}]})
    found = lvm.parse_report(report)
    pool, volume = found[POOL], found["others"]
    assert (pool.type, pool.size_bytes, pool.data_percent, pool.metadata_percent) == (
        "thin-pool", POOL_BYTES, 0.0, 10.94,
    )  # fmt: skip
    assert (pool.fails_when_full, pool.zeroes, pool.is_active) == (False, True, True)
    assert (volume.pool, volume.tags, volume.metadata_percent) == (
        POOL,
        frozenset({"a", "duovisor"}),
        None,
    )


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ('Logical Volume "others" already exists in volume group "vg-0"', VolumeExistsError),
        ("Logical volume vg-0/snap in use.", VolumeInUseError),
        ('Volume group "vg-0" has insufficient free space (1 extents): 5 required.', PoolFullError),
        ("/dev/mapper/control: open failed: No such device", PoolUnavailableError),
    ],
)
def test_what_lvm_says(said: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ProgramFailedError(["lvm"], 5, said)

    monkeypatch.setattr(lvm, "find_program", lambda: "lvm")
    monkeypatch.setattr(process, "run", fail)
    with pytest.raises(error, match=said.split()[0]):
        lvm.run("lvcreate")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("web.raw", None), (".duovisor-half-1", None), ("a_tmeta.raw", "_tmeta"), ("snapshot1.raw", "itself"),
        ("x" * 63 + "-" * 60 + ".raw", "127"),
    ],
)  # fmt: skip
def test_names_that_lvm_does_not_take(name: str, problem: str | None) -> None:
    found = lvm.find_name_problem(GROUP, name)
    assert found is None if problem is None else problem in (found or "")


async def test_a_pool_is_a_thin_pool_that_is_there(storage: Storage, fake: FakeLvm) -> None:
    for path, said in (
        ("/srv", "is no thin pool"),
        ("/dev/vg-0/a/b", "is no thin pool"),
        ("/dev/-f/x", "is no thin pool"),
        ("/dev/nope/thin", "not found"),
        ("/dev/vg-0/none", "no such logical volume"),
        ("/dev/vg-0/others", "of the type thin"),
    ):
        with pytest.raises(PoolRefusedError, match=said):
            await storage.pools.create("thin", path, PoolKind.LVM_THIN)
    fake.change(POOL, zero="")
    with pytest.raises(PoolRefusedError, match="what others held"):
        await storage.pools.create("thin", PATH, PoolKind.LVM_THIN)
    fake.change(POOL, zero="zero", lv_health_status="metadata_read_only")
    with pytest.raises(PoolRefusedError, match="metadata read only"):
        await storage.pools.create("thin", PATH, PoolKind.LVM_THIN)
    assert set(fake.asked) == {"lvs"}  # nothing was changed
    fake.change(POOL, lv_health_status="", lv_active="")
    made = await storage.pools.create("thin", f"{GROUP}/{POOL}", PoolKind.LVM_THIN)
    assert made.path == PATH
    assert fake.rows[POOL]["lv_active"] == "active"
    assert fake.rows[POOL]["lv_when_full"] == "error"
    with pytest.raises(PoolRefusedError, match="overlaps"):
        await storage.pools.create("again", PATH, PoolKind.LVM_THIN)


async def test_a_host_without_lvm(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lvm, "find_program", lambda: None)
    with pytest.raises(HostLacksError) as caught:
        await storage.pools.create("thin", PATH, PoolKind.LVM_THIN)
    assert "lvm2" in caught.value.remedy


async def test_a_volumes_life(host: Host, thin: Storage, fake: FakeLvm) -> None:
    await thin.create(ref("thin/a"), 5 * MIB, None)
    view = await host.view("thin/a")
    assert (view.format, view.size_bytes, view.state) == (VolumeFormat.RAW, 8 * MIB, VolumeState.READY)
    assert view.path == str(fake.folder / "a.raw")
    assert fake.rows["a.raw"]["lv_tags"] == "duovisor"
    (fake.folder / "a.raw").write_bytes(CONTENT.ljust(8 * MIB, b"\0"))
    await thin.resize(ref("thin/a"), 9 * MIB, refuse_online)
    assert (await host.view("thin/a")).size_bytes == 12 * MIB
    with pytest.raises(VolumeRefusedError, match="only become larger"):
        await thin.resize(ref("thin/a"), 12 * MIB, refuse_online)
    await thin.clone(ref("thin/a"), ref("thin/b"), linked=True)
    await thin.clone(ref("thin/a"), ref("thin/c"), linked=False)
    await thin.clone(ref("thin/a"), ref("d"), linked=False, volume_format=VolumeFormat.QCOW2)
    await thin.clone(ref("d"), ref("thin/e"), linked=False)
    for name in "bce":
        assert (fake.folder / f"{name}.raw").read_bytes() == (fake.folder / "a.raw").read_bytes(), name
        assert (await host.view(f"thin/{name}")).base is None
    async with Lender(thin).lend(
        VirtualMachineSpec.model_validate({"name": "web", "disks": [{"volume": "thin/a"}]})
    ) as found:  # though it was cloned
        assert found.disks[0].path == str(fake.folder / "a.raw")
    await thin.delete(ref("thin/a"))
    assert fake.names == ["b.raw", "c.raw", "e.raw"]
    await thin.delete_pool("thin", forget=True)
    assert fake.names == ["b.raw", "c.raw", "e.raw"]


async def test_what_cannot_be_there(thin: Storage, fake: FakeLvm) -> None:
    await thin.create(ref("thin/a"), MIB, VolumeFormat.RAW)
    await thin.create(ref("file"), MIB, VolumeFormat.RAW)
    fake.change("others", lv_name="b.raw")
    (fake.folder / "b.raw").touch()
    rows = fake.rows
    fake._write({**rows, "b.raw": THIN_ROW})
    for action, error, said in (
        (thin.create(ref("thin/q"), MIB, VolumeFormat.QCOW2), VolumeRefusedError, "not qcow2"),
        (thin.create(ref("thin/b"), MIB, None), VolumeExistsError, "already"),
        (thin.create(ref("thin/a_tmeta"), MIB, None), VolumeRefusedError, "_tmeta"),
        (thin.create(ref("thin/x"), 300 * MIB, None), PoolFullError, "free"),
        (thin.clone(ref("thin/a"), ref("x"), linked=True), VolumeRefusedError, "same pool"),
        (thin.clone(ref("file"), ref("thin/x"), linked=True), VolumeRefusedError, "not qcow2"),
        (
            thin.clone(ref("thin/a"), ref("thin/x"), linked=True, volume_format=VolumeFormat.QCOW2),
            VolumeRefusedError,
            "snapshot",
        ),
    ):
        with pytest.raises(error, match=said):
            await action
    assert fake.names == ["a.raw", "b.raw"]
    fake._write({**{name: row for name, row in fake.rows.items() if name != "b.raw"}, "others": THIN_ROW})


async def test_one_that_is_not_ours_stays(host: Host, thin: Storage, fake: FakeLvm) -> None:
    """Somebody put another in its place: it is missing, and its deletion touches nothing."""
    await thin.create(ref("thin/a"), MIB, None)
    fake.change("a.raw", lv_tags="")
    assert (await host.view("thin/a")).state is VolumeState.MISSING
    await thin.delete(ref("thin/a"))
    assert fake.names == ["a.raw"]
    assert "lvremove" not in fake.asked


async def test_one_that_is_open(thin: Storage, fake: FakeLvm) -> None:
    await thin.create(ref("thin/a"), MIB, None)
    grown: list[int] = []

    async def online(volume: str, grow_first: Grow) -> None:
        grown.append(await grow_first())

    async def refuse(volume: str, grow_first: Grow) -> None:
        raise VolumeInUseError("its driver serves the size that it began with")

    with (fake.folder / "a.raw").open("r+b") as file:
        lock_disk(file.fileno(), "a", read_only=False)
        for action in (thin.delete(ref("thin/a")), thin.clone(ref("thin/a"), ref("thin/b"), linked=True)):
            with pytest.raises(VolumeInUseError):
                await action
        with pytest.raises(VolumeInUseError, match="its driver"):
            await thin.resize(ref("thin/a"), 5 * MIB, refuse)
        assert fake.rows["a.raw"]["lv_size"] == str(4 * MIB)
        await thin.resize(ref("thin/a"), 5 * MIB, online)
    assert grown == [8 * MIB]  # what QEMU is told is what there is


async def test_it_is_activated_when_it_is_used(thin: Storage, fake: FakeLvm) -> None:
    await thin.create(ref("thin/a"), MIB, None)
    fake.change("a.raw", lv_active="", data_percent="")
    await list_volumes(thin, "thin", 10, None)
    assert fake.rows["a.raw"]["lv_active"] == ""
    await thin.compute_checksum(ref("thin/a"))
    assert fake.rows["a.raw"]["lv_active"] == "active"


async def test_uploads(host: Host, thin: Storage, fake: FakeLvm, tmp_path: Path) -> None:
    """A raw one is written where it stays; of another, what is behind its end is not read."""
    raw = tmp_path / "disk.raw"
    raw.write_bytes(CONTENT)
    for name, qemu, words in (
        ("vmdk", "vmdk", "subformat=streamOptimized"),
        ("vhd", "vpc", "subformat=fixed"),
    ):
        options = ("-f", "raw", "-O", qemu, "-o", words)
        await asyncio.to_thread(
            subprocess.check_call, ["qemu-img", "convert", "-q", *options, raw, tmp_path / name]
        )
        await host.upload(f"thin/{name}", (tmp_path / name).read_bytes())
        assert (fake.folder / f"{name}.raw").read_bytes().startswith(CONTENT), name
    await host.upload("thin/raw", CONTENT, Upload(read_only=True))
    assert (fake.folder / "raw.raw").read_bytes() == CONTENT  # a file, which was cut
    assert (await host.view("thin/raw")).read_only
    with pytest.raises(VolumeRefusedError, match="not qcow2"):
        await host.upload("thin/q", CONTENT, Upload(ImageFormat.RAW, VolumeFormat.QCOW2))
    assert fake.names == ["raw.raw", "vhd.raw", "vmdk.raw"]
    checksum: list[str] = []
    await thin.compute_checksum(ref("thin/raw"), lambda _, said: checksum.append(said))
    content = await thin.open_content(ref("thin/raw"))
    with content.files:
        assert (content.size_bytes, content.sha256) == (4 * MIB, None)  # nobody knows whether it changed
        assert os.pread(content.descriptor, 4, 0) == CONTENT[:4]
    assert checksum[-1].startswith("sha256 ")


async def test_what_was_interrupted(host: Host, thin: Storage, fake: FakeLvm) -> None:
    for name in "abc":
        await thin.create(ref(f"thin/{name}"), MIB, None)
    for name, intent in (("a", VolumeIntent.DELETE), ("b", VolumeIntent.RESIZE), ("c", VolumeIntent.CREATE)):
        volume = await thin.volumes.get(ref(f"thin/{name}"))
        await thin.volumes.write(volume.ref, volume.document.changed(intent=intent))
    fake.change("b.raw", lv_size=str(8 * MIB))
    for prefix in (HALF, UPLOAD):
        ThinPool("thin", PATH).make_half("1", MIB, prefix)
    fake._write(
        {**fake.rows, f"{HALF}2": {**THIN_ROW, "lv_name": f"{HALF}2"}}
    )  # somebody else's, oddly named
    report = await thin.recover()
    assert len(report.removed) == 2
    assert not report.problems
    assert fake.names == [f"{HALF}2", "b.raw", "c.raw"]
    assert (await host.view("thin/b")).size_bytes == 8 * MIB
    assert (await host.view("thin/c")).state is VolumeState.READY
    rows = fake.rows
    del rows[f"{HALF}2"]
    fake._write(rows)


async def test_it_is_watched(thin: Storage, fake: FakeLvm) -> None:
    """Metadata that runs out is as bad as data; a pool that is gone is told of once."""
    told: list[str] = []
    watch = SpaceWatch(thin.pools, lambda action, pool, _: told.append(action))
    for values in (
        {"data_percent": "95.00"},
        {"data_percent": "50.00"},
        {"metadata_percent": "91.00"},
        {"metadata_percent": "86.00"},
        {"metadata_percent": "80.00"},
        {"lv_health_status": "failed"},
        {"lv_health_status": "out_of_data"},
    ):
        fake.change(POOL, **values)
        await watch.look()
    assert told == [LOW, ROOM, LOW, ROOM, AWAY, BACK]
    view = await get_pool(thin, "thin")
    assert (view.capacity_bytes, view.free_bytes, view.free_metadata) == (POOL_BYTES, POOL_BYTES // 2, 0.2)


async def test_a_group_that_is_gone(
    host: Host, thin: Storage, fake: FakeLvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    await thin.create(ref("thin/a"), MIB, None)
    monkeypatch.setattr(lvm, "find_program", lambda: None)
    assert (await host.view("thin/a")).state is VolumeState.MISSING
    assert "LVM is not on this host" in (await get_pool(thin, "thin")).problem
    with pytest.raises(HostLacksError):
        await thin.delete(ref("thin/a"))
    monkeypatch.setattr(lvm, "find_program", lambda: "lvm")
    assert (await host.view("thin/a")).state is VolumeState.READY


def test_a_path_that_leads_to_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the device's number; its name has hyphens twice."""
    monkeypatch.setattr(thin_pool, "DEVICES_BY_NUMBER", tmp_path)
    (tmp_path / "1:3/dm").mkdir(parents=True)  # of /dev/null, which is no block device
    (tmp_path / "1:3/dm/name").write_text("vg--0-a--b.raw\n")
    pool = ThinPool("thin", PATH)
    assert pool.find_file("/dev/null") is None
    monkeypatch.setattr(stat, "S_ISBLK", lambda _: True)
    assert pool.find_file("/dev/null") == "a-b.raw"
    assert ThinPool("thin", "/dev/vg/thin").find_file("/dev/null") is None
    assert pool.find_file("/none") is None
