"""UEFI's files: which firmware a VM gets, and that its variables stay its own."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from duovisor.controlling import firmware_files
from duovisor.controlling.errors import BootFileError, HostLacksError
from duovisor.controlling.firmware_files import find_firmware, make_variables, remove_variables
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.spec.vm import VirtualMachineSpec


def build(**fields: Any) -> VirtualMachineSpec:
    return build_spec({"name": "vm", "firmware": "uefi", **fields})


@pytest.fixture
def ovmf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "OVMF"
    folder.mkdir()
    monkeypatch.setattr(firmware_files, "OVMF", folder)
    return folder


def add(folder: Path, *names: str, content: bytes = b"variables") -> None:
    for name in names:
        (folder / name).write_bytes(content)


def test_both_halves_of_a_pair_are_needed_and_4_mib_is_preferred(ovmf: Path) -> None:
    assert find_firmware(build(firmware="bios")) is None
    add(ovmf, "OVMF_CODE_4M.fd")
    with pytest.raises(HostLacksError, match="firmware uefi needs OVMF, which is not in"):
        find_firmware(build())
    add(ovmf, "OVMF_CODE.fd", "OVMF_VARS.fd")
    assert find_firmware(build()) == (ovmf / "OVMF_CODE.fd", ovmf / "OVMF_VARS.fd")
    add(ovmf, "OVMF_VARS_4M.fd")
    assert find_firmware(build()) == (ovmf / "OVMF_CODE_4M.fd", ovmf / "OVMF_VARS_4M.fd")


def test_secure_boot_needs_a_firmware_of_its_own(ovmf: Path) -> None:
    add(ovmf, "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "OVMF_CODE_4M.secboot.fd")
    with pytest.raises(HostLacksError) as caught:
        find_firmware(build(secure_boot=True))
    assert caught.value.message == f"secure boot needs OVMF with Microsoft's keys, which is not in {ovmf}"
    assert caught.value.remedy == "apt-get install ovmf"
    add(ovmf, "OVMF_VARS_4M.ms.fd")
    found = find_firmware(build(secure_boot=True))
    assert found == (ovmf / "OVMF_CODE_4M.secboot.fd", ovmf / "OVMF_VARS_4M.ms.fd")


def test_variables_are_made_once_and_kept(ovmf: Path, tmp_path: Path) -> None:
    add(ovmf, "OVMF_CODE.fd", "OVMF_VARS.fd")
    firmware, folder = find_firmware(build()), tmp_path / "vms" / "uuid"
    assert firmware is not None
    firmware.template.chmod(0o444)
    path = make_variables(build(), firmware, folder, os.geteuid())
    assert path.read_bytes() == b"variables"
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(folder.stat().st_mode)) == (0o600, 0o700)
    path.write_bytes(b"with entr")
    assert make_variables(build(), firmware, folder, None) == path
    assert path.read_bytes() == b"with entr"
    assert [each.name for each in folder.iterdir()] == ["uefi-vars.fd"]


def test_a_copy_that_was_interrupted_is_made_again(ovmf: Path, tmp_path: Path) -> None:
    add(ovmf, "OVMF_CODE.fd", "OVMF_VARS.fd")
    firmware = find_firmware(build())
    assert firmware is not None
    (tmp_path / "uefi-vars.fd.new").write_bytes(b"vari")
    assert make_variables(build(), firmware, tmp_path, None).read_bytes() == b"variables"
    assert not (tmp_path / "uefi-vars.fd.new").exists()


def test_secure_boot_has_variables_of_its_own(ovmf: Path, tmp_path: Path) -> None:
    add(ovmf, "OVMF_CODE.fd", "OVMF_VARS.fd", "OVMF_CODE.secboot.fd", "OVMF_VARS.ms.fd")
    for secure_boot in (False, True):
        spec = build(secure_boot=secure_boot)
        firmware = find_firmware(spec)
        assert firmware is not None
        make_variables(spec, firmware, tmp_path, None)
    names = {"uefi-vars.fd", "uefi-vars-secure.fd"}
    assert names <= {each.name for each in tmp_path.iterdir()}
    assert remove_variables(tmp_path)
    assert not names & {each.name for each in tmp_path.iterdir()}
    assert not remove_variables(tmp_path)
    assert not remove_variables(tmp_path / "never started")


def test_variables_of_another_build_are_refused(ovmf: Path, tmp_path: Path) -> None:
    add(ovmf, "OVMF_CODE.fd", "OVMF_VARS.fd")
    firmware = find_firmware(build())
    assert firmware is not None
    path = make_variables(build(), firmware, tmp_path, None)
    add(ovmf, "OVMF_VARS.fd", content=b"larger variables")
    with pytest.raises(BootFileError) as caught:
        make_variables(build(), firmware, tmp_path, None)
    assert "the UEFI variables of vm have 9 bytes" in caught.value.message
    assert caught.value.remedy == "duovisor vm reset-nvram vm begins with fresh ones"
    assert path.read_bytes() == b"variables"
