"""The recorded hosts: their trees, and what running a guest on each gave (see recorded/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

from duovisor.hardware.kvm import KvmProbe

RECORDED = Path(__file__).parent / "recorded"
XEON, EPYC, PLAIN_VM, INTERPRETED = "xeon-vmx", "epyc-svm", "vm-without-extension", "cloud-interpreted-kvm"
HOSTS = (XEON, EPYC, PLAIN_VM, INTERPRETED)


def find_root(name: str) -> Path:
    """Where the host's ``proc``, ``sys`` and ``etc`` lie."""
    return RECORDED / name


def load_probe(name: str) -> KvmProbe:
    """What running a guest on the host gave."""
    return KvmProbe.from_document(json.loads((RECORDED / name / "kvm-probe.json").read_text()))
