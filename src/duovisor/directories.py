"""Where duovisor keeps its things on the host; a pure function of the environment and the user id.

========  ============================  =======================================  =====================
what      root                          other users                              environment override
========  ============================  =======================================  =====================
state     ``/var/lib/duovisor``         ``$XDG_DATA_HOME/duovisor``              ``DUOVISOR_STATE_DIR``
runtime   ``/run/duovisor``             ``$XDG_RUNTIME_DIR/duovisor``            ``DUOVISOR_RUNTIME_DIR``
cache     ``/var/cache/duovisor``       ``$XDG_CACHE_HOME/duovisor``             ``DUOVISOR_CACHE_DIR``
========  ============================  =======================================  =====================

*state* survives everything (images), *runtime* lasts until the host's next boot (sockets, guest memory),
*cache* can be deleted at any time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Directories(NamedTuple):
    """The three folders; none is created here."""

    state: Path
    runtime: Path
    cache: Path

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def vms(self) -> Path:
        return self.runtime / "vms"


def find_directories(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Directories:
    """The folders for a user, by default the one who runs this process."""
    environ = os.environ if environ is None else environ
    uid = os.geteuid() if uid is None else uid
    if uid == 0:
        state, runtime, cache = Path("/var/lib"), Path("/run"), Path("/var/cache")
    else:
        home = Path(environ.get("HOME", "/"))
        state = Path(environ.get("XDG_DATA_HOME") or home / ".local/share")
        runtime = Path(environ.get("XDG_RUNTIME_DIR") or f"/tmp/duovisor-runtime-{uid}")
        cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    return Directories(
        state=Path(environ.get("DUOVISOR_STATE_DIR") or state / "duovisor"),
        runtime=Path(environ.get("DUOVISOR_RUNTIME_DIR") or runtime / "duovisor"),
        cache=Path(environ.get("DUOVISOR_CACHE_DIR") or cache / "duovisor"),
    )
