"""duovisord killed with -9 under load: the short form of ``bench/service_kill.py``, with real VMs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from bench.kill_ledger import GONE, Fact, Ledger
from bench.service_kill import run_trial

from duovisor.client.errors import ApiError, ConnectionLostError

if TYPE_CHECKING:
    from duovisor.hardware.capabilities import HostCapabilities

pytestmark = pytest.mark.vm

KILLS = 8


def test_killed_under_load(capabilities: HostCapabilities) -> None:
    """More, and with more devices: ``python bench/service_kill.py --kills 200``."""
    assert capabilities.qemu is not None
    figures = run_trial(KILLS, seed=sys.maxsize, devices=False)
    assert figures["details"] == []
    assert (figures["kills"], figures["violations"]) == (KILLS, 0)
    # a trial in which nothing went on would show nothing
    assert figures["operations"] >= KILLS
    assert figures["vms_adopted"] >= KILLS / 2


def document(uuid: str, fact: Fact, revision: int) -> dict[str, object]:
    record = {"uuid": uuid, "name": fact.name, "autostart": {"order": fact.mark}, "revision": revision}
    return {"record": record}


def test_the_ledger_tells_what_was_lost_from_what_is_in_doubt() -> None:
    """The judge of the trial is judged: what it must let pass, and what it must not."""
    first, second, third = Fact("a", 1), Fact("a", 2), Fact("b", 2)
    ledger = Ledger()
    with ledger.creating(first) as answer:
        answer.uuid, answer.revision = "u", 5
    assert ledger.reconcile([document("u", first, 5)]) == []
    assert ledger.reconcile([]) != []  # gone though nobody deleted it
    ledger.reconcile([document("u", first, 5)])
    with pytest.raises(ConnectionLostError), ledger.changing(document("u", first, 5), second):
        raise ConnectionLostError("killed")
    assert ledger.reconcile([document("u", second, 6)]) == []  # done or not, both may be
    with pytest.raises(ApiError), ledger.changing(document("u", second, 6), third):
        raise ApiError("revision-conflict", "refused", status=409)
    assert ledger.reconcile([document("u", third, 7)]) != []  # done though it was refused
    with ledger.changing(document("u", third, 7), GONE):
        pass
    assert ledger.reconcile([document("u", third, 7)]) != []  # deleted, and there again
    assert ledger.reconcile([document("x", first, 9), document("u", third, 7)]) != []  # of nobody
