"""The report's tables as HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from duovisor.comparison.report.figure import join_spares, shorten_access
from duovisor.comparison.report.sentences import SERVICE, describe_margin, state
from duovisor.comparison.report.wording import count, format_p, format_span, format_value, join
from duovisor.comparison.source_lines import BLOCK, DEVICES, NETWORK, PROCESSORS, REST
from duovisor.comparison.statistics import Verdict
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.comparison.report.events import EventRow, Seen, Span
    from duovisor.comparison.report.result import Result, Row
    from duovisor.comparison.statistics import Comparison

_CLASS = {Design.MONOLITHIC: "mono", Design.MICROKERNELIZED: "micro"}

SOURCE_PARTS = {
    DEVICES: "device models",
    BLOCK: "block layer",
    NETWORK: "network back ends",
    PROCESSORS: "processors and their emulation",
    REST: "everything else",
}
PYTHON_PARTS = {
    "driver partition": "each driver: Python of the channel and all drivers, at most",
    "controlling layer": "manager: Python of everything else",
}


def build_table(rows: list[Row]) -> str:
    """Quantities with their medians, spreads and verdicts."""
    head = ("", *(str(design) for design in Design), "ratio", "better")
    classes = ("", "number", "number", "number ratio", "")
    lines = [_row("th", head, classes)]
    for row in rows:
        compared = row.comparison
        cells = [escape(row.quantity.title)]
        for summary in (compared.first, compared.second):
            median = escape(format_value(summary.median, row.quantity.unit))
            spread = escape(format_span(summary.low, summary.high, row.quantity.unit, bare=True))
            cells.append(f'{median}<span class="spread">{spread}</span>')
        cells.append(_tell_ratio(compared))
        cells.append(_tell_verdict(row))
        lines.append(_row("td", cells, classes))
    return _table(lines, ' class="figures"')


def _tell_ratio(compared: Comparison) -> str:
    if compared.ratio is None:
        return ""
    low, high = compared.ratio_low, compared.ratio_high
    spread = "" if low is None or high is None else f'<span class="spread">{low:.2f} … {high:.2f}</span>'
    return f"{compared.ratio:.2f}{spread}"


def _tell_verdict(row: Row) -> str:
    compared = row.comparison
    p = ""
    if compared.adjusted_p is not None:
        p = f'<span class="spread">{escape(format_p(compared.adjusted_p)).replace(" ", "&nbsp;")}</span>'
    if row.winner is not None:
        margin = escape(describe_margin(row)).replace(" %", "&nbsp;%")
        name = f'<span class="{_CLASS[row.winner]}" title="{escape(state(row))}">{row.winner}</span>'
        return f"{name}, {margin}{p}"
    if compared.verdict is Verdict.DIFFERENT:
        return f"differs, and should not{p}"
    return f'<span class="open">{compared.verdict}</span>{p}'


def _row(tag: str, cells: Iterable[str], classes: Iterable[str]) -> str:
    inside = "".join(
        f'<{tag} class="{kind}">{cell}</{tag}>' if kind else f"<{tag}>{cell}</{tag}>"
        for cell, kind in zip(cells, classes, strict=True)
    )
    return f"<tr>{inside}</tr>"


def _labelled(cells: Iterable[str], titles: Iterable[str]) -> str:
    """A row whose cells know their column's title, for a phone, where they stand one below the other."""
    inside = "".join(
        f'<td data-title="{escape(title)}">{cell}</td>' for cell, title in zip(cells, titles, strict=True)
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
    after = "up or back after" if section == "faults" else "not served for"
    titles = ("", "design", "the guest", "longest wait", after, "lost")
    lines = [_row("th", titles, [""] * len(titles))]
    for row in result.events:
        if row.section != section:
            continue
        for index, (design, seen) in enumerate(row.seen.items()):
            title = escape(row.title) if index == 0 else ""
            done = f'{design}<span class="spread">{escape(seen.how)}</span>'
            cells = [title, done, *_event_cells(row, seen)]
            lines.append(_labelled(cells, titles))
    return _table(lines, ' class="cards"')


def _event_cells(row: EventRow, seen: Seen) -> list[str]:
    died = seen.tries - seen.survived
    fate = "went on" if not died else "died" if not seen.survived else f"died in {died}"
    lost = ["guest memory"] if died else []
    lost += [f"flushed writes ({seen.lost_flushed})"] if seen.lost_flushed else []
    lost += [f"errors in the guest ({seen.damaged})"] if seen.damaged else []
    after = _tell_seen(seen.normal_s, "s") if row.section == "faults" else _tell_seen(seen.pause_ms, "ms")
    if row.section == "faults" and not died and row.measure != SERVICE:
        after = "after that wait"
    tries = f" ({seen.tries} of {seen.tries})" if died in (0, seen.tries) else f" of {seen.tries}"
    said = f'<span class="spread">{escape(seen.said)}</span>' if seen.said else ""
    return [fate + tries + said, _tell_seen(seen.wait_ms, "ms"), after, ", ".join(lost) or "nothing"]


def _tell_seen(span: Span | None, unit: str) -> str:
    """The median, and below it the least and most."""
    if span is None:
        return "–"
    spread = escape(format_span(span.least, span.most, unit, bare=True))
    return f'{format_value(span.median, unit)}<span class="spread">{spread}</span>'


def build_authority(result: Result) -> str:
    """What each process may reach; empty when nobody looked."""
    if not result.authority:
        return ""
    titles = (
        "process",
        "holds",
        "namespaces",
        "capabilities",
        "system call filter",
        "descriptors",
    )
    lines = [_row("th", titles, [""] * 6)]
    for design, facts in result.authority.items():
        lines.append(f'<tr class="section"><th colspan="6">{design}</th></tr>')
        for same in join_spares(facts["processes"]).values():
            lines.append(_labelled(_authority_cells(same[0], spares=len(same) - 1), titles))
    return (
        "<h2>What each process may reach</h2><p>As the kernel tells it of the running processes. The "
        "manager is this comparison; in daily use it is duovisord, which owns the VMs of a host in both "
        "designs. The monolithic VMM runs as who started it, confined by QEMU's own filter alone; libvirt, "
        "for one, gives it a user and a security label. But what its drivers need, it must hold.</p>"
        + _table(lines, ' class="cards"')
    )


def _authority_cells(process: dict[str, Any], *, spares: int) -> list[str]:
    authority = process.get("authority") or {}
    held = ", ".join(map(shorten_access, process["host_access"])) or "nothing"
    role = "VMM" if process["role"] == "vmm" else process["role"]
    if process["drivers"] and process["layer"] == "controlling":
        role += f" of {', '.join(process['drivers'])}" + (", and its spare" if spares else "")
    role = f'{escape(role)}<span class="spread">{escape(process["layer"])} layer</span>'
    if not authority:
        return [role, escape(held), "?", "?", "?", "?"]
    own = ", ".join(authority["own_namespaces"])
    kinds = ", ".join(count(number, kind) for kind, number in authority["descriptors"].items())
    return [
        role,
        escape(held),
        escape(f"its own: {own}" if own else "the host's"),
        str(authority["capabilities"]),
        "yes" if authority["seccomp_filters"] else "no",
        escape(kinds),
    ]


def build_code(result: Result) -> str:
    """How much code each process has; empty when nobody counted."""
    if not result.code:
        return ""
    classes = ["", "number", "number"]
    lines = [_row("th", ("", *map(str, Design)), classes)]
    roles = sorted({name for each in result.code.values() for name in each if name.startswith("code_mib:")})
    for role in reversed(roles):
        name = role.partition(":")[2].replace("vmm", "VMM")
        cells = [_format_count(result.code.get(design, {}).get(role), "MiB") for design in Design]
        lines.append(_row("td", [f"{escape(name)}: machine code mapped", *cells], classes))
    for part, title in PYTHON_PARTS.items():
        counts = [result.code.get(design, {}).get(f"python_lines:{part}") for design in Design]
        if part == "driver partition":
            counts = [None, counts[-1]]  # the monolithic design has none
        cells = [_format_count(each, "lines") for each in counts]
        lines.append(_row("td", [title, *cells], classes))
    return (
        "<h2>How much code runs where</h2><p>Counted on what is installed here. Each process has its "
        "program and libraries mapped: of QEMU and of the interpreter that is machine code and not lines, "
        "for programs are installed without their source. QEMU is one program with all of its device models "
        "in it, whether a VM uses them or not, so nobody can say from here how much of it a VM runs. Lines "
        f"are Python of duovisor, without empty ones and comments.</p>{_table(lines)}{_tell_source(result)}"
    )


def _tell_source(result: Result) -> str:
    """What QEMU's source says, if it was counted."""
    if result.source is None:
        return '<p class="small"><code>--count-source</code> downloads QEMU\'s source and counts it, too.</p>'
    lines = result.source.lines
    parts = join([f"{title} {lines[kind]:,}" for kind, title in SOURCE_PARTS.items() if kind in lines])
    unused = lines.get(BLOCK, 0) + lines.get(NETWORK, 0)
    return (
        f"<p>The source of this QEMU ({escape(result.source.package)}, before the distribution's patches) "
        f"has {sum(lines.values()):,} lines of C that can be in the program of an x86 host, without empty "
        f"ones and comments: {parts}. In the monolithic design all of it is in the hypervisor layer. In the "
        "microkernelized one the same program is there; but its block layer and network back ends, "
        f"{unused:,} lines, have nothing of the host to work on: the drivers do that.</p>"
    )


def _format_count(value: float | None, unit: str) -> str:
    return "–" if value is None else format_value(value, unit)
