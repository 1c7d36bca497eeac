"""Which charts the report has, made of a result; those without samples are left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.comparison.plan import NETWORK_JOBS, STORAGE_JOBS
from duovisor.comparison.report.charts import Bar, Group, Stack, draw_bars, draw_stacks
from duovisor.comparison.report.quantities import NETWORK_TITLES, STORAGE_TITLES
from duovisor.comparison.report.wording import format_value
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.comparison.report.drawing import Drawing
    from duovisor.comparison.report.events import EventRow
    from duovisor.comparison.report.result import Result, Row

SPARE = ", spare"
MANY_US = 10_000
_STORAGE = (
    ("iops", "4 KiB requests", "IOPS", [job.name for job in STORAGE_JOBS if job.block == "4k"], "iops"),
    (
        "throughput",
        "1 MiB requests",
        "MiB/s",
        [job.name for job in STORAGE_JOBS if job.block == "1m"],
        "mib_s",
    ),
    ("fsync", "Writes that are flushed, one by one", "/s", ["fsync"], "fsyncs_per_s"),
)
LATENCIES = ("p50_us", "p99_us", "p99_9_us")


def build_plots(result: Result) -> dict[str, list[Drawing]]:
    """Section → its charts."""
    storage, network = [], [f"network.{job.name}" for job in NETWORK_JOBS]
    for name, title, unit, jobs, value in _STORAGE:
        storage.append(_bars(result, name, title, unit, [f"storage.{job}.{value}" for job in jobs]))
    storage += [_latencies(result, job.name) for job in STORAGE_JOBS if job.depth in (1, 32)]
    trip = [f"network.round_trip.{value}" for value in ("round_trip_us", "round_trip_p99_us")]
    found = {
        "start": [
            _bars(result, "start", "Start of the VMM", "s", ["boot.vmm_start_s"]),
            _bars(result, "boot", "Boot of the guest", "s", ["boot.boot_s"]),
        ],
        "resources": [
            _stacks(result, "memory", "Memory of its processes, mean", "MiB", ["idle.pss_mib"]),
            _stacks(result, "idle", "Processor time, idle, mean", "ms/s", ["idle.idle_cpu_ms_per_s"]),
        ],
        "storage": storage,
        "network": [
            _bars(result, "tcp", "TCP throughput", "Mbit/s", [f"{each}.mbit_s" for each in network]),
            _bars(result, "frames", "64-byte frames", "/s", [f"{each}.packets_per_s" for each in network]),
            _bars(result, "round-trip", "Round trip of a ping", "µs", trip),
        ],
        "cost": [
            _stacks(result, "cost-storage", "Processor time of a request, mean", "µs", _list_costs()),
            _stacks(
                result, "cost-tcp", "Of a megabyte, mean", "ms", [f"{each}.cpu_ms_per_mb" for each in network]
            ),
            _stacks(result, "cost-frames", "Of a frame, mean", "µs", [f"{each}.cpu_us" for each in network]),
        ],
        "processor": [_bars(result, "control", "The control", "steps/s", ["processor.steps_per_s"])],
        "faults": [_events(result, "faults", "Until it was up or served again", "s")],
        "updates": [_events(result, "updates", "How long nobody served", "ms")],
    }
    return {section: [drawing for drawing in drawings if drawing] for section, drawings in found.items()}


def _list_costs() -> list[str]:
    return [f"storage.{job.name}.cpu_us" for job in STORAGE_JOBS if job.block == "4k" and not job.fsync]


def _bars(result: Result, name: str, title: str, unit: str, keys: Iterable[str]) -> Drawing | None:
    rows = [row for key in keys if (row := result.find_row(key))]
    return _draw(name, title, unit, [_group(row) for row in rows]) if rows else None


def _draw(name: str, title: str, unit: str, groups: list[Group]) -> Drawing:
    """Bars; microseconds become milliseconds where there are many, and so do parts of a second."""
    most = max(bar.value for group in groups for bar in group.bars)
    factor = 1e-3 if unit == "µs" and most >= MANY_US else 1e3 if unit == "s" and most < 1 else 1.0
    if factor != 1.0:
        groups = [group._replace(bars=tuple(_scale(bar, factor) for bar in group.bars)) for group in groups]
        unit = "ms"
    return draw_bars(name, title, unit, groups)


def _scale(bar: Bar, factor: float) -> Bar:
    low, high = (None if edge is None else edge * factor for edge in (bar.low, bar.high))
    samples = tuple(sample * factor for sample in bar.samples)
    return bar._replace(value=bar.value * factor, low=low, high=high, samples=samples)


def _group(row: Row, label: str = "") -> Group:
    bars = []
    for design, summary in zip(Design, (row.comparison.first, row.comparison.second), strict=True):
        low, high = (summary.low, summary.high) if summary.n > 1 else (None, None)
        bars.append(Bar(design, summary.median, low, high, tuple(row.samples[design])))
    return Group(label or row.quantity.title, tuple(bars))


def _latencies(result: Result, job: str) -> Drawing | None:
    rows = [row for value in LATENCIES if (row := result.find_row(f"storage.{job}.{value}"))]
    if not rows:
        return None
    groups = [_group(row, row.quantity.title.rpartition(": ")[2]) for row in rows]
    return _draw(f"latency-{job.replace('_', '-')}", STORAGE_TITLES[job], "µs", groups)


def _stacks(result: Result, name: str, title: str, unit: str, keys: Iterable[str]) -> Drawing | None:
    stacks = []
    for key in keys:
        for design in Design:
            parts = _merge_spares(result.parts.get(key, {}).get(design, {}))
            if parts:
                stacks.append(Stack(_label_of(key), design, parts))
    return draw_stacks(name, title, unit, stacks) if stacks else None


def _merge_spares(roles: dict[str, float]) -> tuple[tuple[str, float], ...]:
    """The VMM first; all the spares, which do next to nothing, as one part."""
    merged: dict[str, float] = {}
    for role, value in sorted(roles.items(), key=lambda each: (each[0] != "vmm", each[0])):
        name = "spare drivers" if role.endswith(SPARE) else "VMM" if role == "vmm" else role
        merged[name] = merged.get(name, 0.0) + value
    return tuple(merged.items())


def _label_of(key: str) -> str:
    measure, _, value = key.rpartition(".")
    name = measure.partition(".")[2]
    return {**STORAGE_TITLES, **NETWORK_TITLES}.get(name, "idle" if measure == "idle" else value)


def _events(result: Result, section: str, title: str, unit: str) -> Drawing | None:
    groups = [group for row in result.events if row.section == section and (group := _event_group(row))]
    return draw_bars(section, title, unit, groups) if groups else None


def _event_group(row: EventRow) -> Group | None:
    bars = []
    for design, seen in row.seen.items():
        span = seen.normal_s if row.section == "faults" else seen.pause_ms
        if span is None:
            continue
        unit = "s" if row.section == "faults" else "ms"
        died = row.section == "faults" and seen.survived < seen.tries
        note = format_value(span.median, unit) + (", died" if died else "")
        bars.append(Bar(design, span.median, span.least, span.most, note=note))
    return Group(row.title, tuple(bars)) if bars else None
