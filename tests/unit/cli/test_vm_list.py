"""``duovisor vm list`` and ``show``: which drivers serve a VM, and how."""

from __future__ import annotations

from typing import Any

import click

from duovisor.cli.vm_list import render_list, render_vm
from duovisor.controlling.supervision.records import DeviceState, DriverStatus
from duovisor.controlling.vms.records import Autostart, VmRecord, VmStatus, VmView, now
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.vm import VirtualMachineSpec


def build_driver(device: str, state: DeviceState, reason: str = "") -> DriverStatus:
    return DriverStatus(
        device=device,
        state=state,
        pid=7,
        spare_pid=None,
        code="c",
        deaths=0,
        last_pause_ms=None,
        reason=reason,
    )


def build_view(*drivers: DriverStatus) -> dict[str, Any]:
    document = {
        "name": "web",
        "design": "microkernelized",
        "disks": [{"path": "/a", "driver": "encrypted", "key_file": "/k"}, {"driver": "/srv/mine.py"}],
        "devices": [{"driver": "rng"}, {"driver": "/srv/dice.py"}],
    }
    record = VmRecord(
        uuid="u", name="web", spec=VirtualMachineSpec.model_validate(document), autostart=Autostart(),
        created_at=now(), revision=1,
    )  # fmt: skip
    status = VmStatus(state=State.RUNNING if drivers else State.STOPPED, drivers=drivers)
    return VmView(record=record, status=status).model_dump(mode="json")


RUNNING = build_driver("device0", DeviceState.RUNNING)
FAILED = build_driver("device1", DeviceState.FAILED, "its drivers died 5 times")


def test_the_list_counts_drivers() -> None:
    views = [build_view(), build_view(RUNNING), build_view(RUNNING, FAILED)]
    header, *lines = click.unstyle(render_list(views)).splitlines()
    at = header.index("DRIVERS")
    assert [line[at : at + len("DRIVERS")].strip() for line in lines] == ["-", "1", "1 of 2"]


def test_a_vm_shows_its_devices_and_the_drivers_of_its_disks() -> None:
    text = click.unstyle(render_vm(build_view(RUNNING, FAILED)))
    assert "device0: rng, running" in text
    assert "device1: /srv/dice.py, failed: its drivers died 5 times" in text
    assert "/a (raw, driver encrypted)" in text
    assert "no file (raw, driver /srv/mine.py)" in text
    assert "/k" not in text


def test_one_that_does_not_run_shows_what_it_would_have() -> None:
    assert "device0: rng\n" in click.unstyle(render_vm(build_view()))
