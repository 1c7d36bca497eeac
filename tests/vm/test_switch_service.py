"""A running VM changes its design through the service and the program, which is killed in between."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.vm.service_host import ANY, Cli, build_document, reach_guest

from duovisor.client.service import vm_path

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.service_host import ServiceHost

    from duovisor.controlling.images.image import Image

pytestmark = pytest.mark.vm

NAME = "web"
LAYERS = {  # who has the disk's driver
    "monolithic": {"vmm": "hypervisor"},
    "microkernelized": {"vmm": "hypervisor", "storage driver": "controlling"},
}


class SwitchedVm:
    """A VM as the program shows it."""

    def __init__(self, host: ServiceHost) -> None:
        self._host = host
        self._cli = Cli(host, host.directories.state / "t.json")

    def act(self, *arguments: str) -> dict[str, Any]:
        """An action on it, which must succeed; what it came to."""
        (operation,) = json.loads(self._cli.run("vm", arguments[0], NAME, *arguments[1:], "--json"))
        result: dict[str, Any] = operation["result"]
        return result

    def check(self, design: str) -> int:
        """Wanted, shown and found on the host is one design; the pid of its VMM."""
        vm = self._cli.show(NAME)
        assert (vm["record"]["spec"]["design"], vm["status"]["state"]) == (design, "running")
        assert (vm["status"]["restart_needed"], vm["status"]["faults"]) == (False, [])
        anatomy = self._host.get(f"{vm_path(NAME)}/anatomy")
        layers = {each["role"]: each["layer"] for each in anatomy["processes"] if each["role"] != "manager"}
        assert (anatomy["design"], layers) == (design, LAYERS[design])
        pid: int = vm["status"]["pid"]
        return pid


async def test_switched_and_updated_by_a_service_that_is_killed(
    host: ServiceHost, probe_image: Image, scratch: Path
) -> None:
    spec = {**build_document(probe_image), "name": NAME, "disks": [{"path": str(scratch)}]}
    with host.connect() as client:
        client.request("POST", "/v1/vms", {"spec": spec})
        client.follow(client.act(NAME, "start"))
    vm = SwitchedVm(host)
    pids = [vm.check("monolithic")]
    async with reach_guest(host, NAME, probe_image) as guest:
        write = "echo kept > /tmp/mark; echo written | dd of=/dev/vda conv=fsync,sync bs=512"
        wrote = await guest.run(write, timeout_s=120)
        assert wrote.exit == 0
    for design in ("microkernelized", "monolithic", "microkernelized"):
        moved = vm.act("switch", "--design", design)
        assert (moved["new_design"], moved["old_pid"]) == (design, pids[-1])
        pids.append(vm.check(design))
        assert 0 < moved["pause_ms"] < moved["total_ms"]
        if design == "microkernelized":
            assert host.kill_and_restart()["adopted"] == [NAME]
            assert vm.check(design) == pids[-1]
        async with reach_guest(host, NAME, probe_image) as guest:
            read = await guest.run("cat /tmp/mark; head -c 7 /dev/vda", timeout_s=120)
            assert read.output == b"kept\nwritten"
    updated = vm.act("update-vmm")
    assert (updated["old_design"], updated["new_design"]) == ("microkernelized", "microkernelized")
    assert updated["old_version"] == updated["new_version"] != ""
    pids.append(vm.check("microkernelized"))
    assert len(set(pids)) == 5
    events = [
        event for event in host.get("/v1/events?limit=1000")["items"] if event["object"] == f"vm/{NAME}"
    ]
    assert [event["action"] for event in events if event["action"].endswith(("switched", "vmm-updated"))] == [
        "vm.switched", "vm.switched", "vm.switched", "vm.vmm-updated",
    ]  # fmt: skip
    with host.connect() as client:
        client.follow(client.act(NAME, "stop"))
        client.request("DELETE", vm_path(NAME), headers=ANY)
