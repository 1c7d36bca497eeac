"""What the demo runs and says does not depend on which VMM it is."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from duovisor.cli.demo import explain
from duovisor.cli.demo_guest import build_demo_spec
from duovisor.controlling.images.image import Image
from duovisor.controlling.vmm_choice import choose_vmm
from duovisor.spec.vm import Accelerator, Design, VmmKind

PROBE = Image(
    name="probe", description="", kernel="vmlinuz", initrd="initrd.img", command_line="quiet",
    kernel_version="6.1", source="test", recipe="r", built_at=datetime(2026, 1, 2, tzinfo=UTC), sha256={},
    folder=Path("/images/probe"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("accelerator", "design", "kind"),
    [
        (Accelerator.KVM, Design.MICROKERNELIZED, VmmKind.THIN),
        (Accelerator.KVM, Design.MONOLITHIC, VmmKind.QEMU),
        (Accelerator.TCG, Design.MICROKERNELIZED, VmmKind.QEMU),
    ],
)
def test_the_demos_vm_is_on_the_thin_vmm_where_it_can_be(
    accelerator: Accelerator, design: Design, kind: VmmKind
) -> None:
    spec = build_demo_spec(design, PROBE, Path("/scratch.raw"), 2, accelerator)
    assert choose_vmm(spec, accelerator).kind is kind
    assert spec.disks[0].serial == "scratch"
    assert bool(spec.nics) == (accelerator is Accelerator.TCG)


def test_what_the_guest_saw_is_said_as_it_is() -> None:
    assert explain("qemu", "qemu").startswith("The guest saw the same hardware twice.")
    thin = explain("qemu", "thin")
    assert "same hardware" not in thin
    assert thin.startswith("The guest saw the same disks")
    assert thin.splitlines()[-1] == explain("qemu", "qemu").splitlines()[-1]
