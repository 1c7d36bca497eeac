"""What a VM's firmware keeps: through its runs, until it is forgotten or deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.vms.fake_host import build_vm

from duovisor.controlling import firmware_files
from duovisor.controlling.vms.errors import VmNotFoundError
from duovisor.controlling.vms.records import Autostart
from duovisor.hypervisor.errors import WrongStateError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.vms.conftest import Host

    from duovisor.controlling.vms.manager import VmManager

OFF = Autostart()


@pytest.fixture
def ovmf(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware_files, "OVMF", root)
    (root / "OVMF_CODE.fd").write_bytes(b"code")
    (root / "OVMF_VARS.fd").write_bytes(b"fresh")


def find_kept(host: Host) -> list[Path]:
    return sorted((host.directories.state / "vms").glob("*/*"))


@pytest.mark.usefixtures("ovmf")
async def test_variables_stay_until_they_are_reset_or_the_vm_is_deleted(
    host: Host, manager: VmManager
) -> None:
    await manager.create(build_vm(firmware="uefi"), OFF)
    await manager.start("vm")
    (variables,) = find_kept(host)
    variables.write_bytes(b"entry")
    with pytest.raises(WrongStateError, match="cannot reset the NVRAM of vm"):
        await manager.reset_nvram("vm")
    await manager.stop("vm")
    await manager.rename("vm", "renamed")
    await manager.start("renamed")
    assert [path.read_bytes() for path in find_kept(host)] == [b"entry"]
    await manager.stop("renamed")
    await manager.reset_nvram("renamed")
    assert "nvram-reset" in host.kinds
    assert find_kept(host) == []
    await manager.start("renamed")
    assert [path.read_bytes() for path in find_kept(host)] == [b"fresh"]
    await manager.stop("renamed")
    await manager.delete("renamed")
    assert list((host.directories.state / "vms").iterdir()) == []
    with pytest.raises(VmNotFoundError):
        await manager.reset_nvram("renamed")


@pytest.mark.usefixtures("ovmf")
async def test_what_a_killed_manager_left_of_a_deleted_vm_is_removed(host: Host) -> None:
    async with host.managed() as manager:
        await manager.create(build_vm(firmware="uefi"), OFF)
        await manager.start("vm")
        await manager.stop("vm")
    orphan = host.directories.state / "vms" / "deleted-uuid"
    orphan.mkdir()
    (orphan / "uefi-vars.fd").touch()
    async with host.managed():
        assert str(orphan) in host.report.removed
    assert len(find_kept(host)) == 1  # of the VM that is there
