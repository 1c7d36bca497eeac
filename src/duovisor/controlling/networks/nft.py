"""The kernel's packet filter, through nft: scripts that are done whole or not at all, and what there is.

docs/decisions/027 says why the program, and why its own language.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

from duovisor import process
from duovisor.controlling.errors import HostLacksError, NetworkError

TIMEOUT_S = 20.0
ELSEWHERE = "/usr/sbin:/sbin"  # an ordinary user's PATH leaves these out
INSTALL = "apt-get install nftables"


def run_script(script: str) -> None:
    """Change the packet filter as a script says, in one transaction.

    Raises ``HostLacksError`` without nft or without the right to, ``NetworkError`` when the kernel refuses.
    """
    _run(("-f", "-"), script.encode())


def list_objects(*what: str) -> list[dict[str, Any]]:
    """What ``nft -j list …`` prints, one object after another; none of what is not there. Raises as above."""
    try:
        answer = _run(("-j", "list", *what))
    except NetworkError as error:
        if "No such file" in error.message:
            return []
        raise
    found: list[dict[str, Any]] = json.loads(answer)["nftables"]
    return found


def _run(arguments: tuple[str, ...], script: bytes | None = None) -> str:
    program = shutil.which("nft") or shutil.which("nft", path=ELSEWHERE)
    if program is None:
        raise HostLacksError("nft, the packet filter's program, is not on this host", remedy=INSTALL)
    try:
        return process.run((program, *arguments), timeout_s=TIMEOUT_S, stdin=script)
    except process.ProgramFailedError as error:
        if "Operation not permitted" in error.last_words:
            raise HostLacksError(
                "to change the packet filter needs the right to do so (CAP_NET_ADMIN)",
                remedy="let the service run as root",
            ) from error
        raise NetworkError(f"the packet filter refuses: {error.last_words}") from error
