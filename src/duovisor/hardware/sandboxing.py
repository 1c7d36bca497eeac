"""Whether this user may make the sandbox that driver partitions need, found by making one."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duovisor.hardware.attributes import read_int, read_text
from duovisor.process import ProcessError, run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

INSTALL = "apt install bubblewrap"
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class SandboxProbe:
    """Whether an empty sandbox could be made; ``reason`` and ``remedy`` say why not."""

    works: bool
    reason: str
    remedy: str = ""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> SandboxProbe:
        """The outcome from its JSON form; raises ``ValueError`` for anything else."""
        try:
            return cls(**document)
        except TypeError as error:
            raise ValueError(f"not the outcome of a sandbox probe: {error}") from error


def probe_sandbox(bwrap: Path | None, root: Path) -> SandboxProbe:
    """Run ``true`` in namespaces as a driver partition has them; never raises.

    ``root`` is where the ``proc`` that explains a refusal lies.
    """
    if bwrap is None:
        return SandboxProbe(False, "bubblewrap is not installed", INSTALL)
    is_root = os.geteuid() == 0
    try:
        run(build_trial_argv(bwrap, as_root=is_root), timeout_s=TIMEOUT_S)
    except ProcessError as error:
        why, remedy = explain_refusal(root, is_root=is_root)
        return SandboxProbe(False, f"bubblewrap cannot make a sandbox: {why or error.message}", remedy)
    return SandboxProbe(True, "bubblewrap, as root" if is_root else "bubblewrap, in a user namespace")


def build_trial_argv(bwrap: Path, *, as_root: bool) -> tuple[str, ...]:
    """A sandbox with the namespaces of a driver partition, over a read-only view of the host."""
    user = () if as_root else ("--unshare-user",)
    true = shutil.which("true") or "/bin/true"
    return (
        str(bwrap), *user, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
        "--ro-bind", "/", "/", "--", true,
    )  # fmt: skip


def explain_refusal(root: Path, *, is_root: bool) -> tuple[str, str]:
    """The setting that forbids it and its remedy, from the host's sysctls; empty texts when none does."""
    sysctl = root / "proc/sys"
    if is_root:
        return "", "give this container CAP_SYS_ADMIN, or run on the host itself"
    if read_int(sysctl / "user/max_user_namespaces", 1) == 0:
        return "user namespaces are off", "sysctl user.max_user_namespaces=10000, or run as root"
    if read_text(sysctl / "kernel/unprivileged_userns_clone") == "0":
        return (
            "only root may make user namespaces",
            "sysctl kernel.unprivileged_userns_clone=1, or run as root",
        )
    if read_text(sysctl / "kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor keeps user namespaces from programs without a profile",
            "run as root, or sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        )
    return "", "run as root"
