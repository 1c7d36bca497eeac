"""How much of something a VM may use: numbers as people write them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from duovisor.spec.sizes import MIB, parse_bytes


def _read_bandwidth(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


# less than one large request in a second would look like a device that hangs
Bandwidth = Annotated[int, BeforeValidator(_read_bandwidth), Field(ge=MIB, le=1 << 40)]
