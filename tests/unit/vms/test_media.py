"""What is in a VM's drives: changed while it runs and while it does not, and wanted ever after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.vms.fake_host import build_vm

from duovisor.controlling.errors import DiskFileError
from duovisor.controlling.vms.errors import DeviceNotFoundError
from duovisor.controlling.vms.records import Autostart
from duovisor.spec.cdrom import CdromSpec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.vms.conftest import Host

    from duovisor.controlling.vms.manager import VmManager


@pytest.fixture
def disc(root: Path) -> CdromSpec:
    path = root / "disc.iso"
    path.write_bytes(b"disc")
    return CdromSpec(path=str(path))


async def media_of(manager: VmManager) -> list[str]:
    return [each.path for each in (await manager.get("vm")).record.spec.cdroms]


async def test_a_medium_is_changed_in_the_definition(
    host: Host, manager: VmManager, disc: CdromSpec, root: Path
) -> None:
    await manager.create(build_vm(cdroms=[{}, {}]), Autostart())
    said: list[str] = []
    await manager.change_medium("vm", 1, disc, lambda percent, message: said.append(message))
    assert await media_of(manager) == ["", disc.path]
    assert said == [f"cdrom1: {disc.path}"]
    assert "medium-changed" in host.kinds
    with pytest.raises(DiskFileError, match="cannot read the CD-ROM image"):
        await manager.change_medium("vm", 0, CdromSpec(path=str(root / "none.iso")))
    with pytest.raises(DiskFileError, match="there is no volume default/iso here"):
        await manager.change_medium("vm", 0, CdromSpec.model_validate({"volume": "iso"}))
    assert await media_of(manager) == ["", disc.path]
    await manager.change_medium("vm", 1, CdromSpec())
    assert await media_of(manager) == ["", ""]


async def test_a_medium_is_changed_under_a_running_vm(host: Host, disc: CdromSpec, root: Path) -> None:
    async with host.managed() as manager:
        await manager.create(build_vm(cdroms=[{}]), Autostart())
        await manager.start("vm")
        await manager.change_medium("vm", 0, disc)
        assert not (await manager.get("vm")).status.restart_needed
        with pytest.raises(DiskFileError):
            await manager.change_medium("vm", 0, CdromSpec(path=str(root)))
        assert await media_of(manager) == [disc.path]
    async with host.managed() as successor:  # it finds on the host what is wanted
        assert host.report.adopted == ("vm",)
        assert not (await successor.get("vm")).status.restart_needed
        await successor.stop("vm")


async def test_a_drive_that_is_not_there(manager: VmManager, disc: CdromSpec) -> None:
    await manager.create(build_vm(cdroms=[{}]), Autostart())
    with pytest.raises(DeviceNotFoundError) as caught:
        await manager.change_medium("vm", 1, disc)
    assert (caught.value.message, caught.value.remedy) == (
        "vm has no CD-ROM drive cdrom1",
        "it has cdrom0",
    )


async def test_a_start_with_a_medium_that_is_gone_fails(manager: VmManager, root: Path) -> None:
    await manager.create(build_vm(cdroms=[str(root / "gone.iso")]), Autostart())
    with pytest.raises(DiskFileError, match=r"cannot read the CD-ROM image .*gone\.iso: No such file"):
        await manager.start("vm")
