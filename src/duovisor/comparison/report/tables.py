"""The report's tables as HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from duovisor.comparison.report.figure import join_spares, shorten_access
from duovisor.comparison.report.sentences import state
from duovisor.comparison.report.wording import format_p, format_span, format_value
from duovisor.comparison.statistics import Verdict
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.comparison.report.events import Seen
    from duovisor.comparison.report.result import Result, Row

_CLASS = {Design.MONOLITHIC: "mono", Design.MICROKERNELIZED: "micro"}


def build_table(rows: list[Row]) -> str:
    """Quantities with their medians, spreads and verdicts."""
    head = ("", *(str(design) for design in Design), "ratio", "what can be said")
    classes = ("", "number", "number", "number ratio", "")
    lines = [_row("th", head, classes)]
    for row in rows:
        compared = row.comparison
        cells = [escape(row.quantity.title)]
        for summary in (compared.first, compared.second):
            median = escape(format_value(summary.median, row.quantity.unit))
            spread = escape(format_span(summary.low, summary.high, row.quantity.unit))
            cells.append(f'{median}<span class="spread">{spread}</span>')
        cells.append("" if compared.ratio is None else f"{compared.ratio:.2f}")
        cells.append(_tell_verdict(row))
        lines.append(_row("td", cells, classes))
    return _table(lines, ' class="figures"')


def _tell_verdict(row: Row) -> str:
    compared = row.comparison
    p = escape(f", {format_p(compared.adjusted_p)}") if compared.adjusted_p is not None else ""
    if row.winner is not None:
        return f'<span class="{_CLASS[row.winner]}" title="{escape(state(row))}">{row.winner}</span>{p}'
    if compared.verdict is Verdict.DIFFERENT:
        return f"differs, and should not{p}"
    return f'<span class="open">{compared.verdict}</span>{p}'


def _row(tag: str, cells: Iterable[str], classes: Iterable[str]) -> str:
    inside = "".join(
        f'<{tag} class="{kind}">{cell}</{tag}>' if kind else f"<{tag}>{cell}</{tag}>"
        for cell, kind in zip(cells, classes, strict=True)
    )
    return f"<tr>{inside}</tr>"


def _table(lines: list[str], kind: str = "") -> str:
    """The first line is the head, which is repeated on each sheet of paper."""
    head, *body = lines
    return (
        f'<div class="scroll"><table{kind}>\n<thead>{head}</thead>\n<tbody>\n'
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )


def build_events(result: Result, section: str) -> str:
    """What happened at failures, or at updates."""
    after = "as before after" if section == "faults" else "not served for"
    titles = ("", "design", "the guest", "longest wait", after, "lost")
    lines = [_row("th", titles, [""] * len(titles))]
    for row in result.events:
        if row.section != section:
            continue
        for index, (design, seen) in enumerate(row.seen.items()):
            title = escape(row.title) if index == 0 else ""
            done = f'{design}<span class="spread">{escape(seen.how)}</span>'
            cells = [title, done, *_event_cells(section, seen)]
            lines.append(_row("td", cells, [""] * len(cells)))
    return _table(lines)


def _event_cells(section: str, seen: Seen) -> list[str]:
    died = seen.tries - seen.survived
    fate = "went on" if not died else "died" if not seen.survived else f"died in {died}"
    lost = ["guest memory"] if died else []
    lost += [f"flushed writes ({seen.lost_flushed})"] if seen.lost_flushed else []
    lost += [f"errors in the guest ({seen.damaged})"] if seen.damaged else []
    span = seen.normal_s if section == "faults" else seen.pause_ms
    after = format_value(span.median, "s" if section == "faults" else "ms") if span else "–"
    wait = format_value(seen.wait_ms.median, "ms") if seen.wait_ms else "–"
    tries = f" ({seen.tries} of {seen.tries})" if died in (0, seen.tries) else f" of {seen.tries}"
    said = f'<span class="spread">{escape(seen.said)}</span>' if seen.said else ""
    return [fate + tries + said, wait, after, ", ".join(lost) or "nothing"]


def build_authority(result: Result) -> str:
    """What each process may reach; empty when nobody looked."""
    if not result.authority:
        return ""
    titles = (
        "process",
        "holds",
        "namespaces of its own",
        "capabilities",
        "system call filter",
        "descriptors",
    )
    lines = [_row("th", titles, [""] * 6)]
    for design, facts in result.authority.items():
        lines.append(f'<tr class="section"><th colspan="6">{design}</th></tr>')
        for same in join_spares(facts["processes"]).values():
            lines.append(_row("td", _authority_cells(same[0], spares=len(same) - 1), [""] * 6))
    return (
        "<h2>What each process may reach</h2><p>As the kernel tells it of the running processes. The "
        "manager is this comparison; in daily use it is duovisord, which owns the VMs of a host in both "
        "designs.</p>" + _table(lines)
    )


def _authority_cells(process: dict[str, Any], *, spares: int) -> list[str]:
    authority = process.get("authority") or {}
    held = ", ".join(map(shorten_access, process["host_access"])) or "nothing"
    role = f"{process['layer']}: {process['role']}"
    if process["drivers"] and process["layer"] == "controlling":
        role += f" of {', '.join(process['drivers'])}" + (", and its spare" if spares else "")
    if not authority:
        return [escape(role), escape(held), "?", "?", "?", "?"]
    kinds = ", ".join(f"{number} {kind}" for kind, number in authority["descriptors"].items())
    return [
        escape(role),
        escape(held),
        escape(", ".join(authority["own_namespaces"]) or "none: the host's"),
        str(authority["capabilities"]),
        "yes" if authority["seccomp_filters"] else "no",
        escape(kinds),
    ]


def build_code(result: Result) -> str:
    """How much code each process has; empty when nobody counted."""
    if not result.code:
        return ""
    values = next(iter(result.code.values()))
    lines = [_row("th", ("machine code mapped, MiB", *map(str, Design)), ["", "number", "number"])]
    roles = sorted({name for each in result.code.values() for name in each if name.startswith("code_mib:")})
    for role in reversed(roles):
        cells = [escape(role.partition(":")[2])]
        for design in Design:
            value = result.code.get(design, {}).get(role)
            cells.append("–" if value is None else f"{value:.1f}")
        lines.append(_row("td", cells, ["", "number", "number"]))
    partition = values.get("python_lines:driver partition", 0)
    rest = values.get("python_lines:controlling layer", 0)
    return (
        "<h2>How much code runs where</h2><p>Counted on what is installed here. Each process has its "
        "program and libraries mapped. QEMU is one program with all of its device models in it, whether a "
        "VM uses them or not: nobody can say from here how much of it a VM runs. A driver partition is an "
        f"interpreter and at most {partition:,.0f} lines of Python (channel and all drivers). The "
        "controlling "
        f"layer besides is {rest:,.0f} lines, in both designs.</p>" + _table(lines)
    )
