"""Whether ``/dev/kvm`` runs guests, found by running one (docs/decisions/003-accelerator-probe.md)."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.process import ProcessError, ProgramTimeoutError, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEV_KVM = Path("/dev/kvm")
GUEST = Path(__file__).with_name("kvm_guest.py")
DEADLINE_S = 15.0  # nested in an emulated machine, starting Python alone takes seconds
# Hardware needs 0.2 to 1 ns per iteration, hardware that QEMU's TCG emulates 3 to 4; KVM over PVM 660
INTERPRETED_NS = 100.0

MODULE_REMEDY = (
    "modprobe kvm_intel or kvm_amd; inside a VM, turn on nested virtualization on its host, "
    "on a real machine VT-x or AMD-V in the firmware's setup"
)


class KvmState(StrEnum):
    """What became of the attempt to run a guest."""

    ABSENT = "absent"
    NO_PERMISSION = "no-permission"
    REFUSED = "refused"
    INTERPRETED = "interpreted"
    WORKS = "works"


@dataclass(frozen=True, slots=True)
class KvmProbe:
    """The outcome; ``ns_per_iteration`` of a ``dec``/``jnz`` loop where the guest ran."""

    state: KvmState
    reason: str
    remedy: str = ""
    ns_per_iteration: float | None = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> KvmProbe:
        """The outcome from its JSON form; raises ``ValueError`` for anything else."""
        try:
            return cls(**{**document, "state": KvmState(document["state"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the outcome of a KVM probe: {error}") from error


def probe_kvm(dev: Path = DEV_KVM, *, guest: Sequence[str] = (), deadline_s: float = DEADLINE_S) -> KvmProbe:
    """Run a small guest on ``dev`` in a child process and judge what came of it; never raises.

    ``guest`` is the command that runs it, ``kvm_guest`` by default; it is killed after ``deadline_s``.
    """
    blocked = find_obstacle(dev)
    if blocked is not None:
        return blocked
    argv = (*(guest or (sys.executable, "-I", "-S", str(GUEST))), str(dev))
    try:
        outcome = json.loads(run(argv, timeout_s=deadline_s, env={}))
        ns_per_iteration, refused = outcome.get("ns_per_iteration"), outcome.get("refused")
    except ProgramTimeoutError:
        return build_refused(f"a guest of seven bytes did not end within {deadline_s:g} s")
    except (ProcessError, ValueError, AttributeError) as error:
        return build_refused(f"the probe died: {error}")
    if ns_per_iteration is None:
        return build_refused(str(refused))
    return judge(float(ns_per_iteration))


def find_obstacle(dev: Path) -> KvmProbe | None:
    """Why ``dev`` cannot even be opened; ``None`` when it can."""
    try:
        status = dev.stat()
    except OSError:
        return KvmProbe(KvmState.ABSENT, f"there is no {dev}", MODULE_REMEDY)
    if not stat.S_ISCHR(status.st_mode):
        return KvmProbe(KvmState.ABSENT, f"{dev} is not a device", MODULE_REMEDY)
    try:
        os.close(os.open(dev, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        mode = stat.S_IMODE(status.st_mode)
        return KvmProbe(
            KvmState.NO_PERMISSION,
            f"user {os.geteuid()} may not open {dev} (mode {mode:04o}, group {status.st_gid})",
            build_permission_remedy(mode, status.st_gid),
        )
    except OSError as error:
        return KvmProbe(KvmState.ABSENT, f"{dev} cannot be opened: {error.strerror}", MODULE_REMEDY)
    return None


def build_permission_remedy(mode: int, gid: int) -> str:
    """How a user gets to open ``/dev/kvm``: through its group if that may, as root otherwise."""
    if gid and mode & 0o060 == 0o060:
        return f"join group {gid} (sudo usermod -aG kvm $USER, then log in again), or run as root"
    return "run as root, or give /dev/kvm to group kvm with mode 0660"


def build_refused(what: str) -> KvmProbe:
    """The outcome for a KVM that did not run the guest to its end."""
    remedy = "see the kernel's log (dmesg | grep -i kvm); another hypervisor may hold the processor"
    return KvmProbe(KvmState.REFUSED, f"KVM does not run a guest: {what}", remedy)


def judge(ns_per_iteration: float) -> KvmProbe:
    """Tell a processor from an interpreter by the time of one loop iteration; pure."""
    spent = f"{ns_per_iteration:.0f}" if ns_per_iteration >= 10 else f"{ns_per_iteration:.2g}"
    if ns_per_iteration > INTERPRETED_NS:
        return KvmProbe(
            KvmState.INTERPRETED,
            f"KVM answers but interprets guest code: {spent} ns per loop iteration, hardware needs about 1",
            "use a machine, or a VM type, whose processor shows vmx or svm",
            ns_per_iteration,
        )
    return KvmProbe(
        KvmState.WORKS,
        f"KVM ran a guest at {spent} ns per loop iteration",
        ns_per_iteration=ns_per_iteration,
    )
