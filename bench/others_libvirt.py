"""libvirt's start and stop of a VM, and its memory, beside ours; a libvirtd of its own in a mount namespace.

The VM is the same: 16 MiB, a boot sector, TCG or KVM as the host has it. Its own folders cover libvirt's, so
that a libvirt which the host runs is not touched. Needs Debian's libvirt-daemon, libvirt-daemon-driver-qemu
(where that is a package) and libvirt-clients.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.others_figures import build_ratios
from bench.service_process import ServiceProcess, build_boot_disk, build_small_vm, read_pss_mib

from duovisor.client.endpoint import Endpoint
from duovisor.client.service import ServiceClient
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT_S = 20.0
COVERED = ("/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
DOMAIN = """<domain type='{kind}'><name>small</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os><on_poweroff>destroy</on_poweroff>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/>
<target dev='vda' bus='virtio'/></disk>
<serial type='file'><source path='{folder}/console.log'/></serial></devices>
<seclabel type='none'/></domain>
"""
ACCOUNTS = {
    "passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n",
    "group": "libvirt-qemu:x:64055:\n",
}
CONFIGURATION = (
    'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nremember_owner = 0\nstdio_handler = "file"\n'
)


def find_missing() -> str:
    """What of libvirt is not installed; empty when all is."""
    return " ".join(name for name in ("libvirtd", "virsh") if shutil.which(name) is None)


class Virsh:
    """One ``virsh`` that takes command after command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, command: str, expected: str) -> float:
        """Give a command and wait for the line that says it is done; returns the seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        begun = time.perf_counter()
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        said = ""
        for line in self._process.stdout:
            said += line
            if expected in line:
                return time.perf_counter() - begun
            if "error:" in line:
                break
        raise SystemExit(f"virsh {command}: {said}")


@contextmanager
def open_libvirt(folder: Path) -> Iterator[tuple[Virsh, int]]:
    """A libvirtd with empty folders, and a virsh on it; yields the latter and the daemon's pid."""
    for name in COVERED:
        Path(name).mkdir(parents=True, exist_ok=True)
    covers = "; ".join(f"mount -t tmpfs none {name}" for name in COVERED)
    (folder / "qemu.conf").write_text(CONFIGURATION)
    for table in ("passwd", "group"):  # libvirtd looks for its user even where it is told another
        known = Path(f"/etc/{table}").read_text()
        (folder / table).write_text(known + ("" if "\nlibvirt-qemu:" in known else ACCOUNTS[table]))
        covers += f"; mount --bind {folder}/{table} /etc/{table}"
    script = f"{covers}; cp {folder}/qemu.conf /etc/libvirt/; exec libvirtd"
    daemon = subprocess.Popen(["unshare", "--mount", "sh", "-ec", script], stderr=(folder / "log").open("w"))
    try:
        inside = ["nsenter", "--mount", "--target", str(daemon.pid)]
        deadline = time.monotonic() + START_TIMEOUT_S
        while subprocess.run([*inside, "virsh", "version"], capture_output=True, check=False).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"libvirtd does not answer: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.1)
        with subprocess.Popen(
            [*inside, "stdbuf", "-oL", "virsh"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as virsh:  # fmt: skip
            yield Virsh(virsh), daemon.pid
            virsh.communicate("quit\n")
    finally:
        daemon.terminate()
        daemon.wait()


def measure_libvirt(*, kvm: bool, rounds: int) -> dict[str, Any]:
    """Start and stop in turn: libvirt's VM, ours in each design; one start of each before does not count."""
    seconds: dict[str, dict[str, list[float]]] = {"start": {}, "stop": {}}
    with tempfile.TemporaryDirectory(prefix="dv-") as name, ServiceProcess() as service:
        folder = Path(name)
        service.start()
        disks = [folder / f"{each}.raw" for each in ("libvirt", *Design)]
        for disk in disks:
            disk.write_bytes(build_boot_disk())
        client = ServiceClient(Endpoint(service.socket))
        for design, disk in zip(Design, disks[1:], strict=True):
            client.request("POST", "/v1/vms", {"spec": build_small_vm(str(design), design, disk)})
        (folder / "small.xml").write_text(
            DOMAIN.format(kind="kvm" if kvm else "qemu", disk=disks[0], folder=folder)
        )
        with open_libvirt(folder) as (virsh, daemon):
            virsh.run(f"define {folder}/small.xml", "defined from")
            for number in range(rounds + 1):
                found = {
                    "libvirt": (virsh.run("start small", "started"), virsh.run("destroy small", "destroyed"))
                }
                for design in Design:
                    found[str(design)] = (act(client, design, "start"), act(client, design, "stop"))
                for who, times in found.items() if number else ():
                    for what, value in zip(seconds, times, strict=True):
                        seconds[what].setdefault(who, []).append(value)
            memory = {
                "libvirt": round(read_pss_mib(daemon), 1),
                "duovisord": round(read_pss_mib(service.pid), 1),
            }
        service.stop()
    figures = {
        what: {who: [round(value * 1e3, 1) for value in values] for who, values in each.items()}
        for what, each in seconds.items()
    }
    pairs = [(str(design), "libvirt") for design in Design]
    return {"ratio": build_ratios(figures, pairs), "figures": figures, "service_pss_mib": memory}


def act(client: ServiceClient, name: str, action: str) -> float:
    """Seconds from the request until the operation has ended. Raises ``ApiError`` when it failed."""
    begun = time.perf_counter()
    client.follow(client.act(name, action))
    return time.perf_counter() - begun
