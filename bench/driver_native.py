"""What Python costs: our storage driver and ``qemu-storage-daemon``, without a guest, measured in turn.

A front end of our own drives the virtqueues of both on one image in the page cache: A B B A A B … Prints, for
each job, the median of the ratios ours ÷ daemon of neighbouring measurements (goal ≥ 1.0 for each), their
spread, and the processor time for a request in the driver's process. The daemon is set up as is best for each
job; ``--tune`` measures it in every set-up instead. JSON: ``ratio`` and ``cpu_us_per_io``.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.native_drivers import DAEMON_SETUPS, start_daemon, start_ours
from bench.native_load import JOBS, fill_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.native_drivers import Driver
    from bench.native_load import Figure, Job

# The daemon is set up as --tune found it fastest, for each job apart.
BEST_SETUPS = {
    "read_4k_qd1": "threads",
    "read_4k_qd32": "io_uring",
    "write_4k_qd32": "io_uring",
    "read_1m": "threads",
}

OURS, DAEMON = "ours", "qemu-storage-daemon"

# job -> driver -> one figure for each round
Figures = dict[str, dict[str, list["Figure"]]]


def measure(
    pairs: Sequence[tuple[Job, Sequence[Driver]]], rounds: int, seconds: float, title: Callable[[Driver], str]
) -> Figures:
    """Run every job ``rounds`` times on each of its drivers, in turn."""
    figures: Figures = {job.name: {title(driver): [] for driver in drivers} for job, drivers in pairs}
    for number in range(rounds):
        for job, drivers in pairs:
            for driver in drivers if number % 2 == 0 else reversed(drivers):
                figures[job.name][title(driver)].append(driver.measure(job, seconds))
    return figures


def build_document(figures: Figures) -> dict[str, Any]:
    """Ratios with their spread, processor time, and the raw figures they come of."""
    ratios = {
        name: [left.iops / right.iops for left, right in zip(both[OURS], both[DAEMON], strict=True)]
        for name, both in figures.items()
    }
    return {
        "ratio": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
        "spread": {name: [round(min(values), 3), round(max(values), 3)] for name, values in ratios.items()},
        "cpu_us_per_io": _medians(figures, "cpu_us_per_io", 2),
        "iops": _medians(figures, "iops", 0),
        "front_end_waiting": _medians(figures, "waiting", 2),
        "daemon_setup": {name: BEST_SETUPS[name] for name in figures},
    }


def _medians(figures: Figures, field: str, digits: int) -> dict[str, dict[str, float]]:
    return {
        name: {
            driver: round(statistics.median(getattr(value, field) for value in values), digits)
            for driver, values in both.items()
        }
        for name, both in figures.items()
    }


def print_table(figures: Figures) -> None:
    """One line for each job and driver."""
    print(f"{'job':15} {'driver':20} {'IOPS':>9} {'CPU µs':>8}  front end waits")
    for name, both in figures.items():
        for driver, values in both.items():
            iops, cpu_us, waiting = (statistics.median(column) for column in zip(*values, strict=True))
            print(f"{name:15} {driver:20} {iops:9,.0f} {cpu_us:8.2f}  {waiting:6.0%}")


def main() -> None:
    """Parse options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each job and driver")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--tune", action="store_true", help="compare the daemon's set-ups")
    parser.add_argument("--jobs", nargs="+", choices=[job.name for job in JOBS], help="only these")
    parser.add_argument("--package", type=Path, help="folder of the package to run instead of this one")
    parser.add_argument("--option", action="append", default=[], help="a word for our driver's command line")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="where the image is made")
    parser.add_argument("--image-mib", type=int, default=256, help="its size")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and both drivers with us
    jobs = [job for job in JOBS if not options.jobs or job.name in options.jobs]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dv-", dir=options.folder)))
        image = folder / "image"
        fill_image(image, options.image_mib << 20)
        setups = DAEMON_SETUPS if options.tune else {BEST_SETUPS[job.name] for job in jobs}
        daemons = {
            setup: stack.enter_context(start_daemon(setup, image, jobs, folder)) for setup in sorted(setups)
        }
        if options.tune:
            pairs = [(job, tuple(daemons.values())) for job in jobs]
            print_table(measure(pairs, options.rounds, options.seconds, lambda driver: driver.name))
            return
        ours = stack.enter_context(start_ours(image, jobs, options.package, options.option))
        pairs = [(job, (ours, daemons[BEST_SETUPS[job.name]])) for job in jobs]
        figures = measure(
            pairs, options.rounds, options.seconds, lambda driver: OURS if driver is ours else DAEMON
        )
    print_table(figures)
    document = build_document(figures)
    print("\nours ÷ qemu-storage-daemon, median [min … max], goal ≥ 1.0")
    for name, ratio in document["ratio"].items():
        low, high = document["spread"][name]
        print(f"  {name:15} {ratio:.2f}  [{low:.2f} … {high:.2f}]  {'met' if ratio >= 1 else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
