"""What the firewall of a network card lets through: a list of what is allowed, as a user writes it."""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Network
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from duovisor.spec.model import SpecModel

RULES_MAX = 64
EXAMPLE = "in tcp 22 from 10.0.0.0/8"

_PORTS = re.compile(r"^(\d{1,5})(?:-(\d{1,5}))?$", re.ASCII)


class Direction(StrEnum):
    """As the guest sees it: ``in`` begins elsewhere, ``out`` in the guest."""

    IN = "in"
    OUT = "out"


class Protocol(StrEnum):
    """What is above IPv4; ``any`` is everything."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    ANY = "any"


def check_ports(text: str) -> str:
    """Return a port or a range of ports, or raise ``ValueError``."""
    match = _PORTS.match(text)
    numbers = [int(each) for each in match.groups() if each] if match else []
    if not numbers or not all(1 <= each <= 65535 for each in numbers) or numbers != sorted(numbers):
        raise ValueError(f"{text!r} is neither a port nor a range; write for example 22 or 8000-8100")
    return text


def check_cidr(text: str) -> str:
    """Return an IPv4 network or address as ``ADDRESS/LENGTH``, or raise ``ValueError``."""
    try:
        return str(IPv4Network(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is no IPv4 network ({error}); write for example 10.0.0.0/8") from error


class FirewallRule(SpecModel):
    """One thing that is allowed; also written ``in tcp 22 from 10.0.0.0/8``.

    ``ports`` are those of the side that is spoken to, ``cidr`` is the other side than the guest.
    """

    direction: Direction
    protocol: Protocol = Protocol.ANY
    ports: Annotated[str, AfterValidator(check_ports)] | None = None
    cidr: Annotated[str, AfterValidator(check_cidr)] = "0.0.0.0/0"

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: Any) -> Any:
        """Accept ``in|out [tcp|udp|icmp|any] [PORT[-PORT]] [from|to CIDR]``, and a number as ``ports``."""
        if isinstance(value, str):
            return _parse_rule(value)
        if isinstance(value, dict) and type(value.get("ports")) is int:
            return {**value, "ports": str(value["ports"])}
        return value

    @model_validator(mode="after")
    def _check_ports_have_a_protocol(self) -> FirewallRule:
        if self.ports is not None and self.protocol not in (Protocol.TCP, Protocol.UDP):
            raise ValueError(f"protocol {self.protocol} has no ports; say tcp or udp")
        return self

    def __str__(self) -> str:
        side = "from" if self.direction is Direction.IN else "to"
        place = "" if self.cidr == "0.0.0.0/0" else f" {side} {self.cidr}"
        return f"{self.direction} {self.protocol}{f' {self.ports}' if self.ports else ''}{place}"


def _parse_rule(text: str) -> dict[str, str]:
    direction, *rest = text.split() or [""]
    found = {"direction": direction}
    if rest and rest[0] in set(Protocol):
        found["protocol"] = rest.pop(0)
    if rest and _PORTS.match(rest[0]):
        found["ports"] = rest.pop(0)
    if len(rest) == 2 and rest[0] == ("from" if direction == Direction.IN else "to"):
        found["cidr"] = rest.pop()
        rest.pop()
    if rest or direction not in set(Direction):
        raise ValueError(f"{text!r} is no rule; write for example {EXAMPLE!r}, or 'out udp 53'")
    return found


def split_rules(value: Any) -> Any:
    """A command line's ``in tcp 22;in icmp`` as a list; empty: no rule."""
    if isinstance(value, str):
        return [rule for rule in map(str.strip, value.split(";")) if rule]
    return value


Firewall = Annotated[tuple[FirewallRule, ...], BeforeValidator(split_rules), Field(max_length=RULES_MAX)]
