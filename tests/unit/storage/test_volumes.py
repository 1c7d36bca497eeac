"""Volumes: made, grown, cloned, deleted; each refusal changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import pytest
from tests.unit.storage.conftest import MIB, Host, ref, refuse_online
from tests.unit.storage.images import CONTENT, SIZE_BYTES, qemu_img, read_image

from duovisor.controlling.disk_lock import lock_disk
from duovisor.controlling.errors import DiskFileError
from duovisor.controlling.storage.errors import (
    PoolFullError,
    VolumeBrokenError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNotFoundError,
    VolumeRefusedError,
)
from duovisor.controlling.storage.lending import Lender
from duovisor.controlling.storage.records import VolumeFormat, VolumeState
from duovisor.controlling.storage.views import list_pools, list_volumes
from duovisor.controlling.vms.definitions import Definitions
from duovisor.controlling.vms.errors import BusyError
from duovisor.controlling.vms.records import Autostart
from duovisor.spec.vm import VirtualMachineSpec

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.storage.storage import Storage
    from duovisor.controlling.vms.volumes import Grow

both_formats = pytest.mark.parametrize("volume_format", VolumeFormat)


@both_formats
async def test_a_volume_is_made_grown_and_deleted(
    host: Host, storage: Storage, volume_format: VolumeFormat
) -> None:
    await storage.create(ref("a"), 8 * MIB, volume_format)
    view = await host.view("a")
    assert (view.state, view.size_bytes, view.format) == (VolumeState.READY, 8 * MIB, volume_format)
    assert host.files == [f"a.{volume_format}"]
    assert view.allocated_bytes is not None
    assert view.allocated_bytes < MIB
    await storage.resize(ref("a"), 16 * MIB, refuse_online)
    assert (await host.view("a")).size_bytes == 16 * MIB
    assert len(read_image(host.folder / f"a.{volume_format}", volume_format)) == 16 * MIB
    await storage.delete(ref("a"))
    assert host.files == []
    with pytest.raises(VolumeNotFoundError):
        await host.view("a")


async def test_the_default_pool_is_there_when_it_is_used(host: Host, storage: Storage) -> None:
    assert await list_pools(storage) == ()
    await storage.create(ref("a"), MIB, VolumeFormat.RAW)
    (pool,) = await list_pools(storage)
    assert (pool.name, pool.path, pool.volumes, pool.problem) == ("default", str(host.folder), 1, "")
    assert pool.free_bytes is not None


async def test_a_name_is_given_once(host: Host, storage: Storage) -> None:
    await storage.create(ref("a"), MIB, VolumeFormat.RAW)
    with pytest.raises(VolumeExistsError):
        await storage.create(ref("a"), MIB, VolumeFormat.QCOW2)
    (host.folder / "b.qcow2").write_text("of somebody else")
    with pytest.raises(VolumeExistsError, match="that is no volume"):
        await storage.create(ref("b"), MIB, VolumeFormat.RAW)
    assert host.files == ["a.raw", "b.qcow2"]


@pytest.mark.parametrize("size_bytes", [0, -512, 1000, 1 << 51])
async def test_a_size_that_no_disk_has(storage: Storage, size_bytes: int) -> None:
    with pytest.raises(VolumeRefusedError):
        await storage.create(ref("a"), size_bytes, VolumeFormat.RAW)


async def test_a_volume_that_is_larger_than_the_pool(host: Host, storage: Storage) -> None:
    with pytest.raises(PoolFullError):
        await storage.create(ref("a"), 1 << 50, VolumeFormat.RAW)
    assert host.files == []
    await storage.create(ref("a"), MIB, VolumeFormat.RAW)
    with pytest.raises(PoolFullError):
        await storage.resize(ref("a"), 1 << 50, refuse_online)
    assert (await host.view("a")).size_bytes == MIB


async def test_nothing_shrinks(storage: Storage) -> None:
    await storage.create(ref("a"), 2 * MIB, VolumeFormat.RAW)
    for size_bytes in (MIB, 2 * MIB):
        with pytest.raises(VolumeRefusedError, match="only become larger"):
            await storage.resize(ref("a"), size_bytes, refuse_online)


@both_formats
async def test_a_linked_clone_keeps_its_base_as_it_is(
    host: Host, storage: Storage, volume_format: VolumeFormat
) -> None:
    await storage.create(ref("base"), SIZE_BYTES, volume_format)
    await storage.clone(ref("base"), ref("a"), linked=True)
    await storage.clone(ref("a"), ref("b"), linked=True)
    assert (await host.view("base")).clones == ("default/a",)
    assert ((await host.view("b")).base, (await host.view("b")).format) == ("default/a", "qcow2")
    for action in (storage.delete(ref("a")), storage.resize(ref("base"), 8 * MIB, refuse_online)):
        with pytest.raises(VolumeInUseError, match="linked clones"):
            await action
    for name in ("b", "a", "base"):
        await storage.delete(ref(name))
    assert host.files == []


async def test_a_linked_clone_grows_and_its_base_does_not(host: Host, storage: Storage) -> None:
    await host.upload("base", CONTENT)
    await storage.clone(ref("base"), ref("a"), linked=True)
    await storage.resize(ref("a"), 2 * SIZE_BYTES, refuse_online)
    assert read_image(host.folder / "a.qcow2", "qcow2") == CONTENT + bytes(SIZE_BYTES)
    assert (host.folder / "base.raw").read_bytes() == CONTENT


async def test_a_full_clone_of_a_chain_stands_alone(host: Host, storage: Storage) -> None:
    await host.upload("base", CONTENT)
    await storage.clone(ref("base"), ref("linked"), linked=True)
    await storage.clone(ref("linked"), ref("full"), linked=False)
    await storage.clone(ref("linked"), ref("raw"), linked=False, volume_format=VolumeFormat.RAW)
    await storage.delete(ref("linked"))
    await storage.delete(ref("base"))
    assert read_image(host.folder / "full.qcow2", "qcow2") == CONTENT
    assert (host.folder / "raw.raw").read_bytes() == CONTENT
    assert "backing" not in qemu_img("info", host.folder / "full.qcow2")


async def test_a_clone_in_another_pool(host: Host, storage: Storage, tmp_path: Path) -> None:
    await host.upload("base", CONTENT)
    await storage.pools.create("other", str(tmp_path / "other"))
    await storage.clone(ref("base"), ref("other/a"), linked=True)
    assert read_image(tmp_path / "other/a.qcow2", "qcow2") == CONTENT
    with pytest.raises(VolumeInUseError):
        await storage.delete(ref("base"))


async def test_a_clone_of_itself(storage: Storage) -> None:
    await storage.create(ref("a"), MIB, VolumeFormat.QCOW2)
    with pytest.raises(BusyError):
        await storage.clone(ref("a"), ref("a"), linked=True)


async def test_clones_whose_files_form_a_cycle(host: Host, storage: Storage) -> None:
    await storage.create(ref("a"), MIB, VolumeFormat.QCOW2)
    await storage.clone(ref("a"), ref("b"), linked=True)
    qemu_img("rebase", "-u", "-F", "qcow2", "-b", "b.qcow2", host.folder / "a.qcow2")
    with pytest.raises(DiskFileError, match="comes back"):
        await storage.clone(ref("b"), ref("c"), linked=False)
    assert host.files == ["a.qcow2", "b.qcow2"]


async def test_a_header_that_was_made_to_name_a_file_of_the_host(host: Host, storage: Storage) -> None:
    await storage.create(ref("a"), MIB, VolumeFormat.QCOW2)
    qemu_img("rebase", "-u", "-F", "raw", "-b", "/etc/passwd", host.folder / "a.qcow2")
    with pytest.raises(VolumeBrokenError, match="/etc/passwd"):
        await storage.clone(ref("a"), ref("b"), linked=False)
    assert host.files == ["a.qcow2"]


async def test_a_file_that_became_a_link(host: Host, storage: Storage, tmp_path: Path) -> None:
    await storage.create(ref("a"), MIB, VolumeFormat.RAW)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(MIB))
    (host.folder / "a.raw").unlink()
    (host.folder / "a.raw").symlink_to(secret)
    assert (await host.view("a")).state is VolumeState.MISSING
    for action in (
        storage.open_content(ref("a")),
        storage.resize(ref("a"), 2 * MIB, refuse_online),
        storage.clone(ref("a"), ref("b"), linked=True),
    ):
        with pytest.raises(VolumeBrokenError, match="no plain file"):
            await action
    await storage.delete(ref("a"))
    assert secret.stat().st_size == MIB
    assert host.files == []


async def test_a_volume_that_a_vm_has_open(host: Host, storage: Storage) -> None:
    await storage.create(ref("a"), MIB, VolumeFormat.RAW)
    asked: list[tuple[str, int]] = []

    async def grow_online(volume: str, grow_first: Grow) -> None:
        asked.append((volume, await grow_first()))

    with (host.folder / "a.raw").open("r+b") as file:
        lock_disk(file.fileno(), "a", read_only=False)
        for action in (
            storage.delete(ref("a")),
            storage.clone(ref("a"), ref("b"), linked=True),
            storage.clone(ref("a"), ref("b"), linked=False),
            storage.compute_checksum(ref("a")),
        ):
            with pytest.raises(VolumeInUseError):
                await action
        await storage.resize(ref("a"), 2 * MIB, grow_online)
    assert asked == [("default/a", 2 * MIB)]
    assert (await host.view("a")).size_bytes == MIB  # what the file says
    assert host.files == ["a.raw"]


async def test_a_volume_in_a_cdrom_drive_is_found_and_kept(host: Host, storage: Storage) -> None:
    await storage.create(ref("iso"), MIB, VolumeFormat.RAW)
    await storage.create(ref("system"), MIB, VolumeFormat.QCOW2)
    spec = VirtualMachineSpec.model_validate({"name": "web", "cdroms": [{}, {"volume": "iso"}]})
    async with Lender(storage).lend(spec) as found:
        assert [each.path for each in found.cdroms] == ["", str(host.folder / "iso.raw")]
        assert found.without_places() == spec
        with pytest.raises(BusyError):
            await storage.delete(ref("iso"))
    await Definitions(host.store).create(spec, Autostart())
    with pytest.raises(VolumeInUseError):
        await storage.delete(ref("iso"))
    wrong = VirtualMachineSpec.model_validate({"name": "web", "cdroms": [{"volume": "system"}]})
    with pytest.raises(VolumeRefusedError, match="volume default/system is qcow2, not an ISO image"):
        async with Lender(storage).lend(wrong):
            pass


async def test_a_volume_that_a_definition_names(host: Host, storage: Storage) -> None:
    await storage.create(ref("a"), MIB, VolumeFormat.RAW)
    definitions = Definitions(host.store)
    by_name = VirtualMachineSpec.model_validate({"name": "web", "disks": [{"volume": "a"}]})
    await definitions.create(by_name, Autostart())
    with pytest.raises(VolumeInUseError, match="a disk of web"):
        await storage.delete(ref("a"))
    assert (await host.view("a")).vms == ("web",)
    await definitions.delete(await definitions.get("web"), None)
    by_path = VirtualMachineSpec.model_validate(
        {"name": "db", "disks": [{"path": str(host.folder / "a.raw")}]}
    )
    await definitions.create(by_path, Autostart())
    with pytest.raises(VolumeInUseError, match="a disk of db"):
        await storage.delete(ref("a"))


async def test_a_checksum_is_known_until_the_file_changes(host: Host, storage: Storage) -> None:
    await host.upload("a", CONTENT)
    assert await storage.compute_checksum(ref("a")) == hashlib.sha256(CONTENT).hexdigest()
    assert (await host.view("a")).sha256 == hashlib.sha256(CONTENT).hexdigest()
    (host.folder / "a.raw").write_bytes(bytes(SIZE_BYTES))
    assert (await host.view("a")).sha256 is None


async def test_a_cancelled_clone_leaves_nothing(host: Host, storage: Storage) -> None:
    await host.upload("a", CONTENT)
    reached = asyncio.Event()
    clone = asyncio.create_task(storage.clone(ref("a"), ref("b"), linked=False))

    async def watch() -> None:
        while not any(file.startswith(".") for file in host.files):
            await asyncio.sleep(0)
        reached.set()

    watching = asyncio.create_task(watch())
    await reached.wait()
    await watching
    clone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await clone
    assert host.files == ["a.raw"]
    with pytest.raises(VolumeNotFoundError):
        await host.view("b")


async def test_a_list_comes_in_pages(storage: Storage) -> None:
    for name in ("c", "a", "b"):
        await storage.create(ref(name), MIB, VolumeFormat.RAW)
    page = await list_volumes(storage, None, 2, None)
    assert ([view.name for view in page.items], page.after) == (["a", "b"], "default/b")
    page = await list_volumes(storage, "default", 2, page.after)
    assert ([view.name for view in page.items], page.after) == (["c"], None)
