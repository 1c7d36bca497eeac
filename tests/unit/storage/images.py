"""Images as QEMU's tools make them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE_BYTES = 4 * MIB
CONTENT = bytes(MIB) + bytes(range(256)) * 4096 + bytes(2 * MIB)


def qemu_img(*words: str | Path) -> str:
    """Run qemu-img, which must succeed."""
    done = subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, text=True)
    return done.stdout


def make_image(path: Path, driver: str, *options: str) -> bytes:
    """An image of a format with ``CONTENT``; returns its bytes."""
    raw = path.with_suffix(".source")
    raw.write_bytes(CONTENT)
    qemu_img("convert", "-f", "raw", "-O", driver, *options, raw, path)
    return path.read_bytes()


def read_image(path: Path, driver: str) -> bytes:
    """What a guest would see of an image."""
    raw = path.parent / f".read-{path.name}"
    qemu_img("convert", "-f", driver, "-O", "raw", path, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content
