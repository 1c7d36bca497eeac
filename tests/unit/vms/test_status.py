"""What is told of a VM's processes: each of them runs, or has ended, whoever looks after it."""

from __future__ import annotations

from types import SimpleNamespace as Fake
from typing import Any, cast

import pytest

from duovisor.controlling.vms.status import list_processes

VMM, TPM, DISK, FORMAT, MEDIA = range(101, 106)


def describe(pid: int, device: str, control: str = "") -> Any:
    return Fake(role="", pid=pid, device=device, control=control, duty="")


def make_machine(*, ended: bool) -> Any:
    process = Fake(has_ended=ended)
    media = Fake(list_running=lambda: set() if ended else {"media"})
    return Fake(
        vmm=Fake(process=process),
        helpers={"tpm": process},
        devices={"disk0": Fake(pids=[] if ended else [DISK])},
        current=Fake(media=media, keepers={"disk0": Fake(is_running=not ended)}),
        description=Fake(
            processes=(
                describe(VMM, ""), describe(TPM, "tpm"), describe(DISK, "disk0", "control"),
                describe(FORMAT, "disk0"), describe(MEDIA, "media"),
            )
        ),
    )  # fmt: skip


@pytest.mark.parametrize(("ended", "state"), [(False, "running"), (True, "ended")])
def test_every_process_is_told_of(*, ended: bool, state: str) -> None:
    told = list_processes(cast("Any", make_machine(ended=ended)))
    assert {each.pid: str(each.state) for each in told} == dict.fromkeys(range(VMM, MEDIA + 1), state)
