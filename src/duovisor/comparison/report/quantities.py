"""What is compared: each quantity by its place in the samples, with its name, unit and better side.

Quantities of one family are tested together: p-values are adjusted for their number.
"""

from __future__ import annotations

from typing import NamedTuple

from duovisor.comparison.plan import STORAGE_JOBS


class Quantity(NamedTuple):
    """``better`` is ``higher`` or ``lower``; empty for a control, which should not differ."""

    measure: str
    value: str
    title: str
    unit: str
    better: str
    section: str
    family: str

    @property
    def key(self) -> str:
        return f"{self.measure}.{self.value}"


HIGHER, LOWER, CONTROL = "higher", "lower", ""
MAIN, LATENCY, COST = "main", "latency", "cost"

STORAGE_TITLES = {
    "read_4k_qd1": "4 KiB random read, depth 1",
    "read_4k_qd8": "4 KiB random read, depth 8",
    "read_4k_qd32": "4 KiB random read, depth 32",
    "write_4k_qd1": "4 KiB random write, depth 1",
    "write_4k_qd8": "4 KiB random write, depth 8",
    "write_4k_qd32": "4 KiB random write, depth 32",
    "read_1m": "1 MiB sequential read, depth 4",
    "write_1m": "1 MiB sequential write, depth 4",
    "fsync": "4 KiB write and fsync",
}
NETWORK_TITLES = {
    "to_guest": "TCP to the guest",
    "from_guest": "TCP from the guest",
    "small_to_guest": "64-byte frames to the guest",
    "small_from_guest": "64-byte frames from the guest",
}
PERCENTILES = {"p50_us": "half within", "p99_us": "99 % within", "p99_9_us": "99.9 % within"}


def _build_quantities() -> tuple[Quantity, ...]:
    found = [
        Quantity("boot", "vmm_start_s", "start of the VMM", "s", LOWER, "start", MAIN),
        Quantity("boot", "boot_s", "boot to the guest's signal", "s", LOWER, "start", MAIN),
        Quantity("idle", "pss_mib", "memory of its processes, idle", "MiB", LOWER, "resources", MAIN),
        Quantity("idle", "idle_cpu_ms_per_s", "processor time, idle", "ms/s", LOWER, "resources", MAIN),
    ]
    for job in STORAGE_JOBS:
        measure, title = f"storage.{job.name}", STORAGE_TITLES[job.name]
        value, unit = ("iops", "IOPS")
        if job.fsync:
            value, unit = ("fsyncs_per_s", "/s")
        elif job.block == "1m":
            value, unit = ("mib_s", "MiB/s")
        found.append(Quantity(measure, value, title, unit, HIGHER, "storage", MAIN))
        found += [
            Quantity(measure, name, f"{title}: {words}", "µs", LOWER, "storage", LATENCY)
            for name, words in PERCENTILES.items()
        ]
        found.append(Quantity(measure, "cpu_us", f"{title}: cost", "µs each", LOWER, "cost", COST))
    for name, title in NETWORK_TITLES.items():
        small = name.startswith("small")
        value, unit = ("packets_per_s", "/s") if small else ("mbit_s", "Mbit/s")
        cost, cost_unit = ("cpu_us", "µs each") if small else ("cpu_ms_per_mb", "ms/MB")
        measure = f"network.{name}"
        found.append(Quantity(measure, value, title, unit, HIGHER, "network", MAIN))
        found.append(Quantity(measure, cost, f"{title}: cost", cost_unit, LOWER, "cost", COST))
    trip = "network.round_trip"
    found += [
        Quantity(trip, "round_trip_us", "round trip of a ping", "µs", LOWER, "network", MAIN),
        Quantity(trip, "round_trip_p99_us", "round trip: 99 % within", "µs", LOWER, "network", LATENCY),
        Quantity("processor", "steps_per_s", "work of the processor alone", "/s", CONTROL, "processor", MAIN),
    ]
    return tuple(found)


QUANTITIES = _build_quantities()
