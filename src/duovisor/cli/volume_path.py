"""Volumes as they are typed: ``POOL/NAME``, or a name in the pool ``default``."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

DEFAULT_POOL = "default"


class TypedVolume(NamedTuple):
    """A volume's pool and name."""

    pool: str
    name: str

    def __str__(self) -> str:
        return f"{self.pool}/{self.name}"


def parse_volume(text: str) -> TypedVolume:
    """Read what was typed; whether there is such a volume, the service knows."""
    pool, slash, name = text.partition("/")
    return TypedVolume(pool, name) if slash else TypedVolume(DEFAULT_POOL, text)


def volume_path(text: str) -> str:
    """Where a volume is in the API."""
    volume = parse_volume(text)
    return f"/v1/volumes/{quote(volume.pool, safe='')}/{quote(volume.name, safe='')}"
