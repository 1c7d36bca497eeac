"""Storage of the two designs, measured in turn in two guests that run side by side: A B B A A B …

Prints, for each job, the median of the ratios microkernelized ÷ monolithic of neighbouring measurements, and
their spread. Goal: ≥ 1.0 for each. JSON: ``ratio.{read_4k_qd1,read_4k_qd32,randwrite_4k_qd32,read_1m_qd4}``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.controlling.images.probe import build_probe_image
from duovisor.controlling.images.storage_jobs import JOBS, run_job, run_verify
from duovisor.controlling.probe_vm import (
    SCRATCH_MIB,
    boot_probe,
    build_probe_spec,
    find_scratch,
    make_scratch_disk,
)
from duovisor.directories import find_directories
from duovisor.hardware.capabilities import read_capabilities
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.controlling.images.probe_client import ProbeClient

Figures = dict[str, dict[Design, list[float]]]


async def measure(rounds: int, runtime_s: float, cpus: int) -> tuple[Figures, dict[str, str]]:
    """Run every job ``rounds`` times in each design; returns the figures and each design's verdict."""
    directories = find_directories()
    capabilities = read_capabilities(directories.cache)
    image = build_probe_image(directories, print)
    figures: Figures = {job.name: {design: [] for design in Design} for job in JOBS}
    async with AsyncExitStack() as stack:
        guests: dict[Design, ProbeClient] = {}
        for design in Design:
            scratch = stack.enter_context(make_scratch_disk(directories.state, f"bench-{design}"))
            spec = build_probe_spec(f"bench-{design}", design, image, scratch, cpus)
            _, guests[design], boot_s = await stack.enter_async_context(
                boot_probe(spec, capabilities, directories)
            )
            print(f"{design}: up after {boot_s:.2f} s")
        for number in range(rounds):
            order = list(Design) if number % 2 == 0 else list(reversed(Design))
            for job in JOBS:
                for design in order:
                    guest = guests[design]
                    figure = await run_job(
                        guest, find_scratch(guest), job, runtime_s=runtime_s, size_mib=SCRATCH_MIB
                    )
                    figures[job.name][design].append(figure)
                left, right = (figures[job.name][design][-1] for design in Design)
                print(f"round {number + 1}: {job.name:18} {left:9,.0f} {right:9,.0f}  {right / left:.2f}")
        verdicts = {
            str(design): await run_verify(guests[design], find_scratch(guests[design])) for design in Design
        }
    return figures, verdicts


def build_document(figures: Figures, verdicts: dict[str, str]) -> dict[str, Any]:
    """Ratios with their spread, and the raw figures they come of."""
    ratios = {
        name: [
            right / left
            for left, right in zip(both[Design.MONOLITHIC], both[Design.MICROKERNELIZED], strict=True)
        ]
        for name, both in figures.items()
    }
    return {
        "ratio": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
        "spread": {name: [round(min(values), 3), round(max(values), 3)] for name, values in ratios.items()},
        "figures": {
            name: {str(design): [round(value, 1) for value in values] for design, values in both.items()}
            for name, both in figures.items()
        },
        "verify": verdicts,
    }


def main() -> None:
    """Parse options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="measurements of each job in each design")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--cpus", type=int, default=1, help="vCPUs of each guest")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    document = build_document(*asyncio.run(measure(options.rounds, options.seconds, options.cpus)))
    print("\nmicrokernelized ÷ monolithic, median [min … max], goal ≥ 1.0")
    for name, ratio in document["ratio"].items():
        low, high = document["spread"][name]
        print(f"  {name:18} {ratio:.2f}  [{low:.2f} … {high:.2f}]  {'met' if ratio >= 1 else 'missed'}")
    print(f"  crc32c verification: {document['verify']}")
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
