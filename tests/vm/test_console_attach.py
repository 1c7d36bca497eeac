"""Several viewers of a real guest's console, which outlast the service."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from tests.vm.service_host import Cli, ServiceHost, build_document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.controlling.images.image import Image

pytestmark = pytest.mark.vm

TIMEOUT_S = 180.0


class Viewer:
    """``duovisor vm console`` on a terminal of its own."""

    def __init__(self, host: ServiceHost, name: str) -> None:
        self.terminal, its = pty.openpty()
        self.program = subprocess.Popen(
            [sys.executable, "-m", "duovisor", "vm", "console", name],
            env={**os.environ, **host.environment}, stdin=its, stdout=its, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(its)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, part: str) -> None:
        """Read until this is there; what comes before it is not looked at again."""
        deadline = time.monotonic() + TIMEOUT_S
        while part not in self.seen:
            assert select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))[0], self.seen
            self.seen += os.read(self.terminal, 4096).decode(errors="replace")
        self.seen = self.seen.partition(part)[2]

    def type_until(self, text: str, part: str) -> None:
        """Type until this is there: what is typed while there is no service is lost, and nothing tells."""
        deadline = time.monotonic() + TIMEOUT_S
        while part not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self.type(text)
            while select.select([self.terminal], [], [], 2.0)[0] and part not in self.seen:
                self.seen += os.read(self.terminal, 4096).decode(errors="replace")

    def close(self) -> None:
        self.type("\x1d")
        assert self.program.wait(TIMEOUT_S) == 0
        os.close(self.terminal)


@contextlib.contextmanager
def viewing(host: ServiceHost, name: str) -> Iterator[Viewer]:
    viewer = Viewer(host, name)
    yield viewer
    viewer.close()


def test_two_viewers_outlast_the_service(host: ServiceHost, probe_image: Image) -> None:
    file = host.directories.state / "t.json"
    file.write_text(json.dumps(build_document(probe_image)))
    cli = Cli(host, file)
    cli.create("web", "monolithic")
    cli.act("web", "start")
    with viewing(host, "web") as first, viewing(host, "web") as second:
        for viewer in (first, second):
            viewer.wait_for("busybox shell")
            viewer.wait_for("probe:")  # what follows differs between busybox versions
        first.type("echo $((6*7))-once\r")
        for viewer in (first, second):
            viewer.wait_for("42-once")
        host.kill_and_restart()
        first.type_until("echo $((6*7+1))-again\r", "43-again")
        second.wait_for("43-again")
        assert "busybox shell" not in first.seen + second.seen
    assert cli.show("web")["status"]["state"] == "running"
    cli.act("web", "stop")
    cli.delete("web")
