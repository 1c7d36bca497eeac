"""Snapshots over REST, and what the command line makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest

from duovisor.cli.vm_snapshot import render_list, render_snapshot

if TYPE_CHECKING:
    from tests.api.running import Api


@pytest.fixture
def snapshots(api: Api, name: str) -> str:
    """The path of the snapshots of a VM that runs."""
    definition = {"spec": {"name": name, "memory_mib": 256}}
    assert api.post("/v1/vms", json=definition).status_code == 201
    assert api.finish(api.post(f"/v1/vms/{name}/start"))["state"] == "done"
    return f"/v1/vms/{name}/snapshots"


def test_a_snapshot_is_taken_shown_restored_and_deleted(api: Api, snapshots: str, name: str) -> None:
    assert api.get(snapshots).json() == {"items": [], "after": None}
    taken = api.finish(api.post(snapshots, json={"name": "before"}))
    assert (taken["state"], taken["action"], taken["object"]) == ("done", "vm.snapshot-create", f"vm/{name}")
    assert taken["message"] == "paused 210.3 ms, 182 MiB of memory, 1 disk, 300 MiB on the host"
    [listed] = api.get(snapshots).json()["items"]
    assert api.get(f"{snapshots}/before").json() == listed
    assert (listed["name"], listed["disks"], listed["memory_mib"]) == ("before", {"disk0": 1 << 30}, 256)
    assert api.finish(api.post(f"{snapshots}/before/restore"))["error"]["code"] == "wrong-state"
    assert api.finish(api.post(f"/v1/vms/{name}/stop"))["state"] == "done"
    restored = api.finish(api.post(f"{snapshots}/before/restore"))
    assert (restored["state"], restored["action"]) == ("done", "vm.snapshot-restore")
    assert api.finish(api.delete(f"{snapshots}/before"))["state"] == "done"
    assert api.get(f"{snapshots}/before").status_code == 404


def test_what_is_wrong_is_said(api: Api, snapshots: str) -> None:
    reply = api.post(snapshots, json={"name": ".."})
    assert (reply.status_code, reply.json()["field"]) == (422, "name")
    assert api.post(f"{snapshots}/none/restore").json()["code"] == "snapshot-not-found"
    assert api.finish(api.delete(f"{snapshots}/none"))["error"]["code"] == "snapshot-not-found"
    api.finish(api.post(snapshots, json={"name": "one"}))
    again = api.finish(api.post(snapshots, json={"name": "one"}))
    assert again["error"]["code"] == "snapshot-exists"
    assert api.get("/v1/vms/nobody/snapshots").json()["code"] == "vm-not-found"


def test_as_people_see_them() -> None:
    snapshot = {
        "name": "before", "created_at": "2026-01-02T03:04:05Z", "memory_mib": 1024, "memory_bytes": 182 << 20,
        "disks": {"disk0": 1 << 30}, "host_bytes": 300 << 20, "processor": "EPYC", "pause_ms": 210.34,
    }  # fmt: skip
    header, line = click.unstyle(render_list("web", [snapshot])).splitlines()
    assert header.split() == ["NAME", "TAKEN", "MEMORY", "DISKS", "TAKES", "PAUSE"]
    assert line.split()[0] == "before"
    assert "182 MiB" in line
    assert line.endswith("210.3 ms")
    assert "182 MiB of 1024 MiB in use" in click.unstyle(render_snapshot(snapshot))
    assert render_list("web", []) == "no snapshots; try: duovisor vm snapshot create web NAME"
