"""Sentences about a result, each made of its values: who was better, by how much, or that none was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.comparison.report.quantities import MAIN
from duovisor.comparison.report.result import MICRO, MONO
from duovisor.comparison.report.wording import count, format_p, format_span, format_value, join
from duovisor.comparison.statistics import SAMPLES_MIN, TEST_NAME, Verdict
from duovisor.spec.vm import Accelerator, Design

if TYPE_CHECKING:
    from duovisor.comparison.report.events import EventRow, Seen, Span
    from duovisor.comparison.report.result import Result, Row

SERVICE = "fault.service"


def state(row: Row) -> str:
    """One quantity in one sentence."""
    compared, unit = row.comparison, row.quantity.unit
    both = f"{format_value(compared.first.median, unit)} monolithic, " \
           f"{format_value(compared.second.median, unit)} microkernelized"  # fmt: skip
    if compared.verdict is Verdict.TOO_FEW or compared.adjusted_p is None:
        fewest = min(compared.first.n, compared.second.n)
        return f"{both}; {count(fewest, 'sample')} of each are too few to tell (at least {SAMPLES_MIN})."
    why = f"{TEST_NAME}, {format_p(compared.adjusted_p)}"
    if compared.verdict is Verdict.NO_DIFFERENCE:
        return f"{both}; no difference could be shown ({_describe_ratio(row)}{why})."
    if row.winner is None:
        return f"{both}; a difference, though there should be none ({_describe_ratio(row)}{why})."
    return f"{both}; {row.winner} is better: {describe_margin(row)} ({_describe_ratio(row)}{why})."


def _describe_ratio(row: Row) -> str:
    low, high = row.comparison.ratio_low, row.comparison.ratio_high
    if row.comparison.ratio is None or low is None or high is None:
        return ""
    return f"ratio {row.comparison.ratio:.2f}, 95 % interval {low:.2f} to {high:.2f}; "


def describe_margin(row: Row) -> str:
    """How much better the better design is, against the other: ``12 % more``, ``2.4 times``, ``8 % less``."""
    assert row.winner is not None
    medians = {MONO: row.comparison.first.median, MICRO: row.comparison.second.median}
    (loser,) = {*Design} - {row.winner}
    better, worse = medians[row.winner], medians[loser]
    if row.quantity.better == "higher":
        if worse <= 0 or better / worse >= 2:
            return f"{better / worse:.1f} times as much" if worse > 0 else "all of it"
        return f"{_percent(better / worse - 1)} more"
    return f"{_percent(1 - better / worse)} less"


def _percent(part: float) -> str:
    return f"{part * 100:.1f} %" if part < 0.1 else f"{part * 100:.0f} %"


def judge_rows(rows: list[Row], what: str) -> str:
    """Who won how many of these quantities."""
    if not rows:
        return ""
    if all(row.comparison.verdict is Verdict.TOO_FEW for row in rows):
        return f"There are too few samples to tell the designs apart in {what}."
    won = {design: [row for row in rows if row.winner is design] for design in Design}
    open_ = len(rows) - sum(map(len, won.values()))
    if open_ == len(rows):
        return f"In {what}, no difference between the designs could be shown."
    said = [
        f"the {design} design was better in {len(found)} ({_name_best(found)})"
        for design, found in won.items()
        if found
    ]
    rest = f"; in {open_} no difference could be shown" if open_ else ""
    return f"Of {count(len(rows), 'figure')} of {what}, {join(said)}{rest}."


def _name_best(rows: list[Row]) -> str:
    """The quantity that a design won by most, with how much."""
    best = max(rows, key=lambda row: abs((row.comparison.ratio or 1.0) - 1.0))
    most = "most: " if len(rows) > 1 else ""
    return f"{most}{best.quantity.title}, {describe_margin(best)}"


def judge_control(result: Result) -> str:
    """Whether the control is as it should be."""
    row = result.find_row("processor.steps_per_s")
    if row is None:
        return ""
    match row.comparison.verdict:
        case Verdict.TOO_FEW:
            return f"The control: {state(row)}"
        case Verdict.NO_DIFFERENCE:
            return "The control, work of the guest's processor alone, shows no difference, as it should."
        case _:
            ratio = abs((row.comparison.ratio or 1.0) - 1.0)
            return (
                f"The control, work of the guest's processor alone, differs by {_percent(ratio)}, though "
                "no driver takes part in it: differences of this size in other figures may not be the "
                "design's."
            )


def tell_event(row: EventRow) -> str:
    """One kind of failure or update, design after design."""
    return " ".join(tell_designs(row))


def tell_designs(row: EventRow) -> list[str]:
    """A sentence for each design."""
    return [f"{str(design).capitalize()}: {_tell_seen(row, seen)}" for design, seen in row.seen.items()]


def _tell_seen(row: EventRow, seen: Seen) -> str:
    said = []
    lived, died = seen.survived, seen.tries - seen.survived
    if lived:
        times = "each time" if not died else f"{lived} of {seen.tries} times"
        said.append(f"the guest went on {times} ({count(seen.tries, 'try', 'tries')}){_tell_wait(seen)}")
    if died:
        times = "each time" if not lived else f"{died} of {seen.tries} times"
        said.append(f"the guest died {times} ({count(seen.tries, 'try', 'tries')})")
    if died and seen.normal_s:
        said.append(f"booted again, it was up {_tell_span(seen.normal_s, 's')} after the fault")
    elif row.measure == SERVICE and seen.normal_s:
        said.append(f"the service was back after {_tell_span(seen.normal_s, 's')}")
    if seen.pings_lost and seen.pings_lost.most:
        said.append(f"{seen.pings_lost.median:.0f} pings were lost")
    lost = []
    if died:
        lost.append("everything in the guest's memory")
    if seen.lost_flushed:
        lost.append(f"flushed writes in {count(seen.lost_flushed, 'try', 'tries')}")
    if seen.damaged:
        lost.append(f"the guest met errors in {count(seen.damaged, 'try', 'tries')}")
    if row.section == "faults" or lost:
        said.append(f"lost: {join(lost) if lost else 'nothing'}")
    return "; ".join(said) + "."


def _tell_wait(seen: Seen) -> str:
    """How long it had to wait; a VM whose VMM is replaced stands still, and its clocks with it."""
    if seen.pause_ms:
        wait = (
            f"; its longest wait, by its own clock, {_tell_span(seen.wait_ms, 'ms')}" if seen.wait_ms else ""
        )
        return f"; nobody served it for {_tell_span(seen.pause_ms, 'ms')}{wait}"
    return f", its longest wait {_tell_span(seen.wait_ms, 'ms')}" if seen.wait_ms else ""


def _tell_span(span: Span, unit: str) -> str:
    """The median, and the least and most where they are not the same."""
    median = format_value(span.median, unit)
    if format_value(span.least, unit) == format_value(span.most, unit):
        return median
    return f"{median} ({format_span(span.least, span.most, unit)})"


def summarize_result(result: Result) -> list[str]:
    """The report in a few sentences, the first thing to read."""
    said = [
        judge_rows(result.rows_of("storage", MAIN), "storage"),
        judge_rows(result.rows_of("network", MAIN), "the network"),
        judge_rows([*result.rows_of("start"), *result.rows_of("resources")], "start, memory and idling"),
    ]
    said += [
        f"When the {row.title}: {_contrast(result, row)}" for row in result.events if row.section == "faults"
    ]
    said += [f"When the {row.title}: {_contrast_pauses(row)}" for row in result.events if _has_pauses(row)]
    if result.header.host.accelerator is Accelerator.TCG and result.rows:
        said.append("All this is of emulated processors (TCG): with KVM the figures are others.")
    if is_busy(result):
        said.append("The machine was busy with other work meanwhile: repeat it on a quiet one.")
    return [sentence for sentence in said if sentence]


def is_busy(result: Result) -> bool:
    """Whether more than this comparison wanted the machine's processors, most of the time."""
    return result.median_load > result.header.host.cpus + 1


def _contrast(result: Result, row: EventRow) -> str:
    """What a failure was to each design's guest, in as few words as will do."""
    words = {design: _tell_fate(row, seen, result.quiet_ms.get(design)) for design, seen in row.seen.items()}
    if len(words) == len(Design) and len(set(words.values())) == 1:
        return f"in both designs {next(iter(words.values()))}."
    return "; ".join(f"{design}, {said}" for design, said in words.items()) + "."


def _tell_fate(row: EventRow, seen: Seen, quiet_ms: float | None) -> str:
    if not seen.survived:
        return "the guest died"
    if seen.survived < seen.tries:
        return f"the guest died in {seen.tries - seen.survived} of {seen.tries} tries"
    if seen.wait_ms is None or row.measure == SERVICE:
        return "the guest went on"
    wait = f"the guest went on, its longest wait {format_value(seen.wait_ms.median, 'ms')}"
    if row.measure == "fault.storage_driver" and quiet_ms is not None:
        wait += f" ({format_value(quiet_ms, 'ms')} when nothing fails)"
    return wait


def _has_pauses(row: EventRow) -> bool:
    return row.section == "updates" and all(seen.pause_ms for seen in row.seen.values())


def _contrast_pauses(row: EventRow) -> str:
    told = [f"{format_value(seen.pause_ms.median, 'ms')} {design}"
            for design, seen in row.seen.items() if seen.pause_ms]  # fmt: skip
    return f"nobody serves the guest for {join(told)}."
