"""``duovisor demo``: the same VM in both designs, and the difference, in under two minutes."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.connection import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from duovisor.cli.demo_guest import DesignResult
    from duovisor.client.service import ServiceClient
    from duovisor.controlling.anatomy import Anatomy
    from duovisor.controlling.images.image import Image
    from duovisor.hardware.accelerator import AcceleratorDecision
    from duovisor.hardware.capabilities import HostCapabilities

STEPS = {
    "boot": "booting the guest",
    "verify": "writing and verifying with crc32c",
    "read_4k_qd1": "reading 4 KiB blocks, one at a time",
    "read_4k_qd32": "reading 4 KiB blocks, 32 at a time",
    "randwrite_4k_qd32": "writing 4 KiB blocks, 32 at a time",
    "read_1m_qd4": "reading 1 MiB blocks, 4 at a time",
    "shutdown": "pressing its power button",
}
FIGURES = {
    "read_4k_qd1_iops": ("4 KiB random read, depth 1", "IOPS"),
    "read_4k_qd32_iops": ("4 KiB random read, depth 32", "IOPS"),
    "randwrite_4k_qd32_iops": ("4 KiB random write, depth 32", "IOPS"),
    "read_1m_qd4_mib_s": ("1 MiB read, depth 4", "MiB/s"),
}
SAME_HARDWARE = "The guest saw the same hardware twice."
SAME_DISKS = """The guest saw the same disks at the same addresses twice: once in a whole PC, and
once in a machine of processors, memory, interrupts and the channel alone
(docs/thin-vmm.md)."""
WHAT_MOVED = """What moved is where its disks' drivers ran: inside the VMM, with all the host
within reach, or each in a partition that holds one image and one channel. The
physical disk's driver stayed in the host's kernel both times."""


@click.command(name="demo")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the result to FILE.")
@click.option("--seconds", default=4.0, show_default=True, help="Length of each storage measurement.")
@click.option("--cpus", default=1, show_default=True, help="Number of vCPUs of the guest.")
def command(json_file: Path | None, seconds: float, cpus: int) -> int:
    """Run the same VM in both hypervisor designs and show the difference.

    Builds a small guest from this system's own kernel package, boots it monolithic and then microkernelized,
    shows each VM's anatomy, verifies and measures its storage. Leaves nothing behind but the guest image and
    the service, which it starts when it does not run.
    """
    from rich.console import Console

    console = Console(highlight=False)
    document = _demo(console, seconds, cpus)
    if json_file is not None:
        json_file.write_text(json.dumps(document, indent=2) + "\n")
        console.print(f"written to {json_file}", style="dim")
    verified = all(design["verify"] == "ok" for design in document["designs"].values())
    return 0 if verified else 6


def _demo(console: Console, seconds: float, cpus: int) -> dict[str, Any]:
    from duovisor.cli.demo_guest import build_demo_spec, measure_design
    from duovisor.controlling.probe_vm import make_scratch_disk
    from duovisor.directories import find_directories
    from duovisor.hardware.accelerator import decide_accelerator
    from duovisor.hardware.capabilities import read_capabilities
    from duovisor.spec.vm import Accelerator, Design

    client, directories = connect_here(), find_directories()
    capabilities = read_capabilities(directories.cache)
    decision = decide_accelerator(Accelerator.AUTO, capabilities.kvm)
    _show_host(console, capabilities, decision)
    image = _build_image(console, client)
    results: dict[Design, DesignResult] = {}
    for design in Design:
        console.rule(f"[bold]{design}[/]", align="left", style="dim")
        with make_scratch_disk(directories.state) as scratch, _progress(console, design) as step:
            spec = build_demo_spec(design, image, scratch, cpus, decision.accelerator)
            results[design] = measure_design(
                client, spec, runtime_s=seconds,
                progress=lambda name, step=step: step(STEPS[name]),  # type: ignore[misc]  # bound now, not later
                on_booted=lambda anatomy, boot_s: _show_anatomy(console, anatomy, boot_s),
            )  # fmt: skip
    console.rule("[bold]side by side[/]", align="left", style="dim")
    _show_comparison(console, results[Design.MONOLITHIC], results[Design.MICROKERNELIZED])
    return build_document(capabilities, decision, {str(key): value for key, value in results.items()})


def connect_here() -> ServiceClient:
    """The service of this host, as the guests are spoken to over sockets. Raises ``EndpointError``."""
    from duovisor.client.errors import EndpointError

    client = connect()
    if client.endpoint.socket is None:
        raise EndpointError(f"{client.endpoint} is another host's service", remedy="run the demo there")
    return client


def _build_image(console: Console, client: ServiceClient) -> Image:
    from duovisor.cli.vm_document import find_image

    with _progress(console, "guest image") as step:
        operation = client.request("POST", "/v1/images", {"recipe": "probe"}).document
        client.follow(operation, lambda state: step(state["message"]) if state["message"] else None)
    return find_image(client, "probe")


def build_document(
    capabilities: HostCapabilities, decision: AcceleratorDecision, results: dict[str, DesignResult]
) -> dict[str, Any]:
    """The result as JSON: ``host``; by design ``vmm``, ``boot_s``, ``verify``, ``storage``, ``processes``."""
    from dataclasses import asdict

    designs = {}
    for design, result in results.items():
        storage = result.figures.model_dump()
        verify = storage.pop("verify")
        designs[design] = {
            "vmm": result.anatomy.vmm,
            "boot_s": round(result.boot_s, 3),
            "verify": verify,
            "storage": {name: round(figure, 1) for name, figure in storage.items()},
            "processes": [asdict(process) for process in result.anatomy.processes],
        }
    return {
        "host": {
            "accelerator": str(decision.accelerator),
            "accelerator_reason": decision.reason,
            "qemu": capabilities.qemu.version_text if capabilities.qemu else None,
            "cpus": capabilities.cpus,
            "memory_mib": capabilities.memory_total_mib,
        },
        "designs": designs,
    }


def _show_host(console: Console, capabilities: HostCapabilities, decision: AcceleratorDecision) -> None:
    qemu = capabilities.qemu.version_text if capabilities.qemu else "missing"
    memory_gib = capabilities.memory_total_mib / 1024
    console.print(
        f"[bold]duovisor[/]  one VM, two hypervisor designs\n"
        f"host: {capabilities.cpus} CPUs, {memory_gib:.0f} GiB, QEMU {qemu}\n"
        f"guests run on [bold]{decision.accelerator.upper()}[/]: {decision.reason}"
    )


@contextmanager
def _progress(console: Console, what: str) -> Iterator[Callable[[str], None]]:
    """One line that says what is being done; on a terminal it is rewritten, elsewhere each step is a line."""
    started = time.monotonic()
    if not console.is_terminal:
        yield lambda text: console.print(f"  {what}: {text}", style="dim")
        return
    with console.status(f"{what}: starting") as status:
        yield lambda text: status.update(f"{what}: {text}")
    console.print(f"  {what}: done in {time.monotonic() - started:.1f} s", style="dim")


def _show_anatomy(console: Console, anatomy: Anatomy, boot_s: float) -> None:
    from duovisor.cli.anatomy import draw

    console.print(draw(anatomy))
    console.print(f"  the guest says it is up after [bold]{boot_s:.2f} s[/]")


def _show_comparison(console: Console, monolithic: DesignResult, microkernelized: DesignResult) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for title in ("", "monolithic", "microkernelized", "ratio"):
        table.add_column(title, justify="left" if not title else "right")
    both = (monolithic, microkernelized)
    table.add_row("VMM", *(result.anatomy.vmm for result in both), "")
    table.add_row(
        "data written, read back, crc32c", *(_show_verdict(result.figures.verify) for result in both), ""
    )
    table.add_row("start to guest's signal", *(f"{result.boot_s:.2f} s" for result in both), "")
    for figure, (title, unit) in FIGURES.items():
        left, right = (float(getattr(result.figures, figure)) for result in both)
        table.add_row(
            title, f"{left:,.0f} {unit}", f"{right:,.0f} {unit}", f"{right / left:.2f}" if left else ""
        )
    for title, role in (("host access of the VMM", "vmm"), ("host access of a driver", "storage driver")):
        table.add_row(title, *(_count_access(result.anatomy, role) for result in both), "")
    console.print(table)
    console.print("\n" + explain(*(result.anatomy.vmm for result in both)), style="dim")


def explain(monolithic: str, microkernelized: str) -> str:
    """What the guest saw of it, on these VMMs, and what moved."""
    return f"{SAME_HARDWARE if monolithic == microkernelized else SAME_DISKS}\n{WHAT_MOVED}"


def _show_verdict(verify: str) -> str:
    return "[green]ok[/]" if verify == "ok" else f"[red]{verify}[/]"


def _count_access(anatomy: Anatomy, role: str) -> str:
    held = [process.host_access for process in anatomy.processes if process.role == role]
    if not held:
        return "inside the VMM"
    wide = any(access.startswith("host ") for access in held[0])
    images = sum(access.startswith("image") for access in held[0])
    return f"{images} image{'s' * (images != 1)}, {'whole host' if wide else 'nothing else'}"
