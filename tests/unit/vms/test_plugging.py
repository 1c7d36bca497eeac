"""Disks and network cards come to VMs and go from them, in the definition and under a running VMM."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.vms.fake_host import build_vm
from tests.unit.vms.fake_qemu import DEVICES, KEEPS_DEVICES, NO_SLOT, REFUSES_DEVICES

from duovisor.controlling.description import DeviceChange, load_description
from duovisor.controlling.errors import DiskFileError
from duovisor.controlling.plugging.changes import add_device, place_nic, remove_device
from duovisor.controlling.plugging.errors import PlugRefusedError
from duovisor.controlling.plugging.plug import check_plugging
from duovisor.controlling.vms.documents import RUN_KIND, RUNS, Intent
from duovisor.controlling.vms.errors import DeviceNotFoundError, VmChangeError
from duovisor.controlling.vms.records import Autostart
from duovisor.hypervisor.errors import QmpError, UnplugTimeoutError, WrongStateError
from duovisor.spec.vm import MAX_NICS, DiskSpec, NicSpec, VirtualMachineSpec, VmmKind

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.vms.conftest import Host

    from duovisor.controlling.vms.manager import VmManager

OFF = Autostart()
USER = NicSpec()


@pytest.fixture
def image(root: Path) -> str:
    path = root / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    return str(path)


async def start(manager: VmManager, **document: Any) -> None:
    await manager.create(build_vm(**document), OFF)
    await manager.start("vm")


def read_parts(host: Host) -> dict[str, list[str]]:
    """What the VMM has beside memory."""
    found: dict[str, list[str]] = json.loads((host.root / DEVICES).read_text())
    found["objects"].remove("ram")
    del found["limits"]
    found["devices"].remove("pluggable")
    return found


def nothing(found: dict[str, list[str]]) -> bool:
    return not any(found.values())


async def read_spec(manager: VmManager) -> VirtualMachineSpec:
    """The definition, which a running VM does not differ from."""
    vm = await manager.get("vm")
    assert not vm.status.restart_needed
    return vm.record.spec


async def test_a_disk_comes_and_goes(host: Host, manager: VmManager, image: str) -> None:
    await start(manager)
    said: list[str] = []
    await manager.attach("vm", DiskSpec(path=image), lambda _, message: said.append(message))
    assert said[-1] == "disk0 attached"
    parts = read_parts(host)
    assert parts["devices"] == ["disk0"]
    assert set(parts["nodes"]) == {"disk0", "disk0-file"}
    assert parts["objects"] == ["disk0-thread"]
    assert [disk.slot for disk in (await read_spec(manager)).disks] == [0]
    await manager.detach("vm", "disk0")
    assert nothing(read_parts(host))
    assert (await read_spec(manager)).disks == ()
    assert host.kinds[-2:] == ["device-attached", "device-detached"]
    (entry,) = (await host.store.range(RUNS)).entries
    assert RUN_KIND.decode(entry.value, key=entry.key).intent is Intent.NONE


async def test_the_others_keep_their_names(host: Host, manager: VmManager, image: str) -> None:
    await start(manager, nics=[{"network": "user"}, {"network": "user"}])
    await manager.detach("vm", "nic0")
    await manager.attach("vm", NicSpec(slot=5))
    assert read_parts(host)["devices"] == ["nic1", "nic5"]
    assert [nic.slot for nic in (await read_spec(manager)).nics] == [1, 5]
    await manager.attach("vm", USER)
    assert set(read_parts(host)["netdevs"]) == {"nic0-net", "nic1-net", "nic5-net"}
    with pytest.raises(PlugRefusedError, match="nic5 already"):
        await manager.attach("vm", NicSpec(slot=5))
    await manager.stop("vm")
    await manager.start("vm")
    assert set(read_parts(host)["devices"]) == {"nic0", "nic1", "nic5"}


async def test_a_vm_that_rests_has_it_at_its_next_start(manager: VmManager, image: str) -> None:
    await manager.create(build_vm(), OFF)
    said: list[str] = []
    await manager.attach("vm", DiskSpec(path=image), lambda _, message: said.append(message))
    assert said == ["disk0 at its next start"]
    await manager.attach("vm", USER)
    await manager.detach("vm", "disk0")
    spec = await read_spec(manager)
    assert (spec.disks, len(spec.nics)) == ((), 1)
    with pytest.raises(DeviceNotFoundError) as caught:
        await manager.detach("vm", "disk0")
    assert caught.value.remedy == "it has nic0"


async def test_what_cannot_be_plugged_in_leaves_nothing(host: Host, manager: VmManager, image: str) -> None:
    await start(manager, disks=[{"path": image}])
    before = read_parts(host), await read_spec(manager)
    with pytest.raises(PlugRefusedError, match="two disks and one of them writes"):
        await manager.attach("vm", DiskSpec(path=image))
    with pytest.raises(DiskFileError):
        await manager.attach("vm", DiskSpec(path="/nowhere"))
    (host.root / REFUSES_DEVICES).touch()
    with pytest.raises(QmpError, match=NO_SLOT):
        await manager.attach("vm", USER)
    assert (read_parts(host), await read_spec(manager)) == before
    left = load_description(host.directories.vms / "vm")
    assert left is not None
    assert left.current.change is None


async def test_a_guest_that_keeps_a_device(host: Host, manager: VmManager) -> None:
    await start(manager, nics=[{"network": "user"}])
    (host.root / KEEPS_DEVICES).touch()
    for _ in range(2):  # it is asked once, and remembers
        with pytest.raises(UnplugTimeoutError):
            await manager.detach("vm", "nic0", 0.05)
    assert read_parts(host)["devices"] == ["nic0"]
    assert len((await read_spec(manager)).nics) == 1
    await manager.pause("vm")
    with pytest.raises(WrongStateError):
        await manager.detach("vm", "nic0")
    await manager.resume("vm")  # as it goes on, it lets go
    await host.wait_for("device-gone")
    assert nothing(read_parts(host))
    vm = await manager.get("vm")
    assert (len(vm.record.spec.nics), vm.status.restart_needed) == (1, True)
    await manager.detach("vm", "nic0")
    assert (await read_spec(manager)).nics == ()


async def test_a_change_that_is_cancelled_before_it_began(
    host: Host, manager: VmManager, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is announced, and that is taken back; nothing is begun that nobody would wait for."""
    await start(manager)
    announcing = asyncio.Event()
    put = host.store.put

    async def linger(key: str, value: bytes, *rest: Any) -> Any:
        done = await put(key, value, *rest)
        if RUN_KIND.decode(value, key=key).intent is Intent.PLUG:
            announcing.set()
            await asyncio.Event().wait()
        return done

    monkeypatch.setattr(host.store, "put", linger)
    for change in (manager.attach("vm", DiskSpec(path=image)), manager.attach("vm", USER)):
        announcing.clear()
        task = asyncio.create_task(change)
        await announcing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert nothing(read_parts(host))
        (entry,) = (await host.store.range(RUNS)).entries
        assert RUN_KIND.decode(entry.value, key=entry.key).intent is Intent.NONE
    gc.collect()  # a coroutine that nobody awaited would say so here


async def test_a_cancelled_change_is_done_to_its_end(host: Host, manager: VmManager) -> None:
    await start(manager)
    attaching = asyncio.create_task(manager.attach("vm", USER))
    while not (await manager.get("vm")).status.action:
        await asyncio.sleep(0)
    while not attaching.done():
        attaching.cancel()
        await asyncio.sleep(0.001)
    attached = [NicSpec(slot=0)] if not attaching.cancelled() else []
    assert list((await read_spec(manager)).nics) == attached
    assert read_parts(host)["devices"] == [f"nic{nic.slot}" for nic in attached]


async def test_a_device_that_came_while_nobody_looked(host: Host, image: str) -> None:
    """The manager ends between the VMM's answer and its own note; and a guest lets go of one meanwhile."""
    async with host.managed() as manager:
        await start(manager, nics=[{"network": "user"}])
        await manager.attach("vm", DiskSpec(path=image))
        (host.root / KEEPS_DEVICES).touch()
        with pytest.raises(UnplugTimeoutError):
            await manager.detach("vm", "nic0", 0.05)
        await manager.pause("vm")
        folder = host.directories.vms / "vm"
        left = load_description(folder)
        assert left is not None
    disk, spec = left.current.spec.disks[0], left.current.spec
    current = left.current.model_copy(
        update={
            "spec": spec.model_copy(update={"disks": ()}),
            "change": DeviceChange(device="disk0", disk=disk),
        }
    )
    (folder / "machine.json").write_text(left.model_copy(update={"current": current}).model_dump_json())
    async with host.managed() as manager:
        assert host.report.adopted == ("vm",)
        assert (await read_spec(manager)).disks == (disk,)
        await manager.resume("vm")
        await host.wait_for("device-gone")
        (host.root / KEEPS_DEVICES).unlink()
        await manager.detach("vm", "disk0")
        assert nothing(read_parts(host))


def read_limits(host: Host) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads((host.root / DEVICES).read_text())["limits"]
    return found


async def test_disks_are_limited(host: Host, image: str) -> None:
    async with host.managed() as manager:
        await start(manager, disks=[{"path": image, "iops_limit": 100, "bandwidth_limit": "2M"}])
        assert read_limits(host) == {"disk0": [100, 2 << 20]}
        await manager.limit_disk("vm", "disk0", 50, None)
        assert read_limits(host) == {"disk0": [50, 0]}
        (disk,) = (await read_spec(manager)).disks
        assert (disk.iops_limit, disk.bandwidth_limit) == (50, None)
        with pytest.raises(DeviceNotFoundError) as caught:
            await manager.limit_disk("vm", "disk7", 50, None)
        assert caught.value.remedy == "it has disk0"
        other = host.root / "other.raw"
        other.write_bytes(bytes(1 << 20))
        await manager.attach("vm", DiskSpec(path=str(other), bandwidth_limit=1 << 20))
        assert read_limits(host)["disk1"] == [0, 1 << 20]
        await manager.update_vmm("vm")  # the new one begins without
        assert read_limits(host) == {"disk0": [50, 0], "disk1": [0, 1 << 20]}
    async with host.managed() as manager:
        assert read_limits(host)["disk0"] == [50, 0]
        await manager.limit_disk("vm", "disk0", None, None)
        assert read_limits(host)["disk0"] == [0, 0]
        await read_spec(manager)
        await manager.stop("vm")
        await manager.limit_disk("vm", "disk0", 7, None)  # at its next start
        await manager.start("vm")
        assert read_limits(host)["disk0"] == [7, 0]


async def test_the_thin_vmm_has_no_hot_plug(host: Host, manager: VmManager) -> None:
    await start(manager)
    machine = manager._host.active[0].machine
    machine.current.decision = machine.current.decision._replace(kind=VmmKind.THIN)
    with pytest.raises(PlugRefusedError) as caught:
        check_plugging(machine, "attach a disk to")
    assert "vmm=qemu" in caught.value.remedy
    with pytest.raises(PlugRefusedError):
        await manager.attach("vm", USER)
    assert (await read_spec(manager)).nics == ()


def test_there_is_an_end_of_slots() -> None:
    spec = build_vm(nics=[{"network": "user"}] * (MAX_NICS - 1))
    full = add_device(spec, place_nic(USER, [spec]))
    with pytest.raises(PlugRefusedError, match="no room"):
        place_nic(USER, [full])
    left = remove_device(remove_device(full, "nic0"), "nic7")
    assert [slot for slot, _ in left.numbered_nics()] == [1, 2, 3, 4, 5, 6]
    assert place_nic(USER, [left]).slot == 0
    assert place_nic(USER, [left, spec]).slot == 7


async def test_cards_that_are_limited_at_their_next_start(host: Host) -> None:
    async with host.managed() as manager:
        await manager.create(build_vm(nics=[{"bridge": "br0"}, {"network": "user"}]), OFF)
        await manager.limit_nic("vm", "nic0", 1 << 20, None)
        card, user = (await manager.get("vm")).record.spec.nics
        assert (card.in_limit, card.out_limit, user.is_limited) == (1 << 20, None, False)
        with pytest.raises(DeviceNotFoundError) as missing:
            await manager.limit_nic("vm", "disk0", 1 << 20, None)
        assert missing.value.remedy == "it has nic0, nic1"
        with pytest.raises(VmChangeError, match="on network user"):
            await manager.limit_nic("vm", "nic1", 1 << 20, None)
        await manager.limit_nic("vm", "nic1", None, None)  # as it is
        await manager.limit_nic("vm", "nic0", None, None)
        assert not (await manager.get("vm")).record.spec.nics[0].is_limited
