"""From the samples on the disk to everything that the report says, as data; ``report.json`` is this."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from duovisor.comparison.plan import build_steps, is_rare
from duovisor.comparison.report.events import EVENTS, EventRow, build_event
from duovisor.comparison.report.quantities import QUANTITIES, Quantity
from duovisor.comparison.samples import Outcome
from duovisor.comparison.source_lines import load_count
from duovisor.comparison.statistics import TEST_NAME, Comparison, compare_all
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.comparison.samples import Header, Record, SampleStore
    from duovisor.comparison.source_lines import SourceCount

Samples = dict[Design, list[float]]
MONO, MICRO = Design.MONOLITHIC, Design.MICROKERNELIZED


@dataclass(frozen=True)
class Row:
    """One quantity with its samples in each design, in the order of rounds, and what they say."""

    quantity: Quantity
    samples: Samples
    comparison: Comparison

    @property
    def winner(self) -> Design | None:
        """The design that is better by more than the noise, if one is."""
        if self.comparison.verdict != "different" or not self.quantity.better:
            return None
        more = MICRO if self.comparison.second.median > self.comparison.first.median else MONO
        (less,) = {*Design} - {more}
        return more if self.quantity.better == "higher" else less


@dataclass(frozen=True)
class Result:
    """A comparison, whole or as far as it came.

    ``rounds_done``: of figures, ``tries_done``: of failures and updates; ``is_cut``: its time was up before
    all was done.
    """

    header: Header
    rows: tuple[Row, ...]
    events: tuple[EventRow, ...]
    parts: dict[str, dict[Design, dict[str, float]]]
    authority: dict[Design, dict[str, Any]]
    code: dict[Design, dict[str, float]]
    source: SourceCount | None
    quiet_ms: dict[Design, float]
    failures: tuple[Record, ...]
    skipped: tuple[tuple[str, str], ...]
    rounds_done: int
    tries_done: int
    is_cut: bool
    steps_done: int
    steps_total: int
    median_load: float
    took_s: float

    @property
    def is_complete(self) -> bool:
        return self.steps_done == self.steps_total

    def rows_of(self, section: str, family: str | None = None) -> list[Row]:
        """The rows of one section, of one family if it is named."""
        return [
            row
            for row in self.rows
            if row.quantity.section == section and family in (None, row.quantity.family)
        ]

    def find_row(self, key: str) -> Row | None:
        """The row of one quantity, if there are samples of it."""
        return next((row for row in self.rows if row.quantity.key == key), None)


def build_result(store: SampleStore) -> Result:
    """Everything that the samples say; what has no samples in both designs is left out."""
    done = [record for record in store.records if record.outcome is Outcome.DONE]
    loads = sorted(record.load for record in store.records)
    skipped = {
        (record.measure, record.reason) for record in store.records if record.outcome is Outcome.SKIPPED
    }
    steps = build_steps(store.header.scale)
    return Result(
        header=store.header,
        rows=tuple(_build_rows(done)),
        events=tuple(row for kind in EVENTS if (row := build_event(kind, done))),
        parts=_build_parts(done),
        authority={record.design: record.facts for record in done if record.measure == "authority"},
        code={record.design: record.values for record in done if record.measure == "code"},
        source=load_count(store.folder),
        quiet_ms=_find_quiet(done),
        failures=tuple(record for record in store.records if record.outcome is Outcome.FAILED),
        skipped=tuple(sorted(skipped)),
        rounds_done=_count_rounds(store, rare=False),
        tries_done=_count_rounds(store, rare=True),
        is_cut=any(record.outcome is Outcome.CUT for record in store.records),
        steps_done=sum(store.has(step) for step in steps),
        steps_total=len(steps),
        median_load=loads[len(loads) // 2] if loads else 0.0,
        took_s=sum(record.seconds for record in store.records),
    )


def _count_rounds(store: SampleStore, *, rare: bool) -> int:
    """How many rounds of figures were made, or tries of what is rare; begun is enough."""
    made = {record.key for record in store.records if record.outcome is not Outcome.CUT}
    steps = (step for step in build_steps(store.header.scale) if is_rare(step) is rare)
    return len({step.round for step in steps if step.key in made})


def _build_rows(done: Iterable[Record]) -> list[Row]:
    by_place: dict[tuple[str, Design], list[Record]] = {}
    for record in done:
        by_place.setdefault((record.measure, record.design), []).append(record)
    found: list[tuple[Quantity, Samples]] = []
    for quantity in QUANTITIES:
        samples = {
            design: [
                record.values[quantity.value]
                for record in by_place.get((quantity.measure, design), ())
                if quantity.value in record.values
            ]
            for design in Design
        }
        if all(samples.values()):
            found.append((quantity, samples))
    compared: dict[str, Comparison] = {}
    for family in {quantity.family for quantity, _ in found}:
        members = [(quantity, samples) for quantity, samples in found if quantity.family == family]
        verdicts = compare_all([(samples[MONO], samples[MICRO]) for _, samples in members])
        compared |= {quantity.key: each for (quantity, _), each in zip(members, verdicts, strict=True)}
    return [Row(quantity, samples, compared[quantity.key]) for quantity, samples in found]


def _find_quiet(done: Iterable[Record]) -> dict[Design, float]:
    """The median of the longest waits in a load that nothing happened to."""
    found: dict[Design, list[float]] = {}
    for record in done:
        if record.measure == "quiet":
            found.setdefault(record.design, []).append(record.values["longest_wait_ms"])
    return {design: statistics.median(waits) for design, waits in found.items()}


def _build_parts(done: Iterable[Record]) -> dict[str, dict[Design, dict[str, float]]]:
    """Mean of what each role's processes have a part of: ``storage.read_4k_qd1.cpu_us`` → design → role."""
    collected: dict[str, dict[Design, dict[str, list[float]]]] = {}
    counts: dict[tuple[str, Design], int] = {}
    for record in done:
        for value in {name.partition(":")[0] for name in record.values if ":" in name}:
            counts[f"{record.measure}.{value}", record.design] = (
                counts.get((f"{record.measure}.{value}", record.design), 0) + 1
            )
        for name, number in record.values.items():
            value, colon, role = name.partition(":")
            if colon:
                place = collected.setdefault(f"{record.measure}.{value}", {}).setdefault(record.design, {})
                place.setdefault(role, []).append(number)
    return {
        key: {
            design: {role: sum(each) / counts[key, design] for role, each in sorted(roles.items())}
            for design, roles in designs.items()
        }
        for key, designs in collected.items()
    }


def to_document(result: Result, statements: dict[str, str], limits: list[str]) -> dict[str, Any]:
    """The result as JSON."""
    return {
        "format": 1,
        "test": TEST_NAME,
        "header": result.header.model_dump(mode="json"),
        "complete": result.is_complete,
        "quantities": [
            {
                **row.quantity._asdict(),
                "key": row.quantity.key,
                "samples": {str(design): values for design, values in row.samples.items()},
                "monolithic": row.comparison.first._asdict(),
                "microkernelized": row.comparison.second._asdict(),
                "ratio": row.comparison.ratio,
                "ratio_low": row.comparison.ratio_low,
                "ratio_high": row.comparison.ratio_high,
                "p": row.comparison.p,
                "adjusted_p": row.comparison.adjusted_p,
                "verdict": str(row.comparison.verdict),
                "better_design": str(row.winner) if row.winner else None,
                "statement": statements[row.quantity.key],
            }
            for row in result.rows
        ],
        "events": [asdict(row) for row in result.events],
        "parts": {
            key: {str(design): roles for design, roles in designs.items()}
            for key, designs in result.parts.items()
        },
        "authority": {str(design): facts for design, facts in result.authority.items()},
        "code": {str(design): values for design, values in result.code.items()},
        "source": result.source.model_dump() if result.source else None,
        "failures": [record.model_dump(mode="json") for record in result.failures],
        "skipped": [{"measure": measure, "reason": reason} for measure, reason in result.skipped],
        "limits": limits,
    }
