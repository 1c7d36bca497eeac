"""What a guest is told at its first boot: cloud-init's data, on a small disk that duovisor makes of it.

Source: cloud-init 22.4, "NoCloud" (a disk with the label CIDATA) and "Instance metadata".
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from duovisor.spec.model import SpecModel

MAX_TEXT = 256 << 10
_USER = re.compile(r"^[a-z_][a-z0-9_-]{0,31}$")
_KEY_TYPES = ("ssh-", "ecdsa-", "sk-")
_PRIVATE = "PRIVATE KEY"


def _check_user(name: str) -> str:
    if not _USER.match(name):
        raise ValueError(f"{name!r} is not a user's name: lower-case letters, digits, '-' and '_'")
    return name


def _check_key(key: str) -> str:
    key = key.strip()
    if _PRIVATE in key:
        raise ValueError("this is a private SSH key; give the public one, which ends in .pub")
    if not key.startswith(_KEY_TYPES) or len(key.split()) < 2 or "\n" in key:
        raise ValueError(f"{key[:40]!r} is not a public SSH key in one line")
    return key


def _check_network(document: dict[str, Any]) -> dict[str, Any]:
    if document.get("version") not in (1, 2):
        raise ValueError("the network configuration needs version: 1 or version: 2")
    return document


def _check_user_data(text: str) -> str:
    first = text.split("\n", 1)[0].strip()
    if not first.startswith(("#cloud-config", "#!", "#include", "## template: jinja", "Content-Type:")):
        raise ValueError(f"user-data begins with {first[:40]!r}, not with #cloud-config or #!")
    return text


UserName = Annotated[str, AfterValidator(_check_user)]
SshKey = Annotated[str, StringConstraints(max_length=16 << 10), AfterValidator(_check_key)]


UserData = Annotated[str, StringConstraints(max_length=MAX_TEXT), AfterValidator(_check_user_data)]


class CloudInitSpec(SpecModel):
    """A guest's first boot: its host name is the VM's.

    ``user`` is made, or the image's own gets ``ssh_keys``; both may use sudo. ``user_data`` is the user's
    own text and goes before all that; ``network`` is cloud-init's network configuration, by default DHCP.
    """

    user: UserName | None = None
    ssh_keys: tuple[SshKey, ...] = Field(default=(), max_length=64)
    user_data: UserData | None = None
    network: Annotated[dict[str, Any], AfterValidator(_check_network)] | None = None
