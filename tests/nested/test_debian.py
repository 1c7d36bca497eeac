"""Debian's whole image on the thin VMM, under real KVM: with ``./test --long``, for its boot takes minutes.

The same outer guest as in ``test_nested_kvm`` does it (``in_guest/debian_steps.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.nested.conftest import LONG

if TYPE_CHECKING:
    from tests.nested.outer_guest import Reports

pytestmark = [
    pytest.mark.vm,
    pytest.mark.nested,
    pytest.mark.skipif(not LONG, reason="a whole Debian, emulated twice, takes minutes: ./test --long"),
]


def test_it_boots_the_kernel_on_its_disk_and_lets_people_in(reports: Reports) -> None:
    failed = [line["traceback"] for line in reports.lines if line["step"] == "debian-failed"]
    assert not failed, failed[0]
    status = reports.find("debian-started")["status"]
    assert (status["vmm"], status["accelerator"]) == ("thin", "kvm")
    said = reports.find("debian-console")["said"]
    assert "42-on-/dev/hvc0-of-debian" in said
    assert "-cloud-amd64" in said
    assert "root=UUID=" in said
    assert "status: done" in said or "status: running" in said  # runcmd is not its last word
    assert reports.find("debian-ssh")["greeting"].startswith("SSH-2.0-OpenSSH")
    end = reports.find("debian-shutdown")
    assert end["operation"]["state"] == "done"
    assert end["kernels"] == []
