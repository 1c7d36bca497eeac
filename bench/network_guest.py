"""A guest on a bridge with programs of the host's in it, such as iperf3: what the network benchmarks boot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.networks import BRIDGE

from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.probe import build_probe_image
from duovisor.controlling.probe_vm import boot_probe
from duovisor.directories import find_directories
from duovisor.hardware.capabilities import read_capabilities
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path

    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.controlling.machine import Machine
    from duovisor.spec.vm import Design

CARD = "nic0"
FOLDER = "/programs"
RUN = f"{FOLDER}/lib/loader --library-path {FOLDER}/lib {FOLDER}/"
PREPARE = f"""
mount_serial() {{
    mkdir -p $2
    for disk in /sys/block/vd*; do
        serial=; read -r serial <$disk/serial
        [ "$serial" = $1 ] && mount -t ext4 -o $3 /dev/${{disk##*/}} $2 && return
    done
}}
killall udhcpc
mount_serial programs {FOLDER} ro || exit
ip addr add ADDRESS/24 dev eth0; ip link set eth0 up
[ -z "EXTRA" ] || mount_serial EXTRA /EXTRA rw
"""


@dataclass(frozen=True)
class Guest:
    """A guest that is up at ``address``."""

    address: str
    probe: ProbeClient

    async def prepare(self, *, extra: bool = False) -> None:
        """Mount the disk of programs, and give the card its address."""
        script = PREPARE.replace("ADDRESS", self.address).replace("EXTRA", "extra" if extra else "")
        await self.output(script)

    async def serve_iperf(self, port: int, options: str = "") -> None:
        """Start iperf3's server, and wait until it listens."""
        await self.output(f"{RUN}iperf3 -s -D -p {port} {options}")
        await self.wait_iperf(port)

    async def wait_iperf(self, port: int) -> None:
        """Wait until the server listens; it begins to anew after each client."""
        listens = f"netstat -ltn | grep -q ':{port} '"
        await self.output(f"until {listens}; do sleep 0.1; done", timeout_s=30)

    async def output(self, command: str, *, timeout_s: float = 60.0) -> str:
        """What a command in the guest prints. Raises ``RuntimeError`` when it fails."""
        done = await self.probe.run(command, timeout_s=timeout_s)
        printed = done.output.decode(errors="replace")
        if done.exit:
            raise RuntimeError(f"in the guest: {command.strip()[:60]}: {printed[-500:]}")
        return printed


@dataclass(frozen=True)
class OwnGuest(Guest):
    """One on a VM of ours."""

    machine: Machine


async def boot_guest(
    stack: AsyncExitStack, design: Design, number: int, programs: Path, extra: Path | None = None
) -> OwnGuest:
    """A guest of this design at 10.77.0.``number``, with a disk of programs.

    ``extra`` is another disk with ext4 on it; the guest has it at ``/extra``.
    """
    directories = find_directories()
    disks = [{"path": str(programs), "serial": "programs", "read_only": True}]
    if extra is not None:
        disks.append({"path": str(extra), "serial": "extra"})
    document = {
        "name": f"bench-{design}",
        "design": design,
        "memory_mib": 256,
        "disks": disks,
        "nics": [{"bridge": BRIDGE}],
    }
    spec = build_spec(add_image(document, build_probe_image(directories, print)))
    machine, probe, boot_s = await stack.enter_async_context(
        boot_probe(spec, read_capabilities(directories.cache), directories)
    )
    guest = OwnGuest(f"10.77.0.{number}", probe, machine)
    await guest.prepare(extra=extra is not None)
    print(f"{design}: up after {boot_s:.2f} s")
    return guest
