"""What processors a guest sees."""

from __future__ import annotations

from enum import StrEnum


class CpuModel(StrEnum):
    """``host``: all that this host has; the others are levels of the x86-64 psABI, the same on every host.

    Source: System V ABI, AMD64 supplement, 3.1.1, micro-architecture levels.
    """

    HOST = "host"
    X86_64_V2 = "x86-64-v2"
    X86_64_V3 = "x86-64-v3"
