"""The network of our two designs, of QEMU on a TAP, and of QEMU's user network, measured in turn."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.network import JOBS, PORT, STREAMS, ping, run_iperf
from bench.network_guest import Guest, boot_guest
from bench.others_figures import build_ratios
from bench.others_vmm import Backend, boot_bare
from tests.networks import BRIDGE, run_ip

from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.controlling.images.image import Image
    from duovisor.hardware.capabilities import HostCapabilities

TAP = "others0"
ROUND_TRIP = "round_trip"
_CARD = "virtio-net-pci,netdev=net,mac=52:54:00:00:77:09,romfile="
PAIRS = (
    ("monolithic", "qemu_tap"),
    ("microkernelized", "qemu_tap"),
    ("microkernelized", "qemu_user"),
)


async def measure_network(
    image: Image, capabilities: HostCapabilities, programs: Path, rounds: int, seconds: float
) -> dict[str, Any]:
    """Every stream in every guest, and the round trip, each round in the other order; in a namespace."""
    jobs = [job for job in JOBS if job.name in STREAMS]
    async with AsyncExitStack() as stack:
        guests: dict[str, Guest] = {}
        for number, design in enumerate(Design, start=2):
            guests[str(design)] = await boot_guest(stack, design, number, programs)
        stack.enter_context(open_tap())
        ends = {
            "qemu_tap": ("10.77.0.9", f"tap,id=net,ifname={TAP},script=no,downscript=no,vhost=off"),
            "qemu_user": ("127.0.0.1", f"user,id=net,hostfwd=tcp:127.0.0.1:{PORT}-:{PORT}"),
        }
        disk = f"file={programs},if=none,id=programs,format=raw,read-only=on"
        for name, (address, netdev) in ends.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dv-")))
            backend = Backend(name, ("-netdev", netdev, "-device", _CARD, "-drive", disk))
            options = ("-device", "virtio-blk-pci,drive=programs,serial=programs")
            probe = await stack.enter_async_context(boot_bare(image, capabilities, folder, backend, options))
            guests[name] = Guest(address, probe)
            await Guest("10.0.2.15" if name == "qemu_user" else address, probe).prepare()
            print(f"{name}: up")
        for guest in guests.values():
            await guest.serve_iperf(PORT)
        names = [*(job.name for job in jobs), ROUND_TRIP]
        figures: dict[str, dict[str, list[float]]] = {each: {name: [] for name in guests} for each in names}
        for number in range(rounds):
            for name in list(guests) if number % 2 == 0 else reversed(guests):
                for job in jobs:
                    await guests[name].wait_iperf(PORT)
                    figures[job.name][name].append(round(await run_iperf(guests[name], job, seconds), 1))
                if name != "qemu_user":  # which answers pings to the host by itself, if at all
                    figures[ROUND_TRIP][name].append(round(await ping(guests[name]), 3))
            for each, values in figures.items():
                shown = "  ".join(f"{name} {got[-1]:,.2f}" for name, got in values.items() if got)
                print(f"round {number + 1}: {each:14} {shown}", flush=True)
    return {"ratio": build_ratios(figures, PAIRS), "figures": figures}


@contextmanager
def open_tap() -> Iterator[None]:
    """A TAP on the bridge; it ends with the namespace."""
    run_ip("tuntap", "add", TAP, "mode", "tap", "vnet_hdr")
    run_ip("link", "set", TAP, "master", BRIDGE, "up")
    try:
        yield
    finally:
        run_ip("link", "delete", TAP)
