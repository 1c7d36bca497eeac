"""Failures and updates: not a test of many samples, but what happened each time."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.comparison.samples import Record


class EventKind(NamedTuple):
    """``section`` is ``faults`` or ``updates``."""

    measure: str
    section: str
    title: str


EVENTS = (
    EventKind("fault.storage_driver", "faults", "storage driver fails"),
    EventKind("fault.network_driver", "faults", "network driver fails"),
    EventKind("fault.vmm", "faults", "VMM is killed"),
    EventKind("fault.service", "faults", "management service is killed"),
    EventKind("update.driver", "updates", "storage driver is replaced"),
    EventKind("update.design", "updates", "VM changes to the other design"),
)


class Span(NamedTuple):
    """Median, least and most of what was seen."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Seen:
    """What one design's guest met: in how many tries it lived on, and what that was like.

    ``wait_ms``: its longest wait, for those tries it lived through; ``normal_s``: until all was as
    before. ``damaged``: tries in which the guest met an error or found damage; ``lost_flushed``: in which a
    write that had been flushed was gone.
    """

    tries: int
    survived: int
    wait_ms: Span | None
    normal_s: Span | None
    damaged: int
    lost_flushed: int
    pings_lost: Span | None
    pause_ms: Span | None
    how: str
    said: str


@dataclass(frozen=True)
class EventRow:
    """One kind of failure or update in both designs; a design may be missing."""

    measure: str
    section: str
    title: str
    seen: dict[Design, Seen]


def build_event(kind: EventKind, done: Sequence[Record]) -> EventRow | None:
    """What happened in each try; None when there was none."""
    seen = {}
    for design in Design:
        records = [each for each in done if each.measure == kind.measure and each.design is design]
        if records:
            seen[design] = _look(records)
    return EventRow(kind.measure, kind.section, kind.title, seen) if seen else None


def _look(records: list[Record]) -> Seen:
    lived = [record for record in records if record.values.get("survived")]
    died = [record for record in records if not record.values.get("survived")]
    return Seen(
        tries=len(records),
        survived=len(lived),
        wait_ms=_span(lived, "longest_wait_ms"),
        normal_s=_span(records, "until_normal_s"),
        damaged=sum(bool(record.values.get("errors")) for record in records),
        lost_flushed=sum(bool(record.values.get("flushed_writes_lost")) for record in records),
        pings_lost=_span(lived, "pings_lost"),
        pause_ms=_span(lived, "pause_ms"),
        how=_strip_numbers(str(records[0].facts.get("hurt", ""))),
        said=str(died[0].facts.get("said", "")) if died else "",
    )


def _span(records: list[Record], name: str) -> Span | None:
    values = [record.values[name] for record in records if name in record.values]
    return Span(statistics.median(values), min(values), max(values)) if values else None


def _strip_numbers(text: str) -> str:
    """Without the process ids, which differ in each try."""
    return " ".join(word for word in text.split() if not word.isdigit())
