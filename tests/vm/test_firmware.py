"""UEFI under real VMMs: what firmware keeps stays from run to run, in both designs, and moves with the VM."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.efi_program import build_efi_program
from tests.fat_image import build_fat
from tests.vm.service_host import ANY, BOOT_TIMEOUT_S, Rest
from tests.vm.waiting import find_said, wait_said

from duovisor.client.errors import ApiError
from duovisor.client.service import vm_path

if TYPE_CHECKING:
    from tests.vm.service_host import ServiceHost

pytestmark = pytest.mark.vm

GUID = "7f2b6c1e-0000-4000-8000-000000000001"
ENDED = "script has ended"
SCRIPT = f"""@echo -off
setvar mark -guid {GUID}
setvar mark -guid {GUID} -nv -bs =0x6b657074
echo {ENDED}
"""
KEPT = "74 70 65 6B"  # little endian
NAME = "firm"


def switch(host: ServiceHost, design: str) -> None:
    with host.connect() as client:
        client.follow(client.act(NAME, "switch", {"design": design}))


def check_tpm(host: ServiceHost, rest: Rest) -> None:
    """It has written what it must keep; with it gone the guest runs on, and the VM tells of it."""
    (state,) = host.directories.state.glob("vms/*/tpm/tpm2-00.permall")
    assert state.stat().st_size > 0
    with pytest.raises(ApiError, match="its TPM cannot be carried over"):
        switch(host, "monolithic")
    (tpm,) = (each for each in rest.show(NAME)["status"]["processes"] if each["role"] == "TPM")
    os.kill(tpm["pid"], signal.SIGKILL)
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while not (status := rest.show(NAME)["status"])["faults"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "TPM of tpm: bwrap" in status["faults"][0]["message"]
    assert status["state"] == "running"


def test_what_firmware_keeps_outlives_its_runs_its_design_and_its_vmm(host: ServiceHost) -> None:
    disk = host.directories.state / "shell.raw"
    disk.write_bytes(build_fat({"STARTUP.NSH": SCRIPT.replace("\n", "\r\n").encode()}))
    disks = [{"path": str(disk), "read_only": True}]
    spec = {"memory_mib": 128, "firmware": "uefi", "tpm": True, "disks": disks}
    rest = Rest(host, spec)
    rest.create(NAME, "microkernelized")
    rest.act(NAME, "start")
    assert not find_said(wait_said(rest, NAME, ENDED, 1), KEPT)
    check_tpm(host, rest)
    rest.act(NAME, "stop")
    without = {**spec, "name": NAME, "design": "monolithic", "tpm": False}
    rest.request("PUT", vm_path(NAME), {"spec": without}, **ANY)
    rest.act(NAME, "start")
    assert len(find_said(wait_said(rest, NAME, ENDED, 2), KEPT)) == 1
    for design in ("microkernelized", "monolithic"):
        switch(host, design)
    rest.act(NAME, "reset")  # the firmware reads its variables again
    assert len(find_said(wait_said(rest, NAME, ENDED, 3), KEPT)) == 2
    rest.act(NAME, "stop")
    (variables,) = host.directories.state.glob("vms/*/*.fd")
    assert variables.name == "uefi-vars.fd"
    rest.delete(NAME)
    assert list(host.directories.state.glob("vms/*")) == []


def test_secure_boot_starts_nothing_unsigned(host: ServiceHost) -> None:
    disk = host.directories.state / "unsigned.raw"
    disk.write_bytes(build_fat({"EFI/BOOT/BOOTX64.EFI": build_efi_program("unsigned code runs")}))
    disks = [{"path": str(disk), "read_only": True}]
    spec: dict[str, Any] = {"memory_mib": 128, "firmware": "uefi", "disks": disks}
    rest = Rest(host, spec)
    rest.create(NAME, "microkernelized")
    rest.act(NAME, "start")
    wait_said(rest, NAME, "unsigned code runs", 1)
    rest.act(NAME, "stop")
    secure = {**spec, "name": NAME, "design": "microkernelized", "secure_boot": True}
    rest.request("PUT", vm_path(NAME), {"spec": secure}, **ANY)
    rest.act(NAME, "start")
    said = wait_said(rest, NAME, "Access Denied", 1)
    assert len(find_said(said, "unsigned code runs")) == 1
    rest.act(NAME, "stop")
    names = {path.name for path in host.directories.state.glob("vms/*/*")}
    assert names == {"uefi-vars.fd", "uefi-vars-secure.fd"}
    rest.delete(NAME)
