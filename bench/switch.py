"""Switches guests from one design to the other and back, again and again, and asks what they noticed.

QEMU stops a guest's clocks with its processors, so that no clock in a guest sees a pause. Hence two guests:

* one *counts*, and nothing else; the host watches its memory. How long it did not count is the downtime,
  and ``noise_ms`` the same where nothing was switched.
* one *works*: fio writes blocks with crc32c checksums at depth 16 and reads them back, it pings the host
  every 10 ms, downloads a stream that is checksummed at both ends, and answers 430 questions a second for the
  time of day. ``answer_ms``: how long such a question stood open around a switch (under TCG that is mostly
  the new VMM's translation of the guest's code); ``clock_lag_ms``: how far the guest's clock fell behind.

Bridge and card are in a network namespace of the benchmark's own; without root the second guest has storage
alone. JSON: ``switches``, ``errors``, ``downtime_ms.{p50,p99,max}``, and all of it ``by_memory``.
Goal: p50 ≤ 20 ms, no errors, nothing left behind, no growth with memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.driver_load import GuestLoad
from bench.driver_pauses import summarize
from bench.switch_beat import fill_memory, find_longest, parse_gaps, start_watching, wait_counting, write_disk
from bench.switch_figures import build_document, print_figures, summarize_reports
from bench.switch_guest import MovingGuest, start_network_load
from bench.switch_holdings import settle_holdings
from bench.switch_pauses import Window, count_lost, find_lags, find_waits
from tests.networks import BRIDGE, enter_network, why_no_namespace

from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.probe import PORT_NAME, build_probe_image
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.machine import start_machine
from duovisor.controlling.moving.move import move
from duovisor.controlling.moving.report import Step
from duovisor.controlling.probe_vm import BOOT_TIMEOUT_S, SCRATCH_SERIAL, find_scratch, make_scratch_disk
from duovisor.directories import find_directories
from duovisor.errors import DuovisorError
from duovisor.hardware.capabilities import read_capabilities
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.controlling.machine import Machine
    from duovisor.controlling.moving.report import MoveReport
    from duovisor.hardware.capabilities import HostCapabilities

DISK_MIB = 128
DEPTH = 16
WRITES_PER_S = 500  # a guest that keeps its one processor busy feels every other process of the host
REST_S, SHORT_REST_S = 0.5, 0.1  # between two switches
QUIET_WINDOW_S = 0.3


class Switching(NamedTuple):
    """Reports of all switches that succeeded, when each was, and the words of those that failed."""

    reports: list[MoveReport]
    windows: list[Window]
    failures: list[str]

    def join(self, later: Switching) -> Switching:
        """These and later ones."""
        return Switching(
            self.reports + later.reports, self.windows + later.windows, self.failures + later.failures
        )


async def measure_loaded(
    times: int, memory_mib: int, quiet_s: float, folder: Path, *, is_bridged: bool
) -> dict[str, Any]:
    """Boot a guest, load it, listen while nothing happens, switch it ``times`` times, and ask it."""
    directories = find_directories()
    capabilities = read_capabilities(directories.cache)
    image = build_probe_image(directories, print)
    async with AsyncExitStack() as stack:
        disk = stack.enter_context(make_scratch_disk(directories.state, "switch", DISK_MIB))
        document = {
            "name": "bench-switch",
            "design": Design.MONOLITHIC,
            "memory_mib": memory_mib,
            "disks": [{"path": str(disk), "serial": SCRATCH_SERIAL}],
            "nics": [{"bridge": BRIDGE, "mac": "52:54:00:77:00:02"}] if is_bridged else [],
        }
        spec = build_spec(add_image(document, image))
        machine = await stack.enter_async_context(start_machine(spec, capabilities, directories))
        async with connect_probe(machine.port_path(PORT_NAME)) as probe:
            await probe.wait_booted(BOOT_TIMEOUT_S)
            scratch = find_scratch(probe)
        print(f"{memory_mib} MiB: the guest is up")
        guest = MovingGuest(machine)
        await _fill_memory(guest, memory_mib)
        storage = GuestLoad(guest, scratch, depth=DEPTH, seed=1, writes_per_s=WRITES_PER_S)
        await storage.start()
        network = None
        if is_bridged:
            network = await stack.enter_async_context(start_network_load(guest, folder / "questions"))
        quiet = await _wait_quietly(quiet_s)
        switching = await switch_again_and_again(
            machine, 2, capabilities
        )  # whatever is made once is there then
        before = await settle_holdings(machine, is_bridged=is_bridged)
        rest = await switch_again_and_again(machine, times - 2, capabilities)
        grown = (await settle_holdings(machine, before, is_bridged=is_bridged)).count_more(before)
        switching = switching.join(rest)
        print("\nwaiting for the guest's last round and its verification")
        seen = await network.stop() if network else None
        await storage.stop()
        verdict = await storage.judge()
    errors = {
        "failed": len(switching.failures),
        "storage": verdict.lost + verdict.duplicated + verdict.corrupt + verdict.hung,
        "lost_pings": seen.lost_pings + count_lost(seen.questions) if seen else 0,
        "stream": int(bool(seen and seen.stream_error)),
        "left": sum(map(abs, grown.values())),
    }
    if verdict.complaints and errors["storage"]:
        print(verdict.complaints)
    print(*switching.failures, sep="\n")
    return {
        "errors": errors,
        "grown": grown,
        "clock_lag_ms": summarize(find_lags(seen.questions, switching.windows) if seen else []),
        "answer_ms": summarize(find_waits(seen.questions, switching.windows) if seen else []),
        "answer_noise_ms": summarize(find_waits(seen.questions, quiet) if seen else []),
        **summarize_reports(switching.reports),
        "verified_rounds": verdict.rounds,
        "pings": seen.pings if seen else 0,
        "streamed_bytes": seen.streamed_bytes if seen else 0,
        "questions": len(seen.questions) if seen else 0,
    }


async def measure_processor(times: int, memory_mib: int, quiet_s: float, folder: Path) -> dict[str, Any]:
    """Switch a guest that only counts."""
    directories = find_directories()
    capabilities = read_capabilities(directories.cache)
    disks = (folder / "beat.raw", folder / "idle.raw")
    for disk in disks:
        write_disk(disk)
    document = {"name": "bench-beat", "design": Design.MONOLITHIC, "memory_mib": memory_mib}
    spec = build_spec({**document, "disks": [{"path": str(disk)} for disk in disks]})
    async with start_machine(spec, capabilities, directories) as machine:
        memory, found = machine.place.memory_file, folder / "gaps"
        fill_memory(memory)
        await wait_counting(memory)
        print(f"{memory_mib} MiB: the guest counts")
        async with start_watching(memory, found):
            quiet = await _wait_quietly(quiet_s)
            switching = await switch_again_and_again(machine, times, capabilities, rest_s=SHORT_REST_S)
    print("", *switching.failures, sep="\n")
    gaps = parse_gaps(found.read_text())
    return {
        "errors": {"failed": len(switching.failures)},
        "stops_ms": find_longest(gaps, switching.windows),
        "noise_ms": summarize(find_longest(gaps, quiet)),
        **summarize_reports(switching.reports),
    }


async def _fill_memory(guest: MovingGuest, memory_mib: int) -> None:
    """Have the guest use a third of its memory: what it never touched is not there at all."""
    fill = f"dd if=/dev/zero of=/fill/file bs=1M count={memory_mib // 3}"
    await guest.output(f"mkdir -p /fill && mount -t tmpfs none /fill && {fill}")


async def _wait_quietly(seconds: float) -> list[Window]:
    """Windows, one after the other, in which nothing is switched."""
    windows = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start_ns = time.time_ns()
        await asyncio.sleep(QUIET_WINDOW_S)
        windows.append(Window(start_ns, time.time_ns()))
    return windows


async def switch_again_and_again(
    machine: Machine, times: int, capabilities: HostCapabilities, *, rest_s: float = REST_S
) -> Switching:
    """To the other design and back, ``times`` times in all."""
    done = Switching([], [], [])
    for number in range(1, times + 1):
        await asyncio.sleep(rest_s)
        (other,) = {*Design} - {machine.spec.design}
        entered: dict[Step, int] = {}
        try:
            report = await move(machine, other, capabilities, partial(_note_time, entered))
        except DuovisorError as error:
            done.failures.append(f"switch {number}: {error.message}")
            continue
        done.reports.append(report)
        done.windows.append(Window(entered[Step.PAUSE], entered[Step.END]))
        if number % 10 == 0:
            print(f"\r{number} switches", end="", flush=True)
    return done


def _note_time(entered: dict[Step, int], step: Step) -> None:
    entered[step] = time.time_ns()


def main() -> None:
    """Parse options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="switches of each guest, an even number")
    parser.add_argument("--memory", default="256,1024,4096", help="the guests' memory in MiB")
    parser.add_argument("--quiet-seconds", type=float, default=10.0, help="how long to listen before")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    times, quiet_s = options.times, options.quiet_seconds
    if times < 2 or times % 2:
        parser.error("--times: there and back is an even number")
    if reason := why_no_namespace():
        print(f"the loaded guest has no network: {reason}")
    build_probe_image(find_directories(), print)  # which may need the network that is left behind below
    counted, loaded = {}, {}
    with tempfile.TemporaryDirectory(prefix="duovisor-bench-") as name:
        folder = Path(name)
        with nullcontext() if reason else enter_network():
            for memory in map(int, options.memory.split(",")):
                counted[memory] = asyncio.run(measure_processor(times, memory, quiet_s, folder))
                loaded[memory] = asyncio.run(
                    measure_loaded(times, memory, quiet_s, folder, is_bridged=not reason)
                )
    document = build_document(counted, loaded)
    print_figures(document)
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    sys.exit(1 if document["errors"] else 0)


if __name__ == "__main__":
    main()
