"""What is checked before anything is made on the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.hardware.recorded_hosts import PLAIN_VM, XEON
from tests.unit.hardware.test_check import build_capabilities

from duovisor.controlling.errors import BootFileError, HostLacksError, MemoryTooLargeError
from duovisor.controlling.preflight import (
    check_boot_files,
    check_kvm_device,
    check_memory,
    choose_accelerator,
    find_kvm_gids,
    find_sandbox_tools,
)
from duovisor.hardware.capabilities import DevKvm
from duovisor.hardware.errors import AcceleratorUnavailableError
from duovisor.hardware.sandboxing import SandboxProbe
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Accelerator, Design, VirtualMachineSpec


def build(**fields: Any) -> VirtualMachineSpec:
    return build_spec({"name": "vm", **fields})


def test_memory() -> None:
    check_memory(build(memory="1G"), 1024)
    with pytest.raises(MemoryTooLargeError) as caught:
        check_memory(build(memory="2G"), 1024)
    assert caught.value.message == "vm asks for 2048 MiB of memory; this host has 1024 MiB"


def test_boot_files(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.touch()
    check_boot_files(build())
    check_boot_files(build(firmware="direct-kernel", kernel={"path": str(kernel)}))
    for field, value in (("path", tmp_path), ("path", tmp_path / "none"), ("initrd", tmp_path / "none")):
        spec = build(firmware="direct-kernel", kernel={"path": str(kernel), field: str(value)})
        with pytest.raises(BootFileError) as caught:
            check_boot_files(spec)
        assert f"{value} is no readable file" in caught.value.message
        assert caught.value.remedy == f"correct kernel.{field}"


def test_tools_for_a_sandbox() -> None:
    host = build_capabilities(XEON)
    tools = find_sandbox_tools(Design.MICROKERNELIZED, host)
    assert (tools.bwrap, tools.setpriv, tools.as_root) == (Path("/bin/bwrap"), Path("/bin/setpriv"), True)
    closed = replace(host, sandbox=SandboxProbe(False, "user namespaces are off", "run as root"))
    find_sandbox_tools(Design.MONOLITHIC, closed)
    with pytest.raises(HostLacksError) as caught:
        find_sandbox_tools(Design.MICROKERNELIZED, closed)
    assert caught.value.message == "the microkernelized design needs sandboxes: user namespaces are off"
    assert caught.value.remedy == "run as root; or use the monolithic design"


def test_accelerator() -> None:
    host = build_capabilities(XEON)
    assert choose_accelerator(build(), host).accelerator == "kvm"
    assert choose_accelerator(build(accelerator="tcg"), host).accelerator == "tcg"
    with pytest.raises(AcceleratorUnavailableError, match="accelerator kvm does not work here: "):
        choose_accelerator(build(accelerator="kvm"), build_capabilities(PLAIN_VM))


@pytest.mark.parametrize(
    ("mode", "gids"), [(0o666, ()), (0o660, (104,)), (0o600, ())], ids=["everybody", "group", "root only"]
)
def test_kvm_is_opened_through_its_group(mode: int, gids: tuple[int, ...]) -> None:
    host = replace(build_capabilities(XEON), dev_kvm=DevKvm(mode=mode, uid=0, gid=104))
    assert find_kvm_gids(host) == gids
    check_kvm_device(build(design="monolithic"), host, Accelerator.KVM)
    confined = build(design="microkernelized")
    if mode == 0o600:
        with pytest.raises(HostLacksError, match=r"cannot open /dev/kvm \(mode 600\)"):
            check_kvm_device(confined, host, Accelerator.KVM)
    else:
        check_kvm_device(confined, host, Accelerator.KVM)
    check_kvm_device(confined, host, Accelerator.TCG)
    assert find_kvm_gids(replace(host, dev_kvm=None)) == ()
