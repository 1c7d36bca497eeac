"""A QEMU that answers the probe's questions and nothing else: a shell script that really runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from duovisor.hardware.qemu_probe import DEVICE_TYPES

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA: list[dict[str, Any]] = [
    {"name": "blockdev-add", "meta-type": "command", "arg-type": "1"},
    {"name": "1", "meta-type": "object", "members": [], "variants": [{"case": "file", "type": "2"}]},
    {"name": "2", "meta-type": "object", "members": [{"name": "aio", "type": "3"}]},
    {"name": "3", "meta-type": "enum", "values": ["threads", "native", "io_uring"]},
    {"name": "netdev_add", "meta-type": "command", "arg-type": "4"},
    {"name": "4", "meta-type": "object", "members": [], "variants": [{"case": "stream", "type": "5"}]},
    {"name": "5", "meta-type": "object", "members": [{"name": "addr", "type": "9"}]},
]


def build_answers(
    *, version: tuple[int, int, int] = (7, 2, 1), schema: list[dict[str, Any]] = SCHEMA, q35: bool = True
) -> dict[str, Any]:
    """The answers of a QEMU, by question; those of Debian 12's, shortened, unless told otherwise."""
    major, minor, micro = version
    name = f"pc-q35-{major}.{minor}" if q35 else "pc-i440fx-7.2"
    return {
        "version": {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": "fake"},
        "machines": [{"name": name, "cpu-max": 288, "alias": "q35" if q35 else "pc"}],
        "options": [{"option": "sandbox", "parameters": []}],
        "schema": schema,
        "types": [{"name": kind} for kind in (*DEVICE_TYPES, "tcg-accel")],
        "virtio-blk": [{"name": "drive"}, {"name": "queue_reset"}],
    }


def as_output(answers: dict[str, Any]) -> str:
    """What QEMU would print: its greeting, an event in between, and the answers."""
    messages: list[dict[str, Any]] = [
        {"QMP": {"version": {}, "capabilities": []}},
        {"event": "SHUTDOWN", "data": {}},
        *({"return": answer, "id": question} for question, answer in answers.items()),
    ]
    return "".join(json.dumps(message) + "\n" for message in messages)


def write_script(path: Path, body: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def write_fake_qemu(folder: Path, answers: dict[str, Any] | None = None) -> Path:
    """A QEMU that notes each of its starts as a line of ``folder/starts``."""
    (folder / "answers").write_text(as_output(build_answers() if answers is None else answers))
    return write_script(
        folder / "qemu-system-x86_64",
        f"cat > /dev/null; echo start >> '{folder}/starts'; cat '{folder}/answers'",
    )


def count_starts(folder: Path) -> int:
    """How often the QEMU of ``write_fake_qemu`` was started."""
    starts = folder / "starts"
    return len(starts.read_text().splitlines()) if starts.exists() else 0
