"""Migration streams that released QEMUs wrote; ``streams/README.md`` says how they were got."""

from __future__ import annotations

import gzip
from pathlib import Path

from duovisor.spec.vm import Design

FOLDER = Path(__file__).parent / "streams"
VERSIONS = ("7.2", "10.0")
# what is in the guest besides the probe's port: two disks; one of them and a card on a bridge; a card on user
# networking and a source of entropy, which only the monolithic design is recorded with
CASES = ("disks", "bridged", "user")
RECORDED = tuple(
    (version, design, case)
    for version in VERSIONS
    for design in Design
    for case in CASES
    if case != "user" or design is Design.MONOLITHIC
)


def stream_path(version: str, design: Design, case: str) -> Path:
    """Where a stream is kept."""
    return FOLDER / f"{version}-{design}-{case}.gz"


def load_stream(version: str, design: Design, case: str) -> bytes:
    """One of ``RECORDED``."""
    return gzip.decompress(stream_path(version, design, case).read_bytes())
