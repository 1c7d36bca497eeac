"""The report's sections in their order: title, what is said, which quantities and events are in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from duovisor.comparison.report.quantities import COST, MAIN
from duovisor.comparison.report.result import MICRO, MONO
from duovisor.comparison.report.sentences import judge_control, judge_rows, tell_event
from duovisor.comparison.report.wording import format_number, format_value

if TYPE_CHECKING:
    from duovisor.comparison.report.result import Result


class Said(NamedTuple):
    """A paragraph; ``lead`` is what it is about, empty where the section says so."""

    text: str
    lead: str = ""


class Section(NamedTuple):
    """``method``: how it is measured; ``said``: what came of it, of the values alone."""

    key: str
    title: str
    method: str
    said: list[Said]


_METHODS = {
    "start": (
        "Start",
        "From the specification until the VMM runs, and until the guest says over a serial port that it "
        "is up. Each sample is a fresh VM; the first boot of each design is not counted.",
    ),
    "resources": (
        "Memory and idling",
        "Proportional set size (PSS) of each process, without the pages of the guest's own memory, and "
        "the processor time of all of them while the guest does nothing. The "
        "charts are means, for means add up; the tables are medians.",
    ),
    "storage": (
        "Storage",
        "fio in the guest, past the guest's page cache, on a raw image that is in the host's. Each job "
        "runs in both guests before the next one begins.",
    ),
    "network": (
        "Network",
        "iperf3 and pings between the host and each guest, on a bridge of the comparison's own.",
    ),
    "cost": (
        "Where the cost sits",
        "Processor time of each process while a job runs, for one request, frame or megabyte. The VMM's "
        "part includes the guest's own work. The charts are means, the tables medians.",
    ),
    "processor": ("The control", "A loop of the guest's shell, which no driver takes part in."),
    "faults": (
        "What a failure does",
        "A driver fault is SIGSEGV, what a wild pointer raises, sent to the thread that runs the driver: "
        "a thread of QEMU in the monolithic design, the driver's own process in the other. Meanwhile the "
        "guest reads, and writes blocks with checksums that it reads back. A guest that died is booted "
        "again at once; nothing does so by itself. So few tries are not tested: "
        "what was seen is told, the middle one (the least to the most).",
    ),
    "updates": (
        "What an update does",
        "Under the same load: the storage driver is replaced by what is installed now (in the monolithic "
        "design it is a part of the VMM, so the VMM is), and the VM changes its design from the one that is "
        "named. A VM that gets another VMM stands still meanwhile, and its clocks with it: its own longest "
        "wait may be shorter.",
    ),
}
_ROWS = {
    "start": "the start",
    "resources": "memory and idling",
    "storage": "storage",
    "network": "the network",
    "cost": "cost",
}


def build_sections(result: Result) -> list[Section]:
    """Every section of which there is something to say."""
    found = []
    for key, (title, method) in _METHODS.items():
        said = [each for each in _say(result, key) if each.text]
        if said:
            found.append(Section(key, title, method, said))
    return found


def _say(result: Result, key: str) -> list[Said]:
    if key == "processor":
        return [Said(judge_control(result))]
    if key in ("faults", "updates"):
        said = [Said(tell_event(row), row.title) for row in result.events if row.section == key]
        return [*said, Said(_tell_quiet(result))] if said else []
    rows = result.rows_of(key, COST if key == "cost" else MAIN)
    return [Said(judge_rows(rows, _ROWS[key])), Said(_tell_parts(result, key))]


def _tell_parts(result: Result, key: str) -> str:
    """How much of the microkernelized design's cost is not the VMM's."""
    name = {"resources": "idle.pss_mib", "cost": "storage.read_4k_qd32.cpu_us"}.get(key)
    parts = result.parts.get(name or "", {}).get(MICRO)
    if not parts or "vmm" not in parts:
        return ""
    beside, total = sum(value for role, value in parts.items() if role != "vmm"), sum(parts.values())
    what = "of the memory" if key == "resources" else "of the processor time of a 4 KiB read at depth 32"
    unit = "MiB" if key == "resources" else "µs"
    return (
        f"Microkernelized, {format_number(100 * beside / total)} % {what} is outside the VMM "
        f"({format_value(beside, unit)} of {format_value(total, unit)})."
    )


def _tell_quiet(result: Result) -> str:
    """The longest wait without any fault, to which those with one compare."""
    quiet = {design: result.quiet_ms.get(design) for design in (MONO, MICRO)}
    told = [f"{design} {format_value(value, 'ms')}" for design, value in quiet.items() if value is not None]
    if not told:
        return ""
    return f"For comparison, the longest wait of the same load when nothing happened: {', '.join(told)}."
