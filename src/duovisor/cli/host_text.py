"""How ``duovisor host`` looks to a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from duovisor.cli.output import print_table
from duovisor.hardware.check import Level, describe_mib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.hardware.block import BlockDevice
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.hardware.check import DesignVerdict, Finding
    from duovisor.hardware.host import Host
    from duovisor.hardware.network import Nic
    from duovisor.hardware.pci import PciDevice
    from duovisor.hardware.processors import Processors

STYLES = {Level.OK: "green", Level.SLOWER: "yellow", Level.LIMITED: "yellow", Level.NO: "bold red"}
MOUNTS_SHOWN = 2
GIGABYTE = 10**9


def print_verdicts(verdicts: tuple[DesignVerdict, ...]) -> None:
    """One line per thing a design needs, a column per design, the verdicts below."""
    table = _table()
    table.add_column(no_wrap=True)
    for verdict in verdicts:
        table.add_column(verdict.design, no_wrap=True)
    table.add_column(overflow="fold")
    for finding in merge_findings(verdicts):
        table.add_row(finding.subject, *_cells(verdicts, finding), _explain(finding))
    table.add_row()
    table.add_row(Text("verdict", "bold"), *(_level(verdict.level) for verdict in verdicts))
    Console(highlight=False).print(table)


def merge_findings(verdicts: tuple[DesignVerdict, ...]) -> list[Finding]:
    """Each finding once, by subject, though several designs have it."""
    merged = dict.fromkeys(finding for verdict in verdicts for finding in verdict.findings)
    subjects = list(dict.fromkeys(finding.subject for finding in merged))
    return sorted(merged, key=lambda finding: subjects.index(finding.subject))


def _cells(verdicts: tuple[DesignVerdict, ...], finding: Finding) -> Iterator[Text]:
    for verdict in verdicts:
        yield _level(finding.level) if finding in verdict.findings else Text("–", "dim")


def _explain(finding: Finding) -> Text:
    text = Text(finding.seen)
    if finding.remedy and finding.level is not Level.OK:
        text.append(f"\ntry: {finding.remedy}", "dim")
    return text


def _level(level: Level) -> Text:
    return Text(level, STYLES[level])


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))


def print_host(host: Host, capabilities: HostCapabilities) -> None:
    """A block of facts, then a table each for PCI devices, disks and NICs."""
    facts = _table()
    facts.show_header = False
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in describe_host(host, capabilities):
        facts.add_row(name, Text(value))
    Console(highlight=False).print(facts)
    if host.pci_devices:
        click.echo()
        print_table(("PCI", "ids", "class", "driver", "IOMMU group"), map(_pci_row, host.pci_devices))
    if host.block_devices:
        click.echo()
        print_table(("disk", "size", "kind", "model", "used by"), map(_disk_row, host.block_devices))
    if host.nics:
        click.echo()
        print_table(("NIC", "kind", "state", "speed", "MAC", "driver"), map(_nic_row, host.nics))


def describe_host(host: Host, capabilities: HostCapabilities) -> Iterator[tuple[str, str]]:
    """The facts that have one line."""
    system, memory = host.system, host.memory
    yield "host", " · ".join(filter(None, (system.hostname, system.product)))
    yield "system", f"{system.distribution}, Linux {system.kernel_release}"
    yield "processors", describe_processors(host.processors)
    yield "memory", f"{describe_mib(memory.total_mib)}, {describe_mib(memory.available_mib)} available"
    for pool in memory.huge_pages:
        if pool.total:
            yield "huge pages", f"{describe_mib(pool.size_kib // 1024)}: {pool.free} of {pool.total} free"
    for node in host.numa_nodes:
        yield f"NUMA node {node.number}", f"CPUs {node.cpus}, {describe_mib(node.memory_mib)}"
    yield "KVM", f"{capabilities.kvm.state}: {capabilities.kvm.reason}"
    yield "QEMU", describe_qemu(capabilities)


def describe_processors(processors: Processors) -> str:
    """Model, counts and what they offer to guests."""
    counts = f"{processors.sockets} × {processors.cores // max(processors.sockets, 1)} cores"
    extension = processors.extension or "neither vmx nor svm"
    if processors.nested_paging:
        extension += " with nested paging"
    parts = [processors.model, f"{counts}, {processors.threads} threads", extension]
    return ", ".join([*parts, "itself a VM"] if processors.is_virtual else parts)


def describe_qemu(capabilities: HostCapabilities) -> str:
    """Version and abilities, or why there is none."""
    qemu = capabilities.qemu
    if qemu is None:
        return capabilities.qemu_problem.message if capabilities.qemu_problem else "not asked"
    abilities = {
        "kvm": qemu.kvm, "tcg": qemu.tcg, "io_uring": qemu.io_uring, "seccomp": qemu.seccomp,
        "queue_reset": qemu.virtio_blk_queue_reset, "reconnect-ms": qemu.reconnect_ms,
        "iothread-vq-mapping": qemu.virtio_blk_iothread_vq_mapping,
        "blockdev-set-active": qemu.blockdev_set_active,
    }  # fmt: skip
    has = " ".join(name for name, value in abilities.items() if value)
    return f"{qemu.version_text}, {capabilities.qemu_path}, {qemu.q35_machine}; {has}"


def _pci_row(device: PciDevice) -> tuple[str, ...]:
    group = "–" if device.iommu_group is None else str(device.iommu_group)
    return device.address, device.ids, device.class_name, device.driver or "–", group


def _disk_row(disk: BlockDevice) -> tuple[str, ...]:
    used = [*disk.mounted_at, *disk.holders]
    more = f" and {len(used) - MOUNTS_SHOWN} more" if len(used) > MOUNTS_SHOWN else ""
    kind = ("rotating" if disk.rotational else "flash") + (", read-only" if disk.read_only else "")
    size = f"{disk.size_bytes / GIGABYTE:.1f} GB"
    return disk.name, size, kind, disk.model or "–", (", ".join(used[:MOUNTS_SHOWN]) + more) or "–"


def _nic_row(nic: Nic) -> tuple[str, ...]:
    speed = "–" if nic.speed_mbit is None else f"{nic.speed_mbit} Mbit/s"
    return nic.name, nic.kind, nic.state, speed, nic.mac, nic.driver or "–"
