"""A probe guest without a VM: the same protocol on a Unix socket, its answers decided by the test."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

REPORT = {
    "event": "booted", "kernel": "6.1.0", "uptime_s": 1.93, "cpus": 2, "memory_mib": 210, "nics": ["eth0"],
    "disks": [
        {"name": "vda", "size_bytes": 1 << 30, "serial": "data"},
        {"name": "vdb", "size_bytes": 1 << 20, "serial": "duovisor-tools"},
    ],
}  # fmt: skip


class Answer(NamedTuple):
    """What a command comes to."""

    exit: int
    output: bytes


def encode(message: dict[str, object]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def encode_done(number: int, answer: Answer) -> bytes:
    output = base64.b64encode(answer.output).decode()
    return encode({"event": "done", "id": number, "exit": answer.exit, "output": output})


@contextlib.asynccontextmanager
async def start_guest(
    path: Path, run: Callable[[str], Answer | None], *, greeting: bytes = b"", deaf: bool = False
) -> AsyncIterator[list[str]]:
    """Serve ``path``; yields the commands heard. ``run`` returning None hangs up; ``deaf``: silent."""
    heard: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        if deaf:
            await reader.read()
        while line := (await reader.readline()).split():
            if line == [b"report"]:
                writer.write(encode(REPORT))
                continue
            command = base64.b64decode(line[1]).decode()
            heard.append(command)
            if (answer := run(command)) is None:
                break
            writer.write(encode_done(int(line[0]), answer))
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield heard
