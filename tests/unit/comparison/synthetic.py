"""A comparison with known answers: every step's record, made up, without a VM."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from tests.recorded.abilities import load_abilities

from duovisor.comparison.facts import HostFacts
from duovisor.comparison.plan import QUICK, Scale, build_steps
from duovisor.comparison.samples import Header, Outcome, Record, SampleStore
from duovisor.spec.vm import Accelerator, Design

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from duovisor.comparison.plan import Step

MONO, MICRO = Design.MONOLITHIC, Design.MICROKERNELIZED
# measure → values monolithic; all vary by 2 % from round to round
BASE: dict[str, dict[str, float]] = {
    "boot": {"vmm_start_s": 0.06, "boot_s": 2.4},
    "idle": {"pss_mib": 100.0, "idle_cpu_ms_per_s": 12.0, "pss_mib:vmm": 100.0,
             "idle_cpu_ms_per_s:vmm": 12.0},
    "network.to_guest": {"mbit_s": 900.0, "cpu_ms_per_mb": 11.0, "cpu_ms_per_mb:vmm": 11.0},
    "network.from_guest": {"mbit_s": 950.0, "cpu_ms_per_mb": 10.0, "cpu_ms_per_mb:vmm": 10.0},
    "network.small_to_guest": {"packets_per_s": 20400.0, "cpu_us": 40.0, "cpu_us:vmm": 40.0},
    "network.small_from_guest": {"packets_per_s": 24900.0, "cpu_us": 35.0, "cpu_us:vmm": 35.0},
    "network.round_trip": {"round_trip_us": 450.0, "round_trip_p99_us": 1400.0},
    "network.prepare": {},
    "processor": {"steps_per_s": 16000.0},
    "quiet": {"longest_wait_ms": 12.0},
    "update.driver": {"survived": 1, "pause_ms": 25.0, "took_s": 0.5, "longest_wait_ms": 90.0, "errors": 0},
    "update.design": {"survived": 1, "pause_ms": 24.0, "took_s": 0.5, "longest_wait_ms": 110.0, "errors": 0},
    "fault.storage_driver": {"survived": 0, "until_normal_s": 4.2, "flushed_writes_lost": 0},
    "fault.network_driver": {"survived": 0, "until_normal_s": 4.4, "flushed_writes_lost": 0},
    "fault.vmm": {"survived": 0, "until_normal_s": 4.3, "flushed_writes_lost": 0},
    "fault.service": {"survived": 1, "until_normal_s": 2.1, "longest_wait_ms": 14.0, "errors": 0,
                      "flushed_writes_lost": 0},
    "authority": {},
    "code": {"python_lines:driver partition": 8555.0, "python_lines:controlling layer": 22898.0,
             "code_mib:vmm": 19.8},
}  # fmt: skip
STORAGE = {"iops": 4000.0, "mib_s": 15.6, "p50_us": 210.0, "p99_us": 900.0, "p99_9_us": 2400.0,
           "cpu_us": 240.0, "cpu_us:vmm": 240.0}  # fmt: skip
FSYNC = {"fsyncs_per_s": 310.0, "p50_us": 2900.0, "p99_us": 8000.0, "p99_9_us": 12000.0, "cpu_us": 3100.0,
         "cpu_us:vmm": 3100.0}  # fmt: skip
# what the microkernelized design has in the place of it
SURVIVED = {"survived": 1.0, "longest_wait_ms": 19.0, "until_normal_s": 0.019, "flushed_writes_lost": 0.0}
MICRO_PARTS = {"pss_mib": {"storage driver": 9.0, "storage driver, spare": 8.0, "network driver": 4.5},
               "cpu_us": {"storage driver": 30.0, "storage driver, spare": 0.2}}  # fmt: skip


def build_host(version: str = "7.2", accelerator: Accelerator = Accelerator.TCG, **changed: Any) -> HostFacts:
    """A machine with the recorded abilities of a QEMU."""
    qemu = load_abilities(version)
    reason = "no hardware virtualization" if accelerator is Accelerator.TCG else "a guest ran at full speed"
    facts = {
        "processor": "Example Processor 9000", "cpus": 2, "memory_mib": 24105, "kernel": "6.1.0-9-amd64",
        "accelerator": accelerator, "accelerator_reason": reason, "qemu": qemu.version_text,
        "q35_machine": qemu.q35_machine, "io_uring": qemu.io_uring, "duovisor": "0.1.0", "python": "3.11.7",
        "is_root": True,
    }  # fmt: skip
    return HostFacts.model_validate({**facts, **changed})


def build_store(
    folder: Path,
    *,
    scale: Scale = QUICK,
    host: HostFacts | None = None,
    factors: Mapping[str, float] | None = None,
    noise: float = 0.02,
    load: float = 1.4,
    steps: int | None = None,
) -> SampleStore:
    """Every record of a comparison, or the first ``steps`` of them.

    ``factors``: ``measure.value`` → how many times the monolithic figure the microkernelized one is.
    """
    header = Header(scale=scale, host=host or build_host(), started_at=1_750_000_000.0)
    chance = random.Random(7)
    records = [build_record(step, factors or {}, chance, noise, load) for step in build_steps(scale)[:steps]]
    return SampleStore(folder, header, records)


def build_record(
    step: Step, factors: Mapping[str, float], chance: random.Random, noise: float, load: float
) -> Record:
    """One step's record, as if it had been measured."""
    base = BASE.get(step.measure) or (FSYNC if step.measure.endswith("fsync") else STORAGE)
    if step.measure in BASE:
        base = BASE[step.measure]
    if step.design is MICRO and step.measure in ("fault.storage_driver", "fault.network_driver"):
        base = SURVIVED
    values = {}
    for name, value in base.items():
        factor = factors.get(f"{step.measure}.{name}", 1.0) if step.design is MICRO else 1.0
        exact = name in ("survived", "errors", "flushed_writes_lost") or ":" in name
        values[name] = value * factor * (1.0 if exact else chance.gauss(1.0, noise))
    if step.design is MICRO:
        for whole, parts in MICRO_PARTS.items():
            if whole in values:
                values |= {f"{whole}:{role}": each for role, each in parts.items()}
    facts = build_authority(step.design) if step.measure == "authority" else {}
    return Record(
        round=step.round, measure=step.measure, design=step.design, outcome=Outcome.DONE, seconds=2.0,
        load=load, values=values, facts=facts,
    )  # fmt: skip


def build_authority(design: Design) -> dict[str, Any]:
    """The processes of one design."""
    processes = [_process("controlling", "manager", 4100, [], wide=True)]
    if design is MICRO:
        for pid, role, driver in (
            (4201, "storage driver", "disk0"), (4202, "storage driver", "disk0"),
            (4203, "storage driver", "disk1"), (4205, "network driver", "nic0"),
        ):  # fmt: skip
            held = ["image /srv/images/scratch.raw (read-write)", "guest memory"]
            processes.append(_process("controlling", role, pid, [driver], held=held))
    drivers = ["disk0", "disk1", "nic0"] if design is MONO else []
    processes.append(_process("hypervisor", "vmm", 4300, drivers, wide=design is MONO, held=["guest memory"]))
    return {"accelerator": "tcg", "vmm": "qemu", "vmm_reason": "", "processes": processes}


def _process(
    layer: str,
    role: str,
    pid: int,
    drivers: list[str],
    *,
    wide: bool = False,
    held: list[str] | None = None,
) -> dict[str, Any]:
    reach = ["host file system", "host network", "host processes"] if wide else []
    return {
        "layer": layer, "role": role, "pid": pid, "host_access": [*(held or []), *reach],
        "confinement": ["uid 0"], "drivers": drivers,
        "authority": {
            "uid": 0 if wide else 1879048321, "capabilities": 41 if wide else 0,
            "seccomp_filters": 0 if wide else 1, "no_new_privileges": not wide,
            "own_namespaces": [] if wide else ["mnt", "net", "pid", "ipc", "uts", "cgroup"],
            "descriptors": {"file": 1, "socket": 3},
        },
    }  # fmt: skip
