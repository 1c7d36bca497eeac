"""Kills the storage driver of a busy guest with -9, again and again, and asks the guest what it noticed.

In the guest fio writes blocks with crc32c checksums at the wanted depth and reads them back, so that what was
lost, done twice or damaged shows; a reader beside it, one request at a time, feels each pause. The same
reader's longest reads at moments when nothing is killed are the noise. Goals: nothing lost, duplicated or
corrupt at 1,000 kills and depth 32; pauses of p50 ≤ 20 ms, p99 ≤ 100 ms.
JSON: ``kills``, ``lost``, ``duplicated``, ``corrupt``, ``pause_ms.{p50,p99,max}``; likewise ``noise_ms``, and
``absence_ms``: from the end of a driver until its successor served, by the host's clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.driver_load import GuestLoad
from bench.driver_pauses import WINDOW_S, find_pauses, summarize

from duovisor import process
from duovisor.controlling.images.probe import build_probe_image
from duovisor.controlling.probe_vm import boot_probe, build_probe_spec, find_scratch, make_scratch_disk
from duovisor.controlling.supervision.records import DeviceState
from duovisor.directories import find_directories
from duovisor.hardware.capabilities import read_capabilities
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.spec.vm import Design, DiskFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.controlling.machine import Machine
    from duovisor.directories import Directories

DISK_MIB = 128
DEVICE = disk_socket(0)
LIFE_S = (0.3, 1.1)  # how long a driver serves before it is killed
SUCCESSOR_S = 30.0
SETTLE_S = 3.0
GOALS_MS = {"p50": 20.0, "p99": 100.0}


async def measure(
    kills: int, depth: int, disk_format: DiskFormat, noise_s: float, seed: int
) -> dict[str, Any]:
    """Boot, load, listen to the noise, kill, and ask the guest."""
    directories = find_directories()
    capabilities = read_capabilities(directories.cache)
    image = build_probe_image(directories, print)
    with make_disk(directories, disk_format) as disk:
        spec = build_probe_spec("kill-drivers", Design.MICROKERNELIZED, image, disk)
        if disk_format is not DiskFormat.RAW:
            first, *others = spec.disks
            disks = (first.model_copy(update={"format": disk_format}), *others)
            spec = spec.model_copy(update={"disks": disks})
        async with boot_probe(spec, capabilities, directories) as (machine, guest, boot_s):
            print(f"the guest is up after {boot_s:.1f} s; seed {seed}")
            load = GuestLoad(guest, find_scratch(guest), depth=depth, seed=seed)
            await load.start()
            await asyncio.sleep(SETTLE_S)
            quiet = await wait_quietly(noise_s)
            killing = await kill_again_and_again(machine, kills, random.Random(seed))
            await asyncio.sleep(SETTLE_S)
            print("\nwaiting for the guest's last round and its verification")
            reads = await load.stop()
            verdict = await load.judge()
    on_guest = load.clock.to_guest
    document = {
        "kills": len(killing.moments),
        "depth": depth,
        "format": str(disk_format),
        "seed": seed,
        "lost": verdict.lost + verdict.hung,
        "duplicated": verdict.duplicated,
        "corrupt": verdict.corrupt,
        "pause_ms": summarize(find_pauses(reads, [on_guest(moment) for moment in killing.moments])),
        "noise_ms": summarize(find_pauses(reads, [on_guest(moment) for moment in quiet])),
        "absence_ms": summarize(killing.absences_ms),
        "rounds": verdict.rounds,
    }
    if document["lost"] or document["duplicated"] or document["corrupt"]:
        print(verdict.complaints)
    return document


@contextmanager
def make_disk(directories: Directories, disk_format: DiskFormat) -> Iterator[Path]:
    """A scratch disk: raw and full of data, or of another format and empty, so that it has to grow."""
    with ExitStack() as stack:
        if disk_format is DiskFormat.RAW:
            yield stack.enter_context(make_scratch_disk(directories.state, "kill-drivers", DISK_MIB))
            return
        directories.state.mkdir(parents=True, exist_ok=True)
        path = directories.state / f"kill-drivers-{os.getpid()}.{disk_format}"
        stack.callback(path.unlink, missing_ok=True)
        process.run(["qemu-img", "create", "-q", "-f", str(disk_format), str(path), f"{DISK_MIB}M"])
        yield path
        print(process.run(["qemu-img", "check", str(path)]).strip())


async def wait_quietly(seconds: float) -> list[float]:
    """Moments, one after the other, at which nothing is killed."""
    moments = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        moments.append(time.monotonic())
        await asyncio.sleep(2 * WINDOW_S)
    return moments


class Killing(NamedTuple):
    """When each kill was, in seconds of our clock, and for how long nobody served then, in milliseconds."""

    moments: list[float]
    absences_ms: list[float]


async def kill_again_and_again(machine: Machine, kills: int, moments_of: random.Random) -> Killing:
    """Kill whichever driver serves, ``kills`` times."""
    done = Killing([], [])
    for number in range(1, kills + 1):
        await asyncio.sleep(moments_of.uniform(*LIFE_S))
        status = machine.devices[DEVICE].describe()
        assert status.pid is not None
        done.moments.append(time.monotonic())
        os.kill(status.pid, signal.SIGKILL)
        done.absences_ms.append(await wait_successor(machine, status.deaths))
        if number % 50 == 0 or number == kills:
            print(f"\r{number} kills", end="", flush=True)
    return done


async def wait_successor(machine: Machine, deaths: int) -> float:
    """Wait until the disk is served again; how long it was not, in milliseconds. Raises ``TimeoutError``."""
    async with asyncio.timeout(SUCCESSOR_S):
        while True:
            status = machine.devices[DEVICE].describe()
            if status.deaths > deaths and status.state is DeviceState.RUNNING:
                assert status.last_pause_ms is not None
                return status.last_pause_ms
            await asyncio.sleep(0.002)


def print_figures(document: dict[str, Any]) -> None:
    """The figures as a person reads them."""
    print(
        f"{document['kills']} kills, depth {document['depth']}, {document['format']}, seed {document['seed']}"
    )
    for name in ("lost", "duplicated", "corrupt"):
        print(f"  {name:10} {document[name]:6}     {'met' if not document[name] else 'missed'}: goal 0")
    for name, value in document["pause_ms"].items():
        noise = document["noise_ms"][name]
        goal = GOALS_MS.get(name)
        told = "" if goal is None else f"   {'met' if value <= goal else 'missed'}: goal ≤ {goal:g}"
        absence = document["absence_ms"][name]
        print(f"  pause {name:4} {value:8.1f} ms  (without kills {noise:.1f}; no driver {absence:.1f}){told}")


def main() -> None:
    """Parse options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how often the driver is killed")
    parser.add_argument("--depth", type=int, default=32, help="requests in flight")
    parser.add_argument("--format", type=DiskFormat, default=DiskFormat.RAW, choices=list(DiskFormat))
    parser.add_argument("--noise-seconds", type=float, default=30.0, help="how long to listen before")
    parser.add_argument("--seed", type=int, default=None, help="repeat the moments of an earlier run")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 30) if options.seed is None else options.seed
    document = asyncio.run(measure(options.kills, options.depth, options.format, options.noise_seconds, seed))
    print_figures(document)
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    wrong = document["lost"] + document["duplicated"] + document["corrupt"]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
