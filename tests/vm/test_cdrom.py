"""CD-ROM drives under real VMMs: booted from, changed, and served by processes that die, in both designs."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.boot_iso import write_boot_iso
from tests.vm.service_host import Cli, Rest
from tests.vm.waiting import wait_said

from duovisor.controlling.description import FILE

if TYPE_CHECKING:
    from tests.vm.service_host import ServiceHost

pytestmark = pytest.mark.vm

NAME = "media"


class Drive:
    """A VM that starts from its CD-ROM at each reset."""

    def __init__(self, host: ServiceHost) -> None:
        self.host = host
        self.cli = Cli(host, host.directories.state / "t.json")
        self.rest = Rest(host, {})
        self._boots: dict[str, int] = {}

    def boot(self, text: str, action: str = "reset") -> None:
        """Start or reset it, and see its medium say that."""
        self._boots[text] = self._boots.get(text, 0) + 1
        self.rest.act(NAME, action)
        wait_said(self.rest, NAME, text, self._boots[text])

    def processes(self, role: str) -> list[dict[str, Any]]:
        return [each for each in self.rest.show(NAME)["status"]["processes"] if each["role"] == role]


def interrupt_change(host: ServiceHost, path: str) -> None:
    """The service is killed when it has written down what is to be in the drive, and done nothing yet."""
    host.end()
    file = host.directories.vms / NAME / FILE
    left = json.loads(file.read_text())
    left["current"] |= {"changing_drive": 0}
    left["current"]["spec"]["cdroms"][0]["path"] = path
    file.write_text(json.dumps(left))
    host.start()
    assert host.get("/v1/service")["recovery"]["problems"] == []


def test_media_are_booted_changed_and_served(host: ServiceHost) -> None:
    folder = host.directories.state
    first = write_boot_iso(folder / "first.iso", "this is the first disc")
    second = write_boot_iso(folder / "second.iso", "and this the second")
    drive = Drive(host)
    drive.cli.run(
        "vm", "create", "--name", NAME, "--memory", "32M", "--design", "microkernelized", "--vmm", "qemu",
        "--cdrom", str(first), "--cdrom", "empty", "--boot-order", "cdrom",
    )  # fmt: skip
    drive.boot("first disc", "start")
    drive.cli.run("vm", "cdrom", "insert", NAME, str(second))
    drive.boot("the second")

    (server,) = drive.processes("media server")
    os.kill(server["pid"], signal.SIGKILL)
    drive.boot("the second")
    assert drive.processes("media server")[0]["pid"] != server["pid"]

    assert host.kill_and_restart()["adopted"] == [NAME]
    interrupt_change(host, str(first))
    drive.boot("first disc")
    interrupt_change(host, str(second))
    drive.boot("the second")
    status = drive.rest.show(NAME)["status"]
    assert (status["restart_needed"], status["faults"]) == (False, [])

    drive.cli.run("vm", "switch", NAME, "--design", "monolithic")
    assert drive.processes("media server") == []
    drive.boot("the second")
    drive.cli.run("vm", "cdrom", "eject", NAME)
    drive.cli.run("vm", "cdrom", "insert", NAME, str(first), "--drive", "1")
    drive.boot("first disc")
    spec = json.loads(drive.cli.run("vm", "show", NAME, "--json"))["record"]["spec"]
    assert [each["path"] for each in spec["cdroms"]] == ["", str(first)]
    drive.rest.act(NAME, "stop")
    drive.rest.delete(NAME)
