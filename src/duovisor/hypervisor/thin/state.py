"""The state of vCPUs and interrupt chips between two instructions; and, with devices, of a whole machine.

It is a JSON document with bytes in base64. Memory is not in it: that is a file of its own.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import NamedTuple

from duovisor.hypervisor.thin import kvm_abi as abi
from duovisor.hypervisor.thin.errors import ThinConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.hypervisor.thin.machine import Machine

FORMAT = 1
CHIPS = (abi.CHIP_PIC_MASTER, abi.CHIP_PIC_SLAVE, abi.CHIP_IOAPIC)
STATE_BYTES_MAX = 16 << 20


class Hardware(NamedTuple):
    """What KVM holds of a machine that does not run."""

    vcpus: list[dict[str, bytes]]
    chips: list[bytes]


def save_hardware(machine: Machine) -> Hardware:
    """Read it all; no processor may run."""
    return Hardware(
        [vcpu.save() for vcpu in machine.vcpus], [machine.vm.read_irqchip(chip) for chip in CHIPS]
    )


def restore_hardware(machine: Machine, hardware: Hardware, *, with_tsc: bool) -> None:
    """Write it all; no processor may run. Raises ``ValueError`` or ``OSError`` for what is no state."""
    if len(hardware.vcpus) != len(machine.vcpus) or len(hardware.chips) != len(CHIPS):
        raise ValueError(f"the state is of {len(hardware.vcpus)} processors, not {len(machine.vcpus)}")
    for chip in hardware.chips:
        if len(chip) != abi.IRQCHIP_BYTES:
            raise ValueError("the state of an interrupt controller is cut off")
        machine.vm.write_irqchip(chip)
    for vcpu, state in zip(machine.vcpus, hardware.vcpus, strict=True):
        vcpu.restore(state, with_tsc=with_tsc)


def save_machine(machine: Machine, clock_ns: int) -> bytes:
    """The whole state of a paused machine, without its memory."""
    hardware = save_hardware(machine)
    document = {
        "format": FORMAT,
        "cpus": machine.config.cpus,
        "cpu_model": machine.config.cpu_model,
        "memory_mib": machine.config.memory_mib,
        "clock_ns": clock_ns,
        "vcpus": [{name: _encode(data) for name, data in vcpu.items()} for vcpu in hardware.vcpus],
        "chips": [_encode(chip) for chip in hardware.chips],
        "devices": {device.name: device.save() for device in machine.devices},
    }
    return json.dumps(document).encode()


def restore_machine(machine: Machine, data: bytes) -> int:
    """Take on a saved state; its clock. Raises ``ThinConfigError`` for one that does not fit."""
    try:
        document = json.loads(data)
        for key in ("cpus", "cpu_model", "memory_mib"):
            if document[key] != getattr(machine.config, key):
                raise ThinConfigError(f"the saved state has {key} {document[key]}, this machine another one")
        if document["format"] != FORMAT or set(document["devices"]) != {
            each.name for each in machine.devices
        }:
            raise ThinConfigError("the saved state is of another format, or has other devices")
        vcpus = [{name: _decode(text) for name, text in vcpu.items()} for vcpu in document["vcpus"]]
        hardware = Hardware(vcpus, [_decode(chip) for chip in document["chips"]])
        restore_hardware(machine, hardware, with_tsc=True)
        for device in machine.devices:
            device.restore(document["devices"][device.name])
        return int(document["clock_ns"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ThinConfigError(f"the saved state cannot be restored: {error}") from error


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
