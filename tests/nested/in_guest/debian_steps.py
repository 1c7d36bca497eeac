"""Runs inside the nested test's outer guest, as root, with ``./test --long``: Debian's whole image, thin VMM.

Judges nothing, like ``steps.py``; ``test_debian`` on the host says what must be in its reports. The image is
a disk of the outer guest. Nobody says where its kernel is: it is taken from that disk at the start.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from duovisor.client.endpoint import SOCKET_NAME, find_endpoint
from duovisor.client.errors import ServiceUnreachableError
from duovisor.client.service import ServiceClient, vm_path
from duovisor.directories import find_directories

REPORT_PORT = Path("/dev/virtio-ports/org.duovisor.nested")
DISK = "/dev/vdc"
NAME, USER, PASSWORD = "debian", "debian", "secret"
BRIDGE, ADDRESS, MAC = "br-inner", "10.0.8.9", "52:54:00:00:08:09"
# for what hangs: emulated twice on a machine that is busy, its boot alone takes ten minutes
BOOT_TIMEOUT_S, TIMEOUT_S = 2400.0, 600.0
READY = "CLOUD-INIT-IS-DONE"
USER_DATA = f"""#cloud-config
chpasswd: {{expire: false, users: [{{name: {USER}, password: {PASSWORD}, type: text}}]}}
runcmd: [[sh, -c, "echo {READY} >/dev/hvc0"]]
"""
# cloud-init's renderer for networkd knows cards by their address alone
CARD = {"match": {"macaddress": MAC}, "set-name": "lan", "addresses": [f"{ADDRESS}/24"]}
NETWORK = {"version": 2, "ethernets": {"lan": CARD}}
TOLD = (
    "echo $((6*7))-on-$(tty)-of-$(hostname); uname -r; cat /proc/cmdline; cloud-init status; echo THE-END\r"
)
SPEC = {
    "name": NAME, "design": "microkernelized", "cpus": 2, "memory_mib": 640,
    "firmware": "direct-kernel", "kernel": {"disk": 0},
    "disks": [{"path": DISK}, {"cloud_init": {"user": USER, "user_data": USER_DATA, "network": NETWORK}}],
    "nics": [{"bridge": BRIDGE, "mac": MAC}],
}  # fmt: skip


def report(step: str, **facts: Any) -> None:
    """Send one line to the host."""
    with REPORT_PORT.open("a") as port:
        port.write(json.dumps({"step": step, "design": None, **facts}, default=str) + "\n")


class Terminal:
    """``duovisor vm console``, typed at."""

    def __init__(self) -> None:
        self._terminal, its = pty.openpty()
        self._program = subprocess.Popen(
            [sys.executable, "-m", "duovisor", "vm", "console", NAME], stdin=its, stdout=its, stderr=its
        )
        os.close(its)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def read_to(self, part: str, timeout_s: float) -> str:
        """What came up to these words. Raises ``TimeoutError``."""
        end = time.monotonic() + timeout_s
        while part not in self._seen:
            if not select.select([self._terminal], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no {part!r} on the console, but {self._seen[-2000:]!r}")
            self._seen += os.read(self._terminal, 4096).decode(errors="replace")
        before, _, self._seen = self._seen.partition(part)
        return before

    def close(self) -> None:
        self.type("\x1d")
        self._program.wait(TIMEOUT_S)
        os.close(self._terminal)


def live(client: ServiceClient) -> None:
    """Start, first boot, login, sshd's greeting, shutdown."""
    client.request("POST", "/v1/vms", {"spec": SPEC})
    client.follow(client.act(NAME, "start"))
    report("debian-started", status=client.get(vm_path(NAME))["status"])
    terminal = Terminal()
    terminal.read_to(READY, BOOT_TIMEOUT_S)
    terminal.type("\r")
    terminal.read_to("login: ", TIMEOUT_S)
    terminal.type(f"{USER}\r")
    terminal.read_to("assword: ", TIMEOUT_S)
    terminal.type(f"{PASSWORD}\r")
    terminal.read_to("$ ", TIMEOUT_S)
    terminal.type(TOLD)
    terminal.read_to("THE-END", TIMEOUT_S)  # as it was typed
    report("debian-console", said=terminal.read_to("THE-END", TIMEOUT_S))
    terminal.close()
    with socket.create_connection((ADDRESS, 22), TIMEOUT_S) as ssh:
        report("debian-ssh", greeting=ssh.recv(64).decode(errors="replace"))
    shutdown = client.follow(client.act(NAME, "shutdown", {"timeout_s": TIMEOUT_S}))
    left = [path.name for path in (find_directories().state / "kernels").iterdir()]
    report("debian-shutdown", operation=shutdown, kernels=left)


def main() -> None:
    """All steps; what goes wrong is told to the host."""
    client = ServiceClient(find_endpoint(f"unix://{find_directories().runtime / SOCKET_NAME}"))
    argv = (sys.executable, "-m", "duovisor.controlling.service")
    service = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        wait_service(client, service)
        live(client)
    except Exception:  # whatever it is, the host wants to know
        report("debian-failed", traceback=traceback.format_exc())
    finally:
        with contextlib.suppress(Exception):
            client.follow(client.act(NAME, "stop"))
        service.send_signal(signal.SIGTERM)
        service.wait(TIMEOUT_S)


def wait_service(client: ServiceClient, service: subprocess.Popen[bytes]) -> None:
    """Until it answers."""
    end = time.monotonic() + TIMEOUT_S
    while True:
        try:
            client.get("/v1/health")
            return
        except ServiceUnreachableError:
            if time.monotonic() > end or service.poll() is not None:
                raise
        time.sleep(0.2)  # nothing tells when a socket will be there


if __name__ == "__main__":
    main()
