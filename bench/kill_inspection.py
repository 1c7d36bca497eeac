"""Looks at the host from outside: what is there of VMs, and whether service and store say the same."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.kill_devices import find_card_faults, find_leftovers, find_media_faults, find_processor_faults
from bench.service_process import find_processes

from duovisor.controlling.description import Duty, MachineDescription, Phase, load_description
from duovisor.controlling.run_folder import list_run_folders
from duovisor.controlling.vms.documents import RUN_KIND, RUNS, Intent
from duovisor.hypervisor.lifecycle import State
from duovisor.process_identity import ProcessIdentity, is_living, read_children

if TYPE_CHECKING:
    from duovisor.directories import Directories

    Document = dict[str, Any]

ACTIVE = ("starting", "running", "paused", "stopping")
BOOTED_WITH = ("", "disk0", "tpm", "nic0")  # the others are plugged in while it runs
PERMANENT = {"vms", "duovisord.sock", "memory", "networks"}

_LATEST_RUNS = """
    SELECT key, value FROM history AS h WHERE key >= ? AND key < ? AND version > 0
    AND mod_revision = (SELECT max(mod_revision) FROM history WHERE key = h.key)
"""


class RunningVm(NamedTuple):
    """A VM that runs, as its run folder and the kernel say: its VMM and what serves what it booted with."""

    uuid: str
    processes: frozenset[ProcessIdentity]


def find_running(directories: Directories) -> dict[str, RunningVm]:
    """Every VM whose start was complete and whose processes all live, by name."""
    found = {}
    for name in list_run_folders(directories.vms):
        described = load_description(directories.vms / name)
        if described is None or described.phase is not Phase.RUNNING:
            continue
        booted = (
            process
            for process in described.processes
            if process.device in BOOTED_WITH
            and (process.duty is Duty.ACTIVE or not process.control)  # spares, to be or not yet, come and go
        )
        identities = frozenset(process.identity for process in booted)
        if all(map(is_living, identities)):
            found[name] = RunningVm(described.uuid, identities)
    return found


def find_disagreements(
    directories: Directories, vms: list[Document], own_pids: set[int], bridge: str | None = None
) -> list[str]:
    """Everything in which host, store and service differ, one line each; ``own_pids`` are no VM's.

    ``bridge`` is that of the VMs' cards.
    """
    active = {vm["record"]["name"]: vm for vm in vms if vm["status"]["state"] in ACTIVE}
    described = {name: load_description(directories.vms / name) for name in active}
    known = {name: description for name, description in described.items() if description is not None}
    found = [f"{name} is active and has no description" for name in active.keys() - known.keys()]
    found += _compare_names("run folders", list_run_folders(directories.vms), active)
    found += _compare_names("memory files", _names_in(directories.runtime / "memory"), active)
    found += _compare_names("consoles", _consoles(directories), {v["record"]["uuid"] for v in vms}, most=True)
    found += find_leftovers(directories, {vm["record"]["uuid"] for vm in vms})
    found += _compare_names("runtime files", _names_in(directories.runtime), PERMANENT, most=True)
    found += _check_mounts(directories, wanted=bool(active))
    for name, description in known.items():
        found += _check_vm(directories.vms / name, active[name], description)
    found += find_card_faults(bridge, known.values()) if bridge is not None else []
    found += _check_processes(directories, known, own_pids)
    found += _check_sockets(directories, known)
    return found + _check_store(directories, vms)


def _names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _consoles(directories: Directories) -> list[str]:
    return [name.partition(".")[0] for name in _names_in(directories.state / "consoles")]


def _compare_names(what: str, found: list[str], wanted: Any, *, most: bool = False) -> list[str]:
    extra, missing = set(found) - set(wanted), set() if most else set(wanted) - set(found)
    lines = [f"{what} of nothing: {sorted(extra)}"] if extra else []
    return lines + ([f"{what} are missing: {sorted(missing)}"] if missing else [])


def _check_mounts(directories: Directories, *, wanted: bool) -> list[str]:
    root = str(directories.runtime.parent)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if root in line]
    expected = [str(directories.runtime / "memory")] if wanted and os.geteuid() == 0 else []
    return [] if mounts == expected else [f"mounts {mounts}, not {expected}"]


def _check_vm(folder: Path, vm: Document, description: MachineDescription) -> list[str]:
    """One VM's document against its run folder and its processes."""
    name, status = vm["record"]["name"], vm["status"]
    found = []
    if description.uuid != vm["record"]["uuid"]:
        found.append(f"{name} has the uuid {vm['record']['uuid']}, its run folder {description.uuid}")
    defined = {disk["path"] for disk in vm["record"]["spec"]["disks"]}
    has = {disk.path for disk in description.spec.disks}  # or fewer: a reset guest lets go of some
    if has - defined:
        found.append(f"{name} runs with the disks {has}, and is defined with {defined}")
    pids = {process["pid"] for process in status["processes"]}
    if pids != {process.pid for process in description.processes}:
        found.append(f"{name} has the processes {pids}, its run folder {description.processes}")
    for process in description.processes:
        if not is_living(process.identity):
            found.append(f"{name} is {status['state']}; its {process.role} {process.identity} has ended")
    found += find_media_faults(name, vm, description)
    found += find_processor_faults(name, vm, description)
    sockets = {path.stem for path in folder.glob("*/*.sock")}
    if sockets != {*description.current.plan.sockets}:
        found.append(f"{name} has the sockets {sockets}, not {description.current.plan.sockets}")
    return found


def _check_processes(
    directories: Directories, known: dict[str, MachineDescription], own_pids: set[int]
) -> list[str]:
    expected = set(own_pids)
    for description in known.values():
        for process in description.processes:
            expected |= {process.watched_pid, *_descendants(process.watched_pid)}
    found = find_processes(directories.runtime.parent)
    return [f"process {pid} of no VM: {found[pid]}" for pid in sorted(found.keys() - expected)]


def _descendants(pid: int) -> set[int]:
    children = read_children(pid)
    return set(children).union(*map(_descendants, children))


def _folder(directories: Directories, machine: MachineDescription) -> Path:
    return directories.vms / machine.spec.name / str(machine.current.number)


def _check_sockets(directories: Directories, known: dict[str, MachineDescription]) -> list[str]:
    """Listening Unix sockets, whether their files are there or not."""
    expected = {str(directories.runtime / "duovisord.sock")}
    expected |= {
        str(_folder(directories, each) / f"{socket}.sock") for each in known.values()
        for socket in each.current.plan.sockets
    }  # fmt: skip
    expected |= {
        str(_folder(directories, each) / process.control) for each in known.values()
        for process in each.processes if process.control
    }  # fmt: skip
    expected |= {
        str(_folder(directories, each) / f"media/{process.device}.sock") for each in known.values()
        for process in each.processes if process.role == "media server"
    }  # fmt: skip
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    listening = {line[7] for line in lines if len(line) > 7 and line[5] == "01"}
    ours = {path for path in listening if path.startswith(f"{directories.runtime.parent}/")}
    return [f"sockets of no VM: {sorted(ours - expected)}"] if ours - expected else []


def _check_store(directories: Directories, vms: list[Document]) -> list[str]:
    """The store's runs: none is under way, and those of active VMs, and no others, are running."""
    active = {vm["record"]["uuid"] for vm in vms if vm["status"]["state"] in ACTIVE}
    store = sqlite3.connect(f"file:{directories.state / 'store.sqlite'}?mode=ro", uri=True)
    try:
        rows = store.execute(_LATEST_RUNS, (RUNS, RUNS[:-1] + "0")).fetchall()
    finally:
        store.close()
    runs = {run.uuid: run for run in (RUN_KIND.decode(value, key=key) for key, value in rows)}
    pending = [run for run in runs.values() if run.intent is not Intent.NONE]
    found = [f"the store says {run.intent} of {run.name}" for run in pending]
    running = {uuid for uuid, run in runs.items() if run.state is State.RUNNING}
    if running != active:
        found.append(f"the store says that {running - active} run, and not {active - running}")
    defined = {vm["record"]["uuid"]: vm["record"]["name"] for vm in vms}
    found += [f"the store has a run of {uuid}, which is not defined" for uuid in runs.keys() - defined.keys()]
    return found + [
        f"the run of {defined[uuid]} is called {run.name}"
        for uuid, run in runs.items()
        if uuid in defined and run.name != defined[uuid]
    ]
