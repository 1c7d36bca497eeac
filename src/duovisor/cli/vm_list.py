"""``duovisor vm list`` and ``show``."""

from __future__ import annotations

from typing import Any

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option
from duovisor.cli.table import (
    format_age,
    format_mib,
    format_state,
    format_table,
    format_time,
    format_values,
)
from duovisor.cli.vm_guest import ask_guest, describe_addresses
from duovisor.cli.watching import show as show_document
from duovisor.cli.watching import watch_option

HEADER = ("NAME", "STATE", "DESIGN", "CPUS", "MEMORY", "ACCEL", "PID", "DRIVERS", "UP", "AUTOSTART")
EVERYWHERE = "0.0.0.0/0"
STATES = ("defined", "starting", "running", "paused", "stopping", "stopped", "crashed")


@click.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only VMs in this state.")
@watch_option
@json_option
def list_command(state: str | None, watch: bool, as_json: bool) -> None:
    """List the VMs of the host by name."""
    client = connect()

    def read() -> list[dict[str, Any]]:
        return [vm for vm in client.list_all("/v1/vms") if state in (None, vm["status"]["state"])]

    show_document(client, read, render_list, as_json=as_json, watch=watch)


@click.command()
@click.argument("name", shell_complete=complete_vm)
@watch_option
@json_option
def show(name: str, watch: bool, as_json: bool) -> None:
    """Show a VM: what is wanted of it and what it does."""
    from duovisor.client.service import vm_path

    client = connect()

    def read() -> dict[str, Any]:
        vm: dict[str, Any] = client.get(vm_path(name))
        if vm["record"]["spec"]["guest_agent"] and vm["status"]["state"] == "running":
            vm["guest"] = ask_guest(client, name)
        return vm

    show_document(client, read, render_vm, as_json=as_json, watch=watch)


def render_list(vms: list[dict[str, Any]]) -> str:
    """The VMs as a table."""
    if not vms:
        return "no VMs; try: duovisor vm create --image probe"
    return format_table(HEADER, map(build_row, vms), right=("CPUS", "MEMORY", "PID", "DRIVERS", "UP"))


def build_row(vm: dict[str, Any]) -> tuple[str, ...]:
    """One VM's line."""
    record, status = vm["record"], vm["status"]
    spec, autostart = record["spec"], record["autostart"]
    return (
        record["name"],
        format_state(status["state"]) + ("…" if status["action"] else ""),
        spec["design"],
        str(spec["cpus"]),
        format_mib(spec["memory_mib"]),
        status["accelerator"] or "-",
        str(status["pid"] or "-"),
        _count_drivers(status["drivers"]),
        format_age(status["started_at"]) if status["pid"] else "-",
        f"order {autostart['order']}" if autostart["enabled"] else "-",
    )


def render_vm(vm: dict[str, Any]) -> str:
    """All of a VM: its definition, its state, its processes and the latest faults."""
    record, status = vm["record"], vm["status"]
    devices = {"devices": _describe_devices(record["spec"]["devices"], status["drivers"])}
    parts = [format_values({**_describe_status(status), **_describe_record(record), **devices})]
    if "guest" in vm:
        parts.append(format_values(_describe_guest(vm["guest"])))
    if status["processes"]:
        rows = [
            (
                process["role"] + (", spare" if process["duty"] == "spare" else ""),
                str(process["pid"]),
                process["device"] or "-",
                format_state(process["state"]),
            )
            for process in status["processes"]
        ]
        parts.append(format_table(("PROCESS", "PID", "DEVICE", "STATE"), rows, right=("PID",)))
    if status["faults"]:
        faults = [(format_time(fault["at"]), fault["message"]) for fault in status["faults"]]
        parts.append(format_table(("FAULT AT", "WHAT"), faults))
    return "\n\n".join(parts)


def _describe_status(status: dict[str, Any]) -> dict[str, str]:
    values = {"state": format_state(status["state"])}
    if status["action"]:
        values["under way"] = status["action"]
    if status["accelerator"]:
        reason = status["accelerator_reason"]
        values["runs on"] = status["accelerator"] + (f": {reason}" if reason else "")
    if status["vmm"]:
        reason = status["vmm_reason"]
        values["vmm"] = status["vmm"] + (f": {reason}" if reason else "")
    if status["pid"]:
        values["since"] = f"{format_time(status['started_at'])} ({format_age(status['started_at'])})"
    elif status["ended_at"]:
        values["ended"] = format_time(status["ended_at"])
    if status["addresses"]:
        values["leases"] = "\n".join(
            f"{each['address']} ({each['card']} on {each['network']})" for each in status["addresses"]
        )
    if status["full_disks"]:
        values["waits"] = f"for room on the host for {', '.join(status['full_disks'])}; it goes on by itself"
    if status["memory_note"]:
        values["memory in use"] = status["memory_note"]
    if status["restart_needed"]:
        values["note"] = "the definition was changed since it started; it takes it up at its next start"
    return values


def _describe_record(record: dict[str, Any]) -> dict[str, str]:
    spec, autostart = record["spec"], record["autostart"]
    room = spec["memory_max_mib"]
    starts = f"order {autostart['order']}, then {autostart['delay_s']:g} s of rest"
    return {
        "name": record["name"],
        "design": spec["design"],
        "processors": f"{spec['cpus']}, {spec['cpu_model']}",
        "memory": format_mib(spec["memory_mib"]) + (f", room for {format_mib(room)}" if room else ""),
        "firmware": _describe_firmware(spec),
        "kernel": _describe_kernel(spec["kernel"]) if spec["kernel"] else "-",
        **({"screen": f"yes; duovisor vm screenshot {record['name']} FILE"} if spec["graphics"] else {}),
        "disks": "\n".join(_describe_disk(disk) for disk in spec["disks"]) or "-",
        **({"CD-ROMs": _describe_cdroms(spec)} if spec["cdroms"] else {}),
        "nics": "\n".join(_describe_nic(nic) for nic in spec["nics"]) or "-",
        "autostart": starts if autostart["enabled"] else "no",
        "uuid": record["uuid"],
        "created": format_time(record["created_at"]),
        "revision": str(record["revision"]),
    }


def _describe_cdroms(spec: dict[str, Any]) -> str:
    media = [cdrom["volume"] or cdrom["path"] or "empty" for cdrom in spec["cdroms"]]
    return "\n".join(f"cdrom{index}: {medium}" for index, medium in enumerate(media))


def _describe_firmware(spec: dict[str, Any]) -> str:
    traits = {"secure boot": spec["secure_boot"], "TPM": spec["tpm"]}
    parts = [spec["firmware"], *(name for name, there in traits.items() if there)]
    if spec["boot_order"] != ["disk", "cdrom"]:
        parts.append(f"starts from {', '.join(spec['boot_order']) or 'nothing'}")
    return ", ".join(parts)


def _describe_kernel(kernel: dict[str, Any]) -> str:
    return kernel["path"] if kernel["disk"] is None else f"what disk{kernel['disk']} has, at each start"


def _describe_guest(told: dict[str, Any]) -> dict[str, str]:
    if "error" in told:
        return {"guest": told["error"]}
    return {
        "guest": ", ".join(filter(None, (told["hostname"], told["system"]))) or "-",
        "addresses": describe_addresses(told) or "-",
    }


def _count_drivers(drivers: list[dict[str, Any]]) -> str:
    """How many devices outside the VMM are served: ``3``, or ``2 of 3``."""
    served = sum(driver["state"] == "running" for driver in drivers)
    if served == len(drivers):
        return str(served or "-")
    return f"{served} of {len(drivers)}"


def _describe_devices(devices: list[dict[str, Any]], drivers: list[dict[str, Any]]) -> str:
    """What is beside disks and network cards, and how it is served."""
    states = {driver["device"]: driver for driver in drivers}
    lines = []
    for index, device in enumerate(devices):
        name = f"device{index}"
        found = states.get(name)
        state = f", {format_state(found['state'])}" if found else ""
        reason = f": {found['reason']}" if found and found["reason"] else ""
        lines.append(f"{name}: {device['driver']}{state}{reason}")
    return "\n".join(lines) or "-"


def _describe_disk(disk: dict[str, Any]) -> str:
    if disk["cloud_init"] is not None:
        return "cloud-init (made at each start, read only)"
    traits = ["volume" if disk["volume"] else disk["format"], *(["read only"] if disk["read_only"] else [])]
    traits += [f"serial {disk['serial']}"] if disk["serial"] else []
    traits += [f"driver {disk['driver']}"] if disk["driver"] != "block" else []
    return f"{disk['volume'] or disk['path'] or 'no file'} ({', '.join(traits)})"


def _describe_nic(nic: dict[str, Any]) -> str:
    forwards = [
        f"{port['protocol']} {port['host_address']}:{port['host_port']} to port {port['guest_port']}"
        for port in nic["forward"]
    ]
    network = f"bridge {nic['bridge']}" if nic["bridge"] else nic["network"]
    traits = [*([nic["mac"]] if nic["mac"] else []), *([f"VLAN {nic['vlan']}"] if nic["vlan"] else [])]
    traits += [f"{nic['address']} only"] if nic["address"] else []
    if nic["firewall"] is not None:
        traits.append("firewall: " + ("; ".join(map(_describe_rule, nic["firewall"])) or "nothing in"))
    return ", ".join([network, *traits, *forwards])


def _describe_rule(rule: dict[str, Any]) -> str:
    side = "from" if rule["direction"] == "in" else "to"
    words = [rule["direction"], rule["protocol"], *([rule["ports"]] if rule["ports"] else [])]
    return " ".join([*words, *([] if rule["cidr"] == EVERYWHERE else [side, rule["cidr"]])])
