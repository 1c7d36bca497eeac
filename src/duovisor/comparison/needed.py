"""The programs that a comparison needs: what is missing is named at once, each with its package."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from duovisor.controlling.errors import HostLacksError
from duovisor.controlling.images.probe import NAME, find_probe_image
from duovisor.controlling.preflight import find_sandbox_tools
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from duovisor.comparison.errors import SkippedError
    from duovisor.comparison.plan import Scale
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities

# program → Debian's and Ubuntu's package
ALWAYS = {"qemu-system-x86_64": "qemu-system-x86", "bwrap": "bubblewrap", "setpriv": "util-linux"}
PROBE_IMAGE = {"busybox": "busybox-static", "fio": "fio", "mke2fs": "e2fsprogs"}
OWN_NETWORK = {"mke2fs": "e2fsprogs"}
NO_OWN_NETWORK = {"passt": "passt"}


def check_programs(
    scale: Scale,
    directories: Directories,
    no_network: SkippedError | None,
    find: Callable[[str], str | None] = shutil.which,
) -> None:
    """Raises ``HostLacksError`` that names all that is missing for this comparison, and how to install it."""
    wanted = [ALWAYS, NO_OWN_NETWORK if no_network else OWN_NETWORK]
    if scale.image == NAME and find_probe_image(directories) is None:
        wanted.append(PROBE_IMAGE)
    missing = _list_missing(wanted, find)
    if missing:
        raise HostLacksError(
            f"not installed: {', '.join(missing)}",
            remedy=f"apt-get install --no-install-recommends {' '.join(dict.fromkeys(missing.values()))}",
        )


def check_sandboxes(capabilities: HostCapabilities) -> None:
    """Raises ``HostLacksError`` where the microkernelized design cannot run: there is nothing to compare."""
    for design in Design:
        find_sandbox_tools(design, capabilities)


def _list_missing(wanted: Iterable[Mapping[str, str]], find: Callable[[str], str | None]) -> dict[str, str]:
    return {program: package for each in wanted for program, package in each.items() if find(program) is None}
