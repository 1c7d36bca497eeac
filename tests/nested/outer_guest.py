"""Boots the outer guest under TCG, waits for its end, and reads what it reported."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duovisor import process
from duovisor.hardware.qemu import find_qemu

if TYPE_CHECKING:
    from pathlib import Path

    from tests.nested.outer_disk import OuterDisk

    from duovisor.spec.vm import Design

MEMORY_MIB = 2048
CPUS = 2
COMMAND_LINE = (
    "console=ttyS0 loglevel=5 cryptomgr.notests panic=-1 net.ifnames=0 "
    "systemd.unit=nested.service systemd.show_status=0"
)


@dataclass(frozen=True)
class Reports:
    """What the outer guest reported, in order; everything else it left is in ``folder``."""

    lines: tuple[dict[str, Any], ...]
    folder: Path

    def find(self, step: str, design: Design | None = None) -> dict[str, Any]:
        """The report of one step. Raises ``AssertionError`` that says what came instead."""
        for line in self.lines:
            if line["step"] == step and line["design"] == design:
                return line
        for line in self.lines:
            if line["step"] == "failed" and line["design"] == design:
                raise AssertionError(f"no {step} of {design}: {line['traceback']}")
        steps = [line["step"] for line in self.lines]
        raise AssertionError(f"no {step} of {design or 'the host'}; there came {steps}; see {self.folder}")


def build_outer_argv(
    qemu: Path, outer: OuterDisk, payload: Path, reports: Path, serial: Path, debian: Path | None = None
) -> tuple[str, ...]:
    """QEMU's command line: SVM emulated by TCG, the disks unchanged by what is written; pure."""
    third = ("-drive", f"file={debian},format=raw,if=virtio,snapshot=on,cache=unsafe") if debian else ()
    return (
        str(qemu), "-name", "duovisor-nested-test", "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off",
        "-smp", str(CPUS), "-m", f"{MEMORY_MIB}M", "-no-reboot",
        "-kernel", str(outer.kernel), "-initrd", str(outer.initrd), "-append", COMMAND_LINE,
        "-drive", f"file={outer.disk},format=raw,if=virtio,snapshot=on,cache=unsafe",
        "-drive", f"file={payload},format=raw,if=virtio,read-only=on",
        *third,
        "-nic", "user,model=virtio-net-pci,net=10.0.9.0/24,restrict=on",
        "-chardev", f"file,id=serial,path={serial}", "-serial", "chardev:serial",
        "-chardev", f"file,id=reports,path={reports}", "-device", "virtio-serial-pci",
        "-device", "virtserialport,chardev=reports,name=org.duovisor.nested",
    )  # fmt: skip


async def run_outer_guest(
    outer: OuterDisk, payload: Path, folder: Path, *, deadline_s: float, debian: Path | None = None
) -> Reports:
    """Boot, wait until the guest has powered itself off or ``deadline_s`` is over, and read the reports.

    ``folder`` keeps the command line, QEMU's own words, the serial console, the reports and the logs in them.
    """
    reports = folder / "reports.jsonl"
    argv = build_outer_argv(find_qemu(os.environ), outer, payload, reports, folder / "serial.log", debian)
    (folder / "command.txt").write_text(process.as_command_line(argv) + "\n")
    guest = process.start(
        ("setpriv", "--pdeathsig", "KILL", "--", *argv), role="outer guest", log=folder / "qemu.log"
    )
    try:
        async with asyncio.timeout(deadline_s):
            await guest.wait()
    except TimeoutError:
        (folder / "qemu.log").open("a").write(f"killed: it did not end within {deadline_s:g} s\n")
    finally:
        if guest.returncode is None:
            await guest.kill()
    lines = parse_reports(reports.read_text() if reports.exists() else "")
    keep_logs(lines, folder)
    return Reports(lines, folder)


def parse_reports(text: str) -> tuple[dict[str, Any], ...]:
    """Read the reports; a last line that was cut off is left out."""
    return tuple(json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n"))


def keep_logs(lines: tuple[dict[str, Any], ...], folder: Path) -> None:
    """Write the inner VMs' logs out of the reports into files."""
    for line in lines:
        if line["step"] in ("logs", "thin-logs"):
            for name, text in line["files"].items():
                (folder / f"{line['design'] or 'thin'}-{name}").write_text(text)
