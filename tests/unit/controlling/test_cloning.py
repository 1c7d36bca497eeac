"""VMs on clones: both the volumes and the VM, or neither, also after a kill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.unit.storage.conftest import MIB, Host, ref

from duovisor.controlling.cloning import KIND, PREFIX, CloneDocument, Cloner, plan_copy, plan_instance
from duovisor.controlling.storage.errors import (
    PoolNotFoundError,
    VolumeExistsError,
    VolumeRefusedError,
)
from duovisor.controlling.storage.records import VolumeFormat, VolumeRef
from duovisor.controlling.store.memory import open_memory_store
from duovisor.controlling.vms.definitions import Definitions
from duovisor.controlling.vms.errors import VmNameInUseError
from duovisor.controlling.vms.records import Autostart, VmStatus, VmView, ignore_progress, now
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from duovisor.controlling.store.interface import Store
    from duovisor.spec.vm import VirtualMachineSpec

BASE = ref("base")


class Hosts(Host):
    """A storage with a base volume, and definitions beside it."""

    def __init__(self, root: Path, store: Store) -> None:
        super().__init__(root, store)
        self.definitions = Definitions(store)
        self.cloner = Cloner(store, self.storage, self.definitions, self.define)
        self.refuses: Exception | None = None

    async def define(self, spec: VirtualMachineSpec, autostart: Autostart) -> VmView:
        if self.refuses is not None:
            raise self.refuses
        record = await self.definitions.create(spec, autostart)
        return VmView(record=record, status=VmStatus(state=State.DEFINED))

    async def instantiate(self, *, linked: bool = True, size_bytes: int | None = None) -> VmView:
        spec, clones = plan_instance(
            build_spec({"name": "web"}), str(BASE), linked=linked, size_bytes=size_bytes
        )
        return await self.cloner.make(spec, Autostart(), clones, ignore_progress)

    async def left(self) -> list[str]:
        return [entry.key for entry in (await self.store.range(PREFIX)).entries]


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with open_memory_store() as store:
        made = Hosts(tmp_path, store)
        await made.storage.create(BASE, 2 * MIB, VolumeFormat.QCOW2)
        yield made
        assert await made.left() == []


@pytest.mark.parametrize("linked", [True, False])
async def test_a_vm_on_a_clone_that_is_larger(host: Hosts, linked: bool) -> None:
    vm = await host.instantiate(linked=linked, size_bytes=8 * MIB)
    assert [disk.volume for disk in vm.record.spec.disks] == ["default/web"]
    view = await host.view("web")
    assert (view.size_bytes, view.base) == (8 * MIB, "default/base" if linked else None)


async def test_a_vm_that_cannot_be_defined_leaves_no_volume(host: Hosts) -> None:
    host.refuses = VmNameInUseError("taken meanwhile")
    with pytest.raises(VmNameInUseError):
        await host.instantiate()
    assert host.files == ["base.qcow2"]


async def test_a_size_that_is_too_small_leaves_no_volume(host: Hosts) -> None:
    with pytest.raises(VolumeRefusedError):
        await host.instantiate(size_bytes=1 * MIB)
    assert host.files == ["base.qcow2"]


async def test_a_volume_that_is_there_stays(host: Hosts) -> None:
    await host.storage.create(ref("web"), MIB, VolumeFormat.RAW)
    with pytest.raises(VolumeExistsError):
        await host.instantiate()
    assert host.files == ["base.qcow2", "web.raw"]


async def test_a_name_in_use_and_a_pool_that_is_not_there(host: Hosts) -> None:
    await host.define(build_spec({"name": "web"}), Autostart())
    with pytest.raises(VmNameInUseError):
        await host.instantiate()
    spec, clones = plan_instance(
        build_spec({"name": "db"}), str(BASE), pool="none", linked=True, size_bytes=None
    )
    with pytest.raises(PoolNotFoundError):
        await host.cloner.make(spec, Autostart(), clones, ignore_progress)
    assert host.files == ["base.qcow2"]


async def write_intent(host: Hosts, name: str) -> None:
    document = CloneDocument(name=name, volumes=(f"default/{name}",), begun_at=now())
    await host.store.put(PREFIX + name, KIND.encode(document))


async def test_a_vm_that_never_came_to_be_is_undone(host: Hosts) -> None:
    await write_intent(host, "web")
    await host.storage.clone(BASE, ref("web"), linked=True)
    assert await host.cloner.recover() == ("web",)
    assert host.files == ["base.qcow2"]


async def test_one_that_came_to_be_keeps_its_volume(host: Hosts) -> None:
    await host.instantiate()
    await write_intent(host, "web")
    assert await host.cloner.recover() == ()
    assert host.files == ["base.qcow2", "web.qcow2"]


async def test_an_older_volume_is_not_undone(host: Hosts) -> None:
    await host.storage.create(ref("web"), MIB, VolumeFormat.RAW)
    await write_intent(host, "web")
    assert await host.cloner.recover() == ("web",)
    assert host.files == ["base.qcow2", "web.raw"]


def test_a_copy_has_clones_of_what_is_written_to() -> None:
    spec = build_spec(
        {
            "name": "web",
            "disks": [
                {"volume": "web", "serial": "root"},
                {"volume": "iso", "read_only": True},
                {"volume": "fast/data"},
                {"cloud_init": {"user": "ada"}},
            ],
            "nics": [
                {"mac": "52:54:00:00:00:01", "forward": ["2222:22"]},
                {"bridge": "br0", "address": "10.0.0.7"},
            ],
        }
    )
    copy, clones = plan_copy(spec, "db", None)
    assert [(str(each.source), str(each.target)) for each in clones] == [
        ("default/web", "default/db"),
        ("fast/data", "fast/db-1"),
    ]
    assert [disk.volume for disk in copy.disks] == ["default/db", "default/iso", "fast/db-1", None]
    assert (copy.name, copy.disks[0].serial, copy.disks[3].cloud_init) == (
        "db",
        "root",
        spec.disks[3].cloud_init,
    )
    assert (copy.nics[0].mac, copy.nics[0].forward) == (None, ())
    assert (copy.nics[1].bridge, copy.nics[1].address) == ("br0", None)
    _, elsewhere = plan_copy(spec, "db", "fast")
    assert {each.target.pool for each in elsewhere} == {"fast"}


def test_a_disk_by_path_is_not_shared() -> None:
    spec = build_spec({"name": "web", "disks": [{"path": "/srv/web.raw"}]})
    with pytest.raises(VolumeRefusedError, match="two VMs cannot"):
        plan_copy(spec, "db", None)


def test_an_instances_own_disks_come_after_the_images() -> None:
    spec = build_spec({"name": "web", "disks": [{"volume": "data"}]})
    made, (clone,) = plan_instance(spec, "images/small", pool="fast", linked=False, size_bytes=None)
    assert [disk.volume for disk in made.disks] == ["fast/web", "default/data"]
    assert clone.source == VolumeRef(pool="images", name="small")
