"""Reads the processors: ``/proc/cpuinfo``, and whether KVM would offer nested virtualization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor.hardware.attributes import read_text

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Processors:
    """``extension`` is ``vmx`` (Intel), ``svm`` (AMD) or empty; ``nested_paging`` means EPT or NPT.

    ``is_virtual``: this host is itself a virtual machine. ``nested_kvm``: KVM offers the extension to guests;
    None when KVM is not loaded.
    """

    vendor: str
    model: str
    sockets: int
    cores: int
    threads: int
    extension: str
    nested_paging: bool
    nested_kvm: bool | None
    is_virtual: bool
    flags: tuple[str, ...]


def read_processors(root: Path) -> Processors:
    """The online processors."""
    entries = parse_cpuinfo(read_text(root / "proc/cpuinfo"))
    first = entries[0] if entries else {}
    flags = first.get("flags", "").split()
    extension = next((name for name in ("vmx", "svm") if name in flags), "")
    paging = {"ept", "npt"} & {*flags, *first.get("vmx flags", "").split()}  # "vmx flags" since Linux 5.7
    return Processors(
        vendor=first.get("vendor_id", ""),
        model=first.get("model name", ""),
        sockets=len({entry.get("physical id", "0") for entry in entries}),
        cores=len({_core(entry) for entry in entries}),
        threads=len(entries),
        extension=extension,
        nested_paging=bool(paging),
        nested_kvm=_read_nested_kvm(root),
        is_virtual="hypervisor" in flags,
        flags=tuple(flags),
    )


def parse_cpuinfo(text: str) -> list[dict[str, str]]:
    """One dictionary per processor."""
    entries = []
    for block in text.split("\n\n"):
        pairs = [line.partition(":") for line in block.splitlines()]
        entry = {key.strip(): value.strip() for key, colon, value in pairs if colon}
        if "processor" in entry:
            entries.append(entry)
    return entries


def _core(entry: dict[str, str]) -> tuple[str, str]:
    return entry.get("physical id", "0"), entry.get("core id", entry["processor"])


def _read_nested_kvm(root: Path) -> bool | None:
    for module in ("kvm_intel", "kvm_amd"):
        value = read_text(root / "sys/module" / module / "parameters/nested")
        if value:
            return value in ("Y", "1")
    return None
