"""A VM's whole life through REST and through the program, the service killed between any two steps."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from tests.vm.service_host import Cli, Rest, build_document, reach_guest
from tests.vm.waiting import find_said, wait_said

from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from tests.vm.service_host import ServiceHost, Way

    from duovisor.controlling.images.image import Image

pytestmark = pytest.mark.vm

OTHER_BOOT = (  # the service, as it would be after the host's next boot
    "import sys; from duovisor.controlling.vms import actions, manager;"
    "actions.read_boot_id = lambda: 'the-next-boot';"
    "from duovisor.controlling.service.__main__ import run; sys.exit(run(manager.VmManager))"
)


@pytest.fixture
def way(request: pytest.FixtureRequest, host: ServiceHost, probe_image: Image) -> Way:
    document = build_document(probe_image)
    if request.param == "rest":
        return Rest(host, document)
    file = host.directories.state / "t.json"
    file.write_text(json.dumps(document))
    return Cli(host, file)


@pytest.mark.parametrize(
    ("way", "design"), [("rest", Design.MICROKERNELIZED), ("cli", Design.MONOLITHIC)], indirect=["way"]
)
async def test_a_life_under_a_service_that_is_killed_after_each_step(
    host: ServiceHost, way: Way, probe_image: Image, design: Design
) -> None:
    way.create("web", design)
    assert host.kill_and_restart()["adopted"] == []
    way.act("web", "start")
    pid = way.show("web")["status"]["pid"]

    def restart(state: str) -> None:
        assert host.kill_and_restart()["adopted"] == ["web"]
        status = way.show("web")["status"]
        assert (status["state"], status["pid"]) == (state, pid)

    host.end()  # the guest has only begun to boot, and nobody reads what it prints
    async with reach_guest(host, "web", probe_image):
        host.start()
    restart("running")
    async with reach_guest(host, "web", probe_image) as guest:
        assert (await guest.run("echo alive", timeout_s=120)).output == b"alive\n"
    log = wait_said(way, "web", "Run /init as init process", 1)
    assert 0 < find_said(log, "Linux version")[0] < find_said(log, "Run /init as init process")[0]
    for action, state in (("pause", "paused"), ("resume", "running"), ("reset", "running")):
        way.act("web", action)
        restart(state)
    way.set_memory("web", 192)
    restart("running")
    assert way.show("web")["status"]["restart_needed"]
    async with reach_guest(host, "web", probe_image):
        way.act("web", "shutdown")
    host.kill_and_restart()
    assert way.show("web")["status"]["state"] == "stopped"
    assert find_said(way.log("web"), "Linux version")
    assert find_said(way.log("web"), "reboot: Power down")
    way.rename("web", "www")
    host.kill_and_restart()
    way.act("www", "start")
    assert host.kill_and_restart()["adopted"] == ["www"]
    way.act("www", "stop")
    host.kill_and_restart()
    assert way.show("www")["status"]["state"] == "stopped"
    way.delete("www")
    host.kill_and_restart()
    assert way.names() == []


async def test_autostart_after_the_hosts_next_boot(host: ServiceHost, probe_image: Image) -> None:
    with host.connect() as client:
        for design in Design:
            spec = {**build_document(probe_image), "name": f"auto-{design}", "design": design}
            client.request("POST", "/v1/vms", {"spec": spec, "autostart": {"enabled": True}})
        client.request("POST", "/v1/vms", {"spec": {"name": "manual", "memory_mib": 32}})
    names = ["auto-monolithic", "auto-microkernelized", "manual"]
    way = Rest(host, {})
    for name in names:
        way.act(name, "start")
    before = {name: way.show(name)["status"]["pid"] for name in names}
    host.lose_power(names)
    host.start((sys.executable, "-P", "-c", OTHER_BOOT))
    assert host.get("/v1/service")["recovery"]["host_restarted"]
    with host.connect() as client:
        for _ in client.events(0):
            if {way.show(name)["status"]["state"] for name in names[:2]} == {"running"}:
                break
    assert way.show("manual")["status"]["pid"] is None
    assert all(way.show(name)["status"]["pid"] not in (None, before[name]) for name in names[:2])
    for name in names:
        if name != "manual":
            way.act(name, "stop")
        way.delete(name)
