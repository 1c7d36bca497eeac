"""Bridged network of the two designs, measured in turn in two guests that run side by side: A B B A A B …

The bridge is in a network namespace of the benchmark's own (root, and iperf3 on the host). iperf3 between
host and guest: one and four TCP streams, frames of 64 bytes (UDP, as many as go), and ping's round-trip time.
Prints the median of the ratios microkernelized ÷ monolithic of neighbouring measurements, and their spread.
Goal: ≥ 1.0 for each stream. JSON: ``ratio.{to_guest,from_guest,to_guest_4,from_guest_4}``; ``median`` has
those and ``small_{to,from}_guest`` (packets per second) and ``round_trip`` (times: below 1.0 is faster).
``--kill-every S`` kills the network driver meanwhile, for what of its throughput is left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.network_guest import CARD, Guest, boot_guest
from tests.networks import HOST, enter_network, why_no_namespace

from duovisor.controlling.images.probe import build_probe_image
from duovisor.controlling.images.tools_disk import build_program_disk
from duovisor.directories import find_directories
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.controlling.machine import Machine

PORT = 5201
SMALL_PAYLOAD_BYTES = 18  # a frame of 64 bytes with its checksum
PINGS = 200

Figures = dict[str, dict[Design, list[float]]]


class Job(NamedTuple):
    """One measurement: options of iperf3, and whether packets are counted instead of bits."""

    name: str
    options: tuple[str, ...]
    counts_packets: bool = False


JOBS = (
    Job("to_guest", ()),
    Job("from_guest", ("-R",)),
    Job("to_guest_4", ("-P", "4")),
    Job("from_guest_4", ("-P", "4", "-R")),
    Job("small_to_guest", ("-u", "-b", "0", "-l", str(SMALL_PAYLOAD_BYTES)), True),
    Job("small_from_guest", ("-u", "-b", "0", "-l", str(SMALL_PAYLOAD_BYTES), "-R"), True),
)
STREAMS = ("to_guest", "from_guest", "to_guest_4", "from_guest_4")


async def run_iperf(guest: Guest, job: Job, seconds: float) -> float:
    """Mbit/s, or packets per second that arrived."""
    argv = [
        "iperf3",
        "-c",
        guest.address,
        "-p",
        str(PORT),
        "-t",
        f"{max(1.0, seconds):g}",
        "-J",
        *job.options,
    ]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), seconds + 60)
    report = json.loads(output)
    if "error" in report:
        raise RuntimeError(f"{job.name}: iperf3: {report['error']}")
    end = report["end"]
    if job.counts_packets:
        total = end["sum"]
        return float((total["packets"] - total["lost_packets"]) / total["seconds"])
    return float(end["sum_received"]["bits_per_second"]) / 1e6


async def ping(guest: Guest) -> float:
    """The mean round-trip time from the guest to the host, in milliseconds."""
    printed = await guest.output(f"ping -q -i 0.01 -c {PINGS} {HOST}", timeout_s=120)
    found = re.search(r"= [\d.]+/([\d.]+)/", printed)
    if found is None:
        raise RuntimeError(f"ping: {printed}")
    return float(found[1])


async def kill_drivers(machine: Machine, every_s: float) -> None:
    """Kill the network driver again and again."""
    while True:
        await asyncio.sleep(every_s)
        pid = machine.devices[CARD].describe().pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def measure(rounds: int, seconds: float, kill_every_s: float, programs: Path) -> Figures:
    """Run every job ``rounds`` times in each design."""
    names = [*(job.name for job in JOBS), "round_trip"]
    figures: Figures = {name: {design: [] for design in Design} for name in names}
    async with AsyncExitStack() as stack:
        guests = {
            design: await boot_guest(stack, design, number, programs)
            for number, design in enumerate(Design, start=2)
        }
        for guest in guests.values():
            await guest.serve_iperf(PORT)
        if kill_every_s:
            killing = asyncio.create_task(kill_drivers(guests[Design.MICROKERNELIZED].machine, kill_every_s))
            stack.callback(killing.cancel)
        for number in range(rounds):
            order = list(Design) if number % 2 == 0 else list(reversed(Design))
            for job in JOBS:
                for design in order:
                    figures[job.name][design].append(await run_iperf(guests[design], job, seconds))
                show(number, job.name, figures)
            for design in order:
                figures["round_trip"][design].append(await ping(guests[design]))
            show(number, "round_trip", figures)
    return figures


def show(number: int, name: str, figures: Figures) -> None:
    """One line for the two measurements just made."""
    left, right = (figures[name][design][-1] for design in Design)
    print(f"round {number + 1}: {name:17} {left:11,.2f} {right:11,.2f}  {right / left:.2f}")


def build_document(figures: Figures) -> dict[str, Any]:
    """Ratios with their spread, and the raw figures they come of."""
    ratios = {
        name: [
            right / left
            for left, right in zip(both[Design.MONOLITHIC], both[Design.MICROKERNELIZED], strict=True)
        ]
        for name, both in figures.items()
    }
    medians = {name: round(statistics.median(values), 3) for name, values in ratios.items()}
    return {
        "ratio": {name: medians[name] for name in STREAMS},
        "median": medians,
        "spread": {name: [round(min(values), 3), round(max(values), 3)] for name, values in ratios.items()},
        "figures": {
            name: {str(design): [round(value, 3) for value in values] for design, values in both.items()}
            for name, both in figures.items()
        },
    }


def main() -> None:
    """Parse options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="measurements of each job in each design")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--kill-every", type=float, default=0.0, help="seconds between kills of the driver")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if reason := why_no_namespace():
        raise SystemExit(reason)
    build_probe_image(find_directories(), print)  # while there is a network to fetch it from
    with tempfile.TemporaryDirectory(prefix="duovisor-bench-") as folder, enter_network():
        programs = Path(folder) / "programs.raw"
        build_program_disk(programs, Path(folder), "iperf3", label="programs")
        measured = asyncio.run(measure(options.rounds, options.seconds, options.kill_every, programs))
    document = build_document(measured)
    print("\nmicrokernelized ÷ monolithic, median [min … max]; streams: goal ≥ 1.0")
    for name, (low, high) in document["spread"].items():
        ratio = document["median"][name]
        verdict = ("met" if ratio >= 1 else "missed") if name in STREAMS else ""
        print(f"  {name:17} {ratio:.2f}  [{low:.2f} … {high:.2f}]  {verdict}")
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
