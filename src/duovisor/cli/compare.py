"""``duovisor compare``: both designs on this machine, measured, tested and explained."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.output import json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from duovisor.comparison.campaign import Progress
    from duovisor.comparison.plan import Scale, Step
    from duovisor.comparison.samples import SampleStore

SECTIONS = ("start", "resources", "storage", "network", "processor", "updates", "faults")
EPILOG = """\b
Examples:
  duovisor compare --quick                    10 minutes at most, whatever the machine
  duovisor compare --full --output compared   about an hour; smaller differences are seen
  duovisor compare --full --plan              what it would do, and how long that takes
  duovisor compare --quick --only storage --rounds 8
  duovisor compare --output compared          go on with one that was interrupted
"""


@click.command(name="compare", epilog=EPILOG)
@click.option("--quick", "scale_name", flag_value="quick", help="6 rounds of jobs of 0.8 s.  [default]")
@click.option("--full", "scale_name", flag_value="full", help="12 rounds of jobs of 4 s.")
@click.option(
    "--image", metavar="NAME", help="The guest: an image that speaks as the probe's.  [default: probe]"
)
@click.option(
    "--output", "folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Where samples and report go; one that was begun there goes on.  [default: a new folder here]",
)  # fmt: skip
@click.option("--only", "sections", multiple=True, type=click.Choice(SECTIONS), help="Only this. Repeatable.")
@click.option("--rounds", type=click.IntRange(1, 1000), help="Rounds, with one sample of each design each.")
@click.option("--seconds", type=click.FloatRange(0.2, 600), help="Length of each storage and network job.")
@click.option(
    "--minutes", type=click.FloatRange(0.1, 10_000),
    help="End within this, with fewer rounds if need be.  [default: 9 with --quick, unless --rounds or "
    "--seconds say how much; else without end]",
)  # fmt: skip
@click.option("--plan", "plan_only", is_flag=True, help="Tell what would be measured and how long; end.")
@click.option(
    "--count-source", is_flag=True, help="Also download QEMU's source (apt, 25 MB) and count lines."
)
@json_option
def command(folder: Path | None, as_json: bool, plan_only: bool, count_source: bool, **options: Any) -> int:
    """Measure both designs on this machine and explain the difference.

    Runs the same guest and the same work monolithic and microkernelized, in turn, round after round: start,
    memory, storage, network, what failures and updates do to the guest, what each process may reach. Says
    of each difference whether it is larger than the noise. Then prints a table and writes into DIR
    report.html (one file, opens offline), plots as PNG, report.json, and every sample.

    Ctrl-C interrupts it and leaves nothing on the host but DIR; "duovisor compare --output DIR" goes on. The
    VMs are its own, beside those of duovisord, which it does not touch. Network measurements need root
    and iperf3; without them they are left out and the report says so. For good figures leave the machine
    alone.
    """
    from rich.console import Console

    console = Console(highlight=False, stderr=as_json)
    if plan_only:
        return _tell_plan(folder, options, as_json=as_json)
    with ExitStack() as held:
        store, is_done = _prepare(folder, options, console, held)
        if count_source:
            _count_source(store, console)
        if is_done:
            said = f"{store.folder} is complete; writing its report again"
            console.print(said, style="dim", soft_wrap=True)
        else:
            try:
                _run(store, console)
            except KeyboardInterrupt:
                console.print(f"go on with: duovisor compare --output {store.folder}", soft_wrap=True)
                raise
        return _report(store, console, as_json=as_json)


def _prepare(
    folder: Path | None, options: dict[str, Any], console: Console, held: ExitStack
) -> tuple[SampleStore, bool]:
    """The comparison to begin or to go on with, and whether it is done already; its folder is ``held``."""
    from duovisor.comparison.facts import build_facts
    from duovisor.comparison.needed import check_programs, check_sandboxes
    from duovisor.comparison.own_network import find_obstacle
    from duovisor.comparison.samples import Header, holding, open_store
    from duovisor.controlling.images.probe import NAME
    from duovisor.controlling.images.store import load_image
    from duovisor.directories import find_directories
    from duovisor.hardware.capabilities import read_capabilities

    there = _find_store(folder)
    if there is not None and not list_left(there):
        return there, True
    scale = there.header.scale if there is not None and not any(options.values()) else build_scale(**options)
    check_programs(scale, find_directories(), find_obstacle())
    capabilities = read_capabilities(find_directories().cache)
    check_sandboxes(capabilities)
    host = build_facts(capabilities)
    if scale.image != NAME:
        load_image(scale.image, find_directories())  # before a folder is made for nothing
    folder = folder or Path(time.strftime("duovisor-comparison-%Y-%m-%d-%H%M%S"))
    held.enter_context(holding(folder))
    store = open_store(folder, Header(scale=scale, host=host, started_at=time.time()))
    if store.records:
        done = f"going on with {folder}: {len(store.records)} steps are done"
        console.print(done, style="dim", soft_wrap=True)
    return store, False


def _find_store(folder: Path | None) -> SampleStore | None:
    """The comparison that a folder holds, if it holds one."""
    from duovisor.comparison.samples import HEADER, load_store

    return load_store(folder) if folder is not None and (folder / HEADER).exists() else None


def list_left(store: SampleStore) -> list[Step]:
    """The steps that are not done."""
    from duovisor.comparison.plan import build_steps

    return [step for step in build_steps(store.header.scale) if not store.has(step)]


def _tell_plan(folder: Path | None, options: dict[str, Any], *, as_json: bool) -> int:
    from rich.console import Console

    from duovisor.cli.compare_plan import build_plan, show_plan
    from duovisor.comparison.plan import build_steps

    there = _find_store(folder)
    if there is not None and not any(options.values()):
        plan = build_plan(there.header.scale, list_left(there), there.records)
    else:
        scale = build_scale(**options)
        plan = build_plan(scale, build_steps(scale), [])
    if as_json:
        print_json({**plan._asdict(), "sections": [each._asdict() for each in plan.sections]})
    else:
        show_plan(Console(highlight=False), plan)
    return 0


def build_scale(
    scale_name: str | None,
    image: str | None,
    sections: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    minutes: float | None = None,
) -> Scale:
    """What the options ask for."""
    from duovisor.comparison.plan import SCALES, find_budget
    from duovisor.comparison.plan import SECTIONS as KNOWN

    base = SCALES[scale_name or "quick"]
    budget_s = find_budget(base, changed=rounds is not None or seconds is not None)
    changed: dict[str, Any] = {"budget_s": budget_s if minutes is None else 60 * minutes}
    if image is not None:
        changed["image"] = image
    if sections:
        changed["sections"] = tuple(section for section in KNOWN if section in sections)
    if rounds is not None:
        changed |= {"rounds": rounds, "fault_rounds": min(rounds, base.fault_rounds)}
    if seconds is not None:
        changed["job_s"] = seconds
    return base.model_copy(update=changed)


def _run(store: SampleStore, console: Console) -> None:
    from duovisor.comparison.own_network import find_obstacle
    from duovisor.comparison.running import run_comparison
    from duovisor.controlling.images.probe import NAME, build_probe_image
    from duovisor.controlling.images.store import load_image
    from duovisor.directories import find_directories
    from duovisor.hardware.capabilities import read_capabilities

    directories = find_directories()
    capabilities = read_capabilities(directories.cache)
    host, scale = store.header.host, store.header.scale
    console.print(
        f"{host.describe()}\n{host.accelerator_reason}\nsamples and report: {store.folder}", style="dim"
    )
    if scale.image == NAME:
        image = build_probe_image(
            directories, lambda said: console.print(f"guest image: {said}", style="dim")
        )
    else:
        image = load_image(scale.image, directories)
    obstacle = find_obstacle()
    if obstacle is not None and {"network", "faults"} & set(scale.sections):
        console.print(f"the network is left out: {obstacle}", style="yellow")
    if os.getloadavg()[0] > host.cpus:
        console.print(
            f"this machine is busy (load {os.getloadavg()[0]:.1f} on {host.cpus} CPUs): expect noise",
            style="yellow",
        )
    with _show_progress(console) as tell:
        run_comparison(store, directories, capabilities, image, tell)


def _count_source(store: SampleStore, console: Console) -> None:
    from duovisor.comparison import source_package

    source_package.count_source(store.folder, lambda said: console.print(said, style="dim", soft_wrap=True))


def _report(store: SampleStore, console: Console, *, as_json: bool) -> int:
    from duovisor.comparison.report.limits import list_limits
    from duovisor.comparison.report.result import build_result, to_document
    from duovisor.comparison.report.sentences import state
    from duovisor.comparison.report.terminal import show_result
    from duovisor.comparison.report.writing import PAGE, write_report

    result = build_result(store)
    write_report(result, store.folder)
    if as_json:
        statements = {row.quantity.key: state(row) for row in result.rows}
        print_json(to_document(result, statements, list_limits(result)))
    else:
        show_result(console, result)
        console.print(f"\n[bold]{store.folder / PAGE}[/]", soft_wrap=True)
    return 0


@contextmanager
def _show_progress(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line whenever another kind of step begins."""
    from duovisor.comparison.report.wording import format_duration

    if not console.is_terminal:
        last = ""

        def tell(progress: Progress) -> None:
            nonlocal last
            if progress.step.measure != last:
                last = progress.step.measure
                left = format_duration(progress.left_s)
                console.print(f"round {progress.step.round}: {last}; about {left} left", soft_wrap=True)

        yield tell
        return
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[said]}"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, said="starting")

        def show(progress: Progress) -> None:
            step, failed = progress.step, f", {progress.failed} failed" if progress.failed else ""
            left = format_duration(progress.left_s)
            said = f"round {step.round}: {step.measure}, {step.design}; {left} left{failed}"
            bar.update(task, total=progress.total, completed=progress.number - 1, said=said)

        yield show
