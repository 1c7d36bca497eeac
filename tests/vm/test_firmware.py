"""UEFI under real VMMs: what firmware keeps stays from run to run, in both designs, and moves with the VM."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from tests.fat_image import build_fat
from tests.vm.service_host import BOOT_TIMEOUT_S, Rest

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


def wait_said(rest: Rest, text: str, times: int) -> str:
    """What the guest has printed, as soon as that has a text so many times."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while (said := rest.log(NAME)).count(text) < times:
        assert time.monotonic() < deadline, said
        time.sleep(0.2)  # nothing tells what a guest prints but a console, which this is not about
    return said


def switch(host: ServiceHost, design: str) -> None:
    with host.connect() as client:
        client.follow(client.act(NAME, "switch", {"design": design}))


def test_variables_outlive_a_pulled_plug_a_change_of_design_and_a_move(host: ServiceHost) -> None:
    disk = host.directories.state / "shell.raw"
    disk.write_bytes(build_fat({"STARTUP.NSH": SCRIPT.replace("\n", "\r\n").encode()}))
    spec = {"memory_mib": 128, "firmware": "uefi", "disks": [{"path": str(disk), "read_only": True}]}
    rest = Rest(host, spec)
    rest.create(NAME, "monolithic")
    rest.act(NAME, "start")
    assert KEPT not in wait_said(rest, ENDED, 1)
    rest.act(NAME, "stop")
    switch(host, "microkernelized")
    rest.act(NAME, "start")
    assert wait_said(rest, ENDED, 2).count(KEPT) == 1
    for design in ("monolithic", "microkernelized"):
        switch(host, design)
    with host.connect() as client:
        client.follow(client.act(NAME, "reset"))  # the firmware reads its variables again
    assert wait_said(rest, ENDED, 3).count(KEPT) == 2
    rest.act(NAME, "stop")
    (variables,) = host.directories.state.glob("vms/*/*")
    assert variables.name == "uefi-vars.fd"
    rest.delete(NAME)
    assert list(host.directories.state.glob("vms/*")) == []
