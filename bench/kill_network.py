"""Kills a guest's network driver with -9 every two seconds, and looks whether a connection breaks.

Two guests are on one bridge: the microkernelized one, whose driver is killed, and a monolithic one. One after
the other: iperf3 between the guest and the host and between the guests, both ways; scp of 1 GiB to the guest
and back, with checksums; 10,000 pings to the host and to the other guest. Goal: no stream broken. Frames that
are in flight at a kill may be lost, as on any wire; TCP sends them again, a ping is lost.
JSON: ``broken`` (how many), ``kills``, ``absence_ms`` (how long nobody served, by the host's clock), and
``streams``, ``copies`` and ``pings`` by name.

Needs root, iperf3, and for scp openssh-server on the host (``--mib 0`` does without).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.driver_pauses import summarize
from bench.network_copies import (
    copy_from_guest,
    copy_to_guest,
    find_sshd,
    install_key,
    make_extra_disk,
    make_file,
    run_sshd,
)
from bench.network_guest import CARD, RUN, Guest, boot_guest
from bench.network_streams import Streams, build_ping, parse_pings, parse_streams
from tests.networks import HOST, enter_network, why_no_namespace

from duovisor.controlling.images.errors import GuestTimeoutError
from duovisor.controlling.images.probe import build_probe_image
from duovisor.controlling.images.tools_disk import build_program_disk
from duovisor.controlling.supervision.records import DeviceState
from duovisor.directories import find_directories
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from duovisor.controlling.machine import Machine

STREAM_TIMEOUT_S = 60.0  # beyond its length
SUCCESSOR_S = 30.0
INTERVAL_S = 0.5  # of iperf3's reports
PING_EVERY_S = 0.01
FIRST_PORT = 5201


class Load(NamedTuple):
    """How much of each, and how often the driver is killed."""

    every_s: float
    seconds: float
    mib: int
    pings: int


class Killer:
    """Kills whichever driver of the card serves; ``absences_ms`` has an entry for each one."""

    def __init__(self, machine: Machine, every_s: float) -> None:
        self._device = machine.devices[CARD]
        self._every_s = every_s
        self.absences_ms: list[float] = []

    @property
    def kills(self) -> int:
        return len(self.absences_ms)

    async def run(self) -> None:
        """For ever. Raises ``TimeoutError`` when nobody takes over."""
        while True:
            await asyncio.sleep(self._every_s)
            status = self._device.describe()
            if status.pid is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(status.pid, signal.SIGKILL)
            async with asyncio.timeout(SUCCESSOR_S):
                self.absences_ms.append(await self._wait_successor(status.deaths))

    async def _wait_successor(self, deaths: int) -> float:
        while True:
            status = self._device.describe()
            if status.deaths > deaths and status.state is DeviceState.RUNNING:
                assert status.last_pause_ms is not None
                return status.last_pause_ms
            await asyncio.sleep(0.002)


class Campaign:
    """Runs one job after the other and keeps what came of each."""

    def __init__(self, guest: Guest, other: Guest, load: Load, killer: Killer) -> None:
        self.guest = guest
        self.other = other
        self.load = load
        self.killer = killer
        self._port = FIRST_PORT
        self.results: dict[str, dict[str, Any]] = {"streams": {}, "copies": {}, "pings": {}}

    async def run(self, folder: Path) -> None:
        """All jobs; without ``mib`` no copies."""
        for name, options in (("to_guest", ""), ("from_guest", "-R")):
            await self._keep("streams", name, self._stream_with_host(options))
            await self._keep("streams", f"{name}_4", self._stream_with_host(f"{options} -P 4"))
        await self._keep("streams", "to_other_guest", self._stream_with_guest(""))
        await self._keep("streams", "from_other_guest", self._stream_with_guest("-R"))
        if self.load.mib:
            await self._copy(folder)
        for name, address in (("host", HOST), ("other_guest", self.other.address)):
            await self._keep("pings", name, self._ping(address))

    async def _keep(self, kind: str, name: str, job: Awaitable[NamedTuple]) -> None:
        before = self.killer.kills
        done = await job
        entry = {
            key: round(value, 3) if isinstance(value, float) else value
            for key, value in done._asdict().items()
        }
        self.results[kind][name] = entry | {"kills": self.killer.kills - before}
        print(f"{kind:8} {name:17}", *(f"{key} {value}" for key, value in self.results[kind][name].items()))

    async def _prepare_iperf(self, server: Guest, options: str) -> str:
        """The client's command line, for a server of its own: one that has served refuses a moment."""
        self._port += 1
        await server.serve_iperf(self._port, f"-1 -J -i {INTERVAL_S}")
        where = f"-c {server.address} -p {self._port} -t {self.load.seconds:g}"
        return f"iperf3 {where} -i {INTERVAL_S} -J --get-server-output {options}"

    async def _stream_with_host(self, options: str) -> Streams:
        argv = (await self._prepare_iperf(self.guest, options)).split()
        client = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(self.load.seconds + STREAM_TIMEOUT_S):
                output, _ = await client.communicate()
        except TimeoutError:
            client.kill()
            await client.wait()
            return Streams(f"iperf3 did not end within {STREAM_TIMEOUT_S:g} s of its time")
        return parse_streams(client.returncode or 0, output.decode())

    async def _stream_with_guest(self, options: str) -> Streams:
        """The client is in the guest whose driver is killed: its sending is *to* the other guest."""
        command = RUN + await self._prepare_iperf(self.other, options)
        try:
            done = await self.guest.probe.run(command, timeout_s=self.load.seconds + STREAM_TIMEOUT_S)
        except GuestTimeoutError as error:
            return Streams(error.message)
        return parse_streams(done.exit, done.output.decode(errors="replace"))

    async def _copy(self, folder: Path) -> None:
        source, target = folder / "source", folder / "target"
        digest = make_file(source, self.load.mib)
        async with run_sshd(folder):
            await install_key(self.guest, folder)
            await self._keep("copies", "to_guest", copy_to_guest(self.guest, source, digest))
            await self._keep("copies", "from_guest", copy_from_guest(self.guest, target, digest))

    async def _ping(self, address: str) -> NamedTuple:
        command = build_ping(address, self.load.pings, PING_EVERY_S)
        allowed_s = self.load.pings * PING_EVERY_S * 5 + 60
        return parse_pings(await self.guest.output(command, timeout_s=allowed_s))


async def run_campaign(load: Load, folder: Path) -> dict[str, Any]:
    """Boot both guests, kill, and collect."""
    programs, extra = folder / "programs.raw", folder / "extra.raw"
    names = ("iperf3", *(("ssh", "scp") if load.mib else ()))
    build_program_disk(programs, folder, *names, label="programs")
    if load.mib:
        make_extra_disk(extra, load.mib)
    async with AsyncExitStack() as stack:
        other = await boot_guest(stack, Design.MONOLITHIC, 2, programs)
        guest = await boot_guest(stack, Design.MICROKERNELIZED, 3, programs, extra if load.mib else None)
        killer = Killer(guest.machine, load.every_s)
        campaign = Campaign(guest, other, load, killer)
        async with asyncio.TaskGroup() as group:
            killing = group.create_task(killer.run())
            await campaign.run(folder)
            killing.cancel()
    broken = [
        name
        for kind in ("streams", "copies")
        for name, entry in campaign.results[kind].items()
        if entry["broken"]
    ]
    return {
        "broken": len(broken),
        "kills": killer.kills,
        "absence_ms": summarize(killer.absences_ms),
        **campaign.results,
    }


def print_figures(document: dict[str, Any]) -> None:
    """The figures as a person reads them."""
    absence = document["absence_ms"]
    told = ", ".join(f"{name} {value:.1f}" for name, value in absence.items())
    print(f"\n{document['kills']} kills; no driver for (ms): {told}")
    print(f"broken: {document['broken']}   {'missed' if document['broken'] else 'met'}: goal 0")


def main() -> None:
    """Parse options, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kill-every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each run of iperf3")
    parser.add_argument("--mib", type=int, default=1024, help="size of the file that scp copies; 0: no scp")
    parser.add_argument("--pings", type=int, default=10_000, help="pings to the host, and to the other guest")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if reason := why_no_namespace():
        raise SystemExit(reason)
    if options.mib and find_sshd() is None:
        raise SystemExit("scp needs an sshd: apt-get install openssh-server, or --mib 0")
    build_probe_image(find_directories(), print)  # while there is a network to fetch it from
    load = Load(options.kill_every, options.seconds, options.mib, options.pings)
    with tempfile.TemporaryDirectory(prefix="duovisor-bench-") as folder, enter_network():
        document = asyncio.run(run_campaign(load, Path(folder)))
    print_figures(document)
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    sys.exit(1 if document["broken"] else 0)


if __name__ == "__main__":
    main()
