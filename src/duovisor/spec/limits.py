"""How much of something a VM may use: numbers as people write them."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from duovisor.spec.model import SpecModel
from duovisor.spec.sizes import KIB, MIB, parse_bytes


def _read_bandwidth(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


# less than one large request in a second would look like a device that hangs
Bandwidth = Annotated[int, BeforeValidator(_read_bandwidth), Field(ge=MIB, le=1 << 40)]


# so that the largest frame takes a second at most
NetworkBandwidth = Annotated[int, BeforeValidator(_read_bandwidth), Field(ge=64 * KIB, le=1 << 40)]


class CardLimits(SpecModel):
    """How many bytes a second a guest gets and sends at most through a network card."""

    in_limit: NetworkBandwidth | None = None
    out_limit: NetworkBandwidth | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.in_limit is not None or self.out_limit is not None

    def without_limits(self) -> Self:
        """The same with all the bandwidth there is."""
        return self.model_copy(update={"in_limit": None, "out_limit": None})


class ProcessorShare(NamedTuple):
    """What a group of processes gets: its weight among others, and of how many processors at most."""

    weight: int | None
    limit: float | None


class ProcessorLimits(SpecModel):
    """How much of the host's processors a VM gets, with all that serves it; kept by cgroup v2, or refused.

    ``cpu_limit`` is how many processors it may use at most (1.5: one and a half), ``cpu_reservation`` how
    many are kept for it: VMs that together want more than the host has do not start. ``cpu_weight`` is its
    share where processors are short: 100 is what everybody has; a reservation sets it, unless it is given.
    """

    cpu_weight: int | None = Field(default=None, ge=1, le=10_000)
    cpu_limit: float | None = Field(default=None, ge=0.01, le=4096, allow_inf_nan=False)
    cpu_reservation: float | None = Field(default=None, ge=0.01, le=4096, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_reservation(self) -> ProcessorLimits:
        if self.cpu_limit is not None and (self.cpu_reservation or 0) > self.cpu_limit:
            raise ValueError(
                f"cpu_reservation {self.cpu_reservation:g} is more than cpu_limit {self.cpu_limit:g}"
            )
        return self

    @property
    def processor_share(self) -> ProcessorShare | None:
        """What is asked of the host; ``None`` for nothing in particular."""
        weight = self.cpu_weight
        if weight is None and self.cpu_reservation is not None:
            weight = min(10_000, max(100, round(100 * self.cpu_reservation)))
        return ProcessorShare(weight, self.cpu_limit) if weight or self.cpu_limit else None
