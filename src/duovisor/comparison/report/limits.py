"""What this run cannot tell, from its own circumstances; and what is true of every such comparison."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from duovisor.comparison.report.quantities import MAIN
from duovisor.comparison.report.sentences import is_busy
from duovisor.comparison.report.wording import count, format_duration, join
from duovisor.comparison.statistics import SAMPLES_MIN, SIGNIFICANT_P, TEST_NAME
from duovisor.spec.vm import Accelerator

if TYPE_CHECKING:
    from duovisor.comparison.report.result import Result

# design.md, 8: said wherever the designs are compared
HONESTY = (
    "On Linux the driver of the physical device stays in the host's kernel in both designs. What moves is "
    "the back end of the virtual device, and the access to the host that it needs.",
    "QEMU is one process for each VM. So a failure of the monolithic hypervisor layer costs one VM here, "
    "and not all of the host, as it would in ESXi.",
    "A driver on the channel can map all memory of its VM. The microkernelized design keeps faults and "
    "access to the host apart; it does not keep the guest's secrets from the guest's own driver.",
    "Both guests ran on QEMU, so that the design alone differs. On KVM the microkernelized design can "
    "also use the thin VMM, which is not compared here.",
    "The disks' images were in the host's page cache: what is compared is the way to the driver and the "
    "driver, not a disk. On a slow disk both designs are as fast as that.",
)


def list_limits(result: Result) -> list[str]:
    """The limits of this run."""
    host = result.header.host
    said = [_describe_accelerator(result)]
    if not result.is_complete:
        said.append(
            f"It is not finished: {result.steps_done} of {result.steps_total} steps are done. The same "
            "command with the same --output goes on with it."
        )
    if result.is_cut:
        said.append(_describe_cut(result))
    if host.cpus < 4:
        said.append(
            f"The machine has {count(host.cpus, 'processor')}: guest, drivers and the programs that "
            "measure share them, which costs a design with more processes more than it would on a larger "
            "machine."
        )
    if is_busy(result):
        said.append(
            f"The machine was busy with other work: half of the time {result.median_load:.1f} or more "
            f"tasks wanted its {count(host.cpus, 'processor')}."
        )
    if spread := _find_spread(result):
        said.append(
            f"Noise: half of the samples of a quantity lie within {spread * 100:.0f} % of its median (the "
            f"median of all quantities).{_describe_intervals(result)} A difference that is smaller than the "
            "noise is not seen with so few samples: where none could be shown, there may be one."
        )
    said.append(
        f"{_count_done(result)}, {format_duration(result.took_s)} in all. Each difference was "
        f"tested with the {TEST_NAME} (two-sided; p adjusted after Benjamini and Hochberg; shown if p ≤ "
        f"{SIGNIFICANT_P:g}). "
        + (
            f"With fewer than {SAMPLES_MIN} samples nothing is tested."
            if result.rounds_done < SAMPLES_MIN
            else ""
        )
    )
    return [sentence.strip() for sentence in said]


def _describe_accelerator(result: Result) -> str:
    host = result.header.host
    if host.accelerator is Accelerator.TCG:
        return (
            "Guests ran on TCG, QEMU's emulation of a processor, for KVM could not be used: "
            f"{host.accelerator_reason}. Emulated processors are many times slower than real ones, which "
            "hides differences between drivers and makes each interrupt and each wait dear. Figures with "
            "KVM are others; repeat it there."
        )
    return f"Guests ran on KVM: {host.accelerator_reason}."


def _count_done(result: Result) -> str:
    """Rounds of figures, or tries where there are no figures."""
    if result.rounds_done or not result.tries_done:
        return count(result.rounds_done, "round")
    return count(result.tries_done, "try", "tries")


def _describe_cut(result: Result) -> str:
    scale = result.header.scale
    made = [f"{result.rounds_done} of {count(scale.rounds, 'round')} of figures"]
    if {"updates", "faults"} & set(scale.sections):
        made.append(
            f"{result.tries_done} of {count(scale.fault_rounds, 'try', 'tries')} of each failure and update"
        )
    return (
        f"It had {format_duration(scale.budget_s or 0.0)}, which was not enough on this machine: it made "
        f"{join(made)}. --minutes gives it more."
    )


def _describe_intervals(result: Result) -> str:
    """How far the ratios may be off: half of the width of their intervals."""
    halves = {
        row.quantity.title: (row.comparison.ratio_high - row.comparison.ratio_low) / 2 / row.comparison.ratio
        for row in result.rows
        if row.quantity.family == MAIN
        and row.comparison.ratio
        and row.comparison.ratio_low is not None
        and row.comparison.ratio_high is not None
    }
    if not halves:
        return ""
    worst = max(halves, key=lambda title: halves[title])
    half = statistics.median(halves.values())
    return (
        " The 95 % interval of a ratio (by resampling; rough, with so few samples) reaches "
        f"{half * 100:.0f} % to either side, in the middle of all, and at worst {halves[worst] * 100:.0f} % "
        f"({worst})."
    )


def _find_spread(result: Result) -> float:
    """The median of the relative spreads; 0 where there is nothing to tell."""
    found = [
        (each.high - each.low) / 2 / each.median
        for row in result.rows
        if row.quantity.family == MAIN
        for each in (row.comparison.first, row.comparison.second)
        if each.n >= SAMPLES_MIN and each.median > 0
    ]
    return statistics.median(found) if found else 0.0
