"""Abilities of released QEMUs as the binaries reported them; each file's ``source`` says how it was got."""

from __future__ import annotations

import json
from pathlib import Path

from duovisor.hardware.qemu import QemuAbilities

VERSIONS = ("7.2", "8.2", "10.0")


def load_abilities(version: str) -> QemuAbilities:
    """The recorded abilities of one of ``VERSIONS``."""
    document = json.loads((Path(__file__).parent / f"qemu-abilities-{version}.json").read_text())
    return QemuAbilities.from_document(document["abilities"])
