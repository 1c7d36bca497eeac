"""What of its host's processors and memory a VM has: what its guest sees, and what it may use."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from duovisor.spec.limits import ProcessorLimits
from duovisor.spec.sizes import MIB, parse_bytes

LIMIT_ROOM_MIB = 64  # at least, beside the guest's memory


def _read_memory(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    size = parse_bytes(value, default_unit="m")
    if size % MIB:
        raise ValueError(f"{value!r} is not a whole number of MiB")
    return size // MIB


MemoryMib = Annotated[int, BeforeValidator(_read_memory), Field(ge=16, le=16 << 20)]


class Resources(ProcessorLimits):
    """The guest has ``cpus`` processors and ``memory_mib`` (``memory: 2G``).

    ``cpus_max`` and ``memory_max_mib`` (``memory_max: 8G``) are the room for what comes while it runs; by
    default there is none.
    ``memory_limit_mib`` (``memory_limit: 3G``) is how much memory of the host all that serves the VM may use
    together, the guest's included; kept by cgroup v2, or refused. By default it follows from the devices.
    """

    cpus: int = Field(default=1, ge=1, le=255)
    cpus_max: int | None = Field(default=None, ge=1, le=255)
    memory_mib: MemoryMib = 512
    memory_max_mib: MemoryMib | None = None
    memory_limit_mib: MemoryMib | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_memory_aliases(cls, value: Any) -> Any:
        """Accept ``memory: 2G`` beside ``memory_mib: 2048``, but not both; as for the others."""
        for alias in ("memory", "memory_max", "memory_limit"):
            if isinstance(value, dict) and alias in value:
                if f"{alias}_mib" in value:
                    raise ValueError(f"give {alias} or {alias}_mib, not both")
                value = dict(value)
                value[f"{alias}_mib"] = value.pop(alias)
        return value

    @model_validator(mode="after")
    def _check_memory_limit(self) -> Resources:
        if self.memory_limit_mib is not None and self.memory_limit_mib < self.memory_mib + LIMIT_ROOM_MIB:
            raise ValueError(
                f"memory_limit is {self.memory_limit_mib} MiB; a guest of {self.memory_mib} MiB "
                f"and what serves it need at least {self.memory_mib + LIMIT_ROOM_MIB}"
            )
        return self

    @model_validator(mode="after")
    def _check_room(self) -> Resources:
        if self.cpus > self.cpus_room:
            raise ValueError(f"cpus {self.cpus} is more than cpus_max {self.cpus_max}")
        if self.memory_mib > self.memory_room_mib:
            raise ValueError(f"memory of {self.memory_mib} MiB is more than memory_max {self.memory_max_mib}")
        return self

    @property
    def cpus_room(self) -> int:
        """How many processors the guest may have before it is started again."""
        return self.cpus if self.cpus_max is None else self.cpus_max

    @property
    def memory_room_mib(self) -> int:
        """How much memory the guest may have before it is started again."""
        return self.memory_mib if self.memory_max_mib is None else self.memory_max_mib

    @property
    def needs_group(self) -> bool:
        """Whether something is asked that only a group of processes (cgroup v2) can keep."""
        return self.processor_share is not None or self.memory_limit_mib is not None
