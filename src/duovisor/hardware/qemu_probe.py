"""Asks a QEMU binary over QMP, with no machine, what it can do (about 100 ms).

All questions are written at once and the last is ``quit``: one exchange, nothing to wait for in between.
Member names are stable in ``query-qmp-schema``, type names are not: types are reached from commands only
(QEMU docs/devel/qapi-code-gen.rst, "Client JSON Protocol introspection").
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from duovisor.hardware.errors import QemuUnusableError
from duovisor.hardware.io_uring import kernel_allows_io_uring
from duovisor.hardware.qemu import INSTALL, QemuAbilities
from duovisor.process import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_S = 20.0
DEVICE_TYPES = (
    "memory-backend-file",
    "memory-backend-memfd",
    "vhost-user-blk-pci",
    "virtio-blk-pci",
    "virtio-net-pci",
    "virtio-serial-pci",
)
QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "capabilities": ("qmp_capabilities", {}),
    "version": ("query-version", {}),
    "machines": ("query-machines", {}),
    "options": ("query-command-line-options", {}),
    "schema": ("query-qmp-schema", {}),
    "types": ("qom-list-types", {"abstract": False}),
    "virtio-blk": ("device-list-properties", {"typename": "virtio-blk-pci"}),
    "quit": ("quit", {}),
}


class Schema:
    """The answer to ``query-qmp-schema``, walked from a command to the members of its argument."""

    def __init__(self, entities: list[dict[str, Any]]) -> None:
        self._entities = {entity["name"]: entity for entity in entities}

    def has_command(self, name: str) -> bool:
        return name in self._entities

    def argument(self, command: str) -> dict[str, Any]:
        """The type of a command's argument; empty when there is no such command."""
        return self._type(self._entities.get(command, {}).get("arg-type"))

    def member(self, entity: dict[str, Any], name: str) -> dict[str, Any]:
        """The type of one member; empty when there is none."""
        types = [member["type"] for member in entity.get("members", []) if member["name"] == name]
        return self._type(types[0] if types else None)

    def variant(self, entity: dict[str, Any], case: str) -> dict[str, Any]:
        """The type of one case of a union; empty when there is none."""
        types = [variant["type"] for variant in entity.get("variants", []) if variant["case"] == case]
        return self._type(types[0] if types else None)

    def _type(self, name: str | None) -> dict[str, Any]:
        return self._entities.get(name, {}) if name else {}


def probe_qemu(binary: Path, *, timeout_s: float = TIMEOUT_S) -> QemuAbilities:
    """Run ``binary`` without a machine and ask what it can do.

    Raises ``ProgramNotFoundError``, ``ProgramFailedError`` with its last words, ``ProgramTimeoutError``, or
    ``QemuUnusableError`` when it is not a QEMU for x86-64 PCs.
    """
    said = run(build_probe_argv(binary), stdin=build_questions(), timeout_s=timeout_s, remedy=INSTALL)
    return parse_answers(binary, said, kernel_io_uring=kernel_allows_io_uring())


def build_probe_argv(binary: Path) -> tuple[str, ...]:
    """The command line of a QEMU that only answers questions; it takes whichever accelerator it has."""
    return (
        str(binary), "-machine", "none,accel=tcg:kvm", "-nodefaults", "-no-user-config",
        "-display", "none", "-qmp", "stdio",
    )  # fmt: skip


def build_questions() -> bytes:
    """What is written to its standard input."""
    commands = [
        {"execute": command, "arguments": arguments, "id": name}
        for name, (command, arguments) in QUESTIONS.items()
    ]
    return "".join(json.dumps(command) + "\n" for command in commands).encode()


def parse_answers(binary: Path, said: str, *, kernel_io_uring: bool) -> QemuAbilities:
    """The abilities from what QEMU printed; raises ``QemuUnusableError``."""
    try:
        answers = dict(_read_answers(said))
        return _read_abilities(answers, kernel_io_uring=kernel_io_uring)
    except (KeyError, TypeError, ValueError) as error:
        raise QemuUnusableError(
            f"{binary} does not answer as a QEMU for x86-64 servers: {type(error).__name__} {error}",
            remedy="set DUOVISOR_QEMU to a qemu-system-x86_64, or " + INSTALL,
        ) from error


def _read_answers(said: str) -> Iterator[tuple[str, Any]]:
    for line in said.splitlines():
        message = json.loads(line)
        if "return" in message and "id" in message:
            yield message["id"], message["return"]


def _read_abilities(answers: dict[str, Any], *, kernel_io_uring: bool) -> QemuAbilities:
    version = answers["version"]["qemu"]
    types = {entry["name"] for entry in answers["types"]}
    block_properties = {entry["name"] for entry in answers.get("virtio-blk", [])}
    schema = Schema(answers["schema"])
    stream = _members(schema.variant(schema.argument("netdev_add"), "stream"))
    machine = next((entry for entry in answers["machines"] if entry.get("alias") == "q35"), None)
    if machine is None:
        raise ValueError("it has no q35 machine")
    return QemuAbilities(
        version=(version["major"], version["minor"], version["micro"]),
        package=answers["version"]["package"],
        q35_machine=machine["name"],
        q35_cpus_max=machine["cpu-max"],
        kvm="kvm-accel" in types,
        tcg="tcg-accel" in types,
        io_uring=kernel_io_uring and _has_io_uring(schema),
        seccomp=any(option["option"] == "sandbox" for option in answers["options"]),
        virtio_blk_queue_reset="queue_reset" in block_properties,
        virtio_blk_iothread_vq_mapping="iothread-vq-mapping" in block_properties,
        netdev_stream=bool(stream),
        netdev_stream_reconnect=bool(stream & {"reconnect", "reconnect-ms"}),
        reconnect_ms="reconnect-ms" in _members(_socket_chardev(schema)),
        blockdev_set_active=schema.has_command("blockdev-set-active"),
        device_types=tuple(name for name in DEVICE_TYPES if name in types),
    )


def _members(entity: dict[str, Any]) -> set[str]:
    return {member["name"] for member in entity.get("members", [])}


def _has_io_uring(schema: Schema) -> bool:
    aio = schema.member(schema.variant(schema.argument("blockdev-add"), "file"), "aio")
    return "io_uring" in aio.get("values", [])


def _socket_chardev(schema: Schema) -> dict[str, Any]:
    backend = schema.member(schema.argument("chardev-add"), "backend")
    return schema.member(schema.variant(backend, "socket"), "data")
