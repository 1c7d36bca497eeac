"""The VMM's command line: one JSON document, and the numbers of the descriptors that it inherits.

``thin_plan.py`` writes it. It is checked again here: an unknown or missing key is an error.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from duovisor.hypervisor.thin.cpu_model import MAX_CPUS
from duovisor.hypervisor.thin.errors import ThinConfigError
from duovisor.hypervisor.thin.ports import DeviceConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CONTROL, DEBUG, STATE = "qmp", "debug", "state"
KVM, MEMORY, KERNEL, INITRD = "kvm", "memory", "kernel", "initrd"
PAGER, USERFAULT = "pager", "userfault"
NEEDED = (CONTROL, KVM, MEMORY, KERNEL)
MEMORY_MIB_MIN = 32


class Config(NamedTuple):
    """What to run; it opens nothing itself, ``descriptors`` has the number of each thing by its name."""

    name: str
    cpus: int
    cpu_model: str
    memory_mib: int
    command_line: str
    devices: tuple[DeviceConfig, ...]
    descriptors: dict[str, int]
    is_incoming: bool = False


def parse_arguments(arguments: Sequence[str]) -> Config:
    """Read ``--config JSON``, ``--descriptor NAME=NUMBER``…, ``-incoming defer``; raises ``ThinConfigError``.

    The last is QEMU's word for a VMM that takes over from another one.
    """
    document = ""
    descriptors: dict[str, int] = {}
    is_incoming = False
    pairs = iter(arguments)
    for option in pairs:
        value = next(pairs, None)
        if option == "--config" and value is not None:
            document = value
        elif option == "--descriptor" and value is not None:
            name, _, number = value.rpartition("=")
            if not name or not number.isdecimal():
                raise ThinConfigError(f"{value} is no NAME=DESCRIPTOR")
            descriptors[name] = int(number)
        elif (option, value) == ("-incoming", "defer"):
            is_incoming = True
        else:
            raise ThinConfigError(f"{option} is no option with a value")
    return parse_config(document, descriptors)._replace(is_incoming=is_incoming)


def parse_config(document: str, descriptors: dict[str, int]) -> Config:
    """Read the JSON document; raises ``ThinConfigError``."""
    try:
        fields = json.loads(document)
        devices = tuple(_parse_device(device, descriptors) for device in fields.pop("devices"))
        config = Config(**fields, devices=devices, descriptors=descriptors)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ThinConfigError(f"the configuration cannot be read: {error}") from error
    if not 1 <= config.cpus <= MAX_CPUS:
        raise ThinConfigError(f"{config.cpus} processors cannot be had: 1 to {MAX_CPUS}")
    if config.memory_mib < MEMORY_MIB_MIN:
        raise ThinConfigError(f"{config.memory_mib} MiB of memory are too few: {MEMORY_MIB_MIN} at least")
    if missing := [name for name in NEEDED if name not in descriptors]:
        raise ThinConfigError(f"there is no descriptor for {', '.join(missing)}")
    return config


def _parse_device(fields: dict[str, Any], descriptors: dict[str, int]) -> DeviceConfig:
    if fields["name"] not in descriptors:
        raise ThinConfigError(f"there is no descriptor for device {fields['name']}")
    config = bytes.fromhex(fields.pop("config", ""))
    return DeviceConfig(socket=descriptors[fields["name"]], config=config, **fields)
