"""``report.html``: one file that needs no other and asks nobody for anything."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.comparison.report.figure import draw_figure
from duovisor.comparison.report.limits import HONESTY, list_limits
from duovisor.comparison.report.plots import build_plots
from duovisor.comparison.report.quantities import COST, LATENCY
from duovisor.comparison.report.repeat import build_command
from duovisor.comparison.report.sections import build_sections
from duovisor.comparison.report.sentences import summarize_result
from duovisor.comparison.report.svg import render_svg
from duovisor.comparison.report.tables import build_authority, build_code, build_events, build_table
from duovisor.comparison.report.wording import format_duration
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.comparison.report.drawing import Drawing
    from duovisor.comparison.report.result import Result, Row
    from duovisor.comparison.report.sections import Said, Section

CSS = Path(__file__).with_name("page.css")
# nothing may be fetched, whatever ends up in the page
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def build_page(result: Result) -> str:
    """The whole report as HTML."""
    host = result.header.host
    when = datetime.fromtimestamp(result.header.started_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    plots = build_plots(result)
    body = [
        "<h1>Two hypervisor designs on one machine</h1>",
        f'<p class="machine">{escape(host.describe())}; Linux {escape(host.kernel)}. {when}, '
        f"{format_duration(result.took_s)}.</p>",
        _paragraphs("summary", summarize_result(result)),
        _build_introduction(result),
        "<h2>The figures</h2>",
        '<p class="small">Medians, and below them the middle half of the samples. The ratio is '
        "microkernelized ÷ monolithic, with its 95 % interval. A design is called better where the "
        "difference is larger than the noise; the limits below tell of the test.</p>",
        build_table(result.rows_of("start") + result.rows_of("resources") + _main_rows(result)),
        *(_build_section(section, plots.get(section.key, []), result) for section in build_sections(result)),
        build_authority(result),
        build_code(result),
        _build_limits(result),
        _build_repeat(result),
        _build_appendix(result),
    ]
    return "\n".join([
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        "<title>duovisor: two hypervisor designs on one machine</title>",
        f"<style>{CSS.read_text()}</style>", "</head>", "<body>", *body, "</body>", "</html>", "",
    ])  # fmt: skip


def _main_rows(result: Result) -> list[Row]:
    wanted = ("storage", "network", "processor")
    return [
        row for key in wanted for row in result.rows_of(key) if row.quantity.family not in (LATENCY, COST)
    ]


def _build_introduction(result: Result) -> str:
    figures = [drawing for design in Design if (drawing := draw_figure(result, design))]
    lines = [
        "<h2>What is compared</h2>",
        "<p>A hypervisor can be built in two ways. In the <b>monolithic</b> design (VMware ESXi) the "
        "device drivers are part of the hypervisor layer. In the <b>microkernelized</b> one (Microsoft "
        "Hyper-V) they run on their own in the controlling layer, and the guest reaches them over a "
        "channel in shared memory. duovisor runs the same VM in both. Here the same guest did the same "
        "work in each, in turn, on this machine.</p>",
        _figures(figures, "layers"),
        '<p class="small">Read from the processes while they ran; numbers are process ids.</p>',
    ]
    return "\n".join(lines if figures else lines[:2])


def _figures(drawings: Iterable[Drawing], kind: str = "plots") -> str:
    inside = "\n".join(f"<figure>{render_svg(drawing)}</figure>" for drawing in drawings)
    return f'<div class="{kind}">\n{inside}\n</div>' if inside else ""


def _paragraphs(kind: str, sentences: Iterable[str]) -> str:
    inside = "".join(f"<p>{escape(_upper(sentence))}</p>" for sentence in sentences)
    return f'<div class="{kind}">{inside}</div>' if inside else ""


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _paragraph(said: Said) -> str:
    lead = f"<b>{escape(_upper(said.lead))}.</b> " if said.lead else ""
    return f"<p>{lead}{escape(_upper(said.text))}</p>"


def _build_section(section: Section, drawings: list[Drawing], result: Result) -> str:
    parts = [
        f"<h2>{escape(section.title)}</h2>",
        *(_paragraph(said) for said in section.said),
        f'<p class="small">{escape(section.method)}</p>',
        _figures(drawings),
    ]
    if section.key in ("faults", "updates"):
        parts.append(build_events(result, section.key))
    return "\n".join(parts)


def _describe_user(result: Result) -> str:
    if result.header.host.is_root:
        return "As root: networks of its own and faults of network drivers need it."
    return "This run was not root's: as root, networks are measured too."


def _build_appendix(result: Result) -> str:
    """What most readers do not need: the numbers behind the charts."""
    parts = []
    latencies = [row for row in result.rows if row.quantity.family == LATENCY]
    for title, rows in (("Latencies in numbers", latencies), ("Cost in numbers", result.rows_of("cost"))):
        if rows:
            parts += [f"<h2>{title}</h2>", build_table(rows)]
    return "\n".join(parts)


def _build_limits(result: Result) -> str:
    parts = ["<h2>What this run cannot tell</h2>", _list(list_limits(result))]
    if result.failures:
        said = [f"{r.measure}, {r.design}, round {r.round}: {r.reason}" for r in result.failures]
        parts += ["<h3>Steps that failed</h3>", _list(said)]
    if result.skipped:
        parts += [
            "<h3>Steps that this host cannot do</h3>",
            _list(f"{m}: {why}" for m, why in result.skipped),
        ]
    return "\n".join([*parts, "<h3>What is true of every such comparison</h3>", _list(HONESTY)])


def _list(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _build_repeat(result: Result) -> str:
    return (
        f"<h2>How to repeat it</h2><pre>{escape(build_command(result.header.scale))}</pre>"
        f"<p>{_describe_user(result)} Leave the machine alone meanwhile.</p><p>Every sample "
        "is in <code>samples.jsonl</code> beside this file, all figures are in <code>report.json</code>. "
        "<code>duovisor compare --output</code> and this folder write the report anew.</p>"
    )
