"""Whether processes can be limited together, in groups (cgroup v2) that systemd makes for whoever asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.hardware.attributes import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONTROLLERS = ("memory", "pids")


def find_groups_problem(
    root: Path, systemd_run: Path | None, environ: Mapping[str, str], *, is_root: bool
) -> str:
    """Why this user can have no groups on this host; empty when they can."""
    if not (root / "run/systemd/system").is_dir():  # sd_booted(3)
        return "this host does not run systemd"
    available = read_text(root / "sys/fs/cgroup/cgroup.controllers").split()
    missing = [name for name in CONTROLLERS if name not in available]
    if missing:
        return f"cgroup v2 has no controller for {' and '.join(missing)} here"
    if systemd_run is None:
        return "systemd-run is not installed"
    runtime = environ.get("XDG_RUNTIME_DIR", "").lstrip("/")
    if not is_root and not (runtime and (root / runtime / "systemd").is_dir()):
        return "this user has no systemd of their own"
    return ""
