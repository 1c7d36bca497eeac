"""The decision between KVM and TCG."""

from __future__ import annotations

import pytest
from tests.unit.hardware.recorded_hosts import EPYC, INTERPRETED, PLAIN_VM, XEON, load_probe

from duovisor.cli.exit_codes import exit_code_of
from duovisor.hardware.accelerator import decide_accelerator
from duovisor.hardware.errors import AcceleratorUnavailableError
from duovisor.hardware.kvm import KvmProbe, KvmState
from duovisor.spec.vm import Accelerator


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (XEON, Accelerator.KVM),
        (EPYC, Accelerator.KVM),
        (PLAIN_VM, Accelerator.TCG),
        (INTERPRETED, Accelerator.TCG),
    ],
)
def test_auto_takes_what_was_seen_to_work(name: str, expected: Accelerator) -> None:
    probe = load_probe(name)
    decision = decide_accelerator(Accelerator.AUTO, probe)
    assert decision.accelerator is expected
    assert decision.reason == probe.reason


@pytest.mark.parametrize("state", KvmState)
def test_auto_never_fails_and_never_stays_auto(state: KvmState) -> None:
    decision = decide_accelerator(Accelerator.AUTO, KvmProbe(state, "seen"))
    assert (decision.accelerator is Accelerator.KVM) == (state is KvmState.WORKS)
    assert decision.accelerator is not Accelerator.AUTO


def test_tcg_can_be_asked_for_on_any_host() -> None:
    assert decide_accelerator(Accelerator.TCG, load_probe(XEON)).accelerator is Accelerator.TCG


def test_kvm_is_given_where_it_works() -> None:
    assert decide_accelerator(Accelerator.KVM, load_probe(EPYC)).accelerator is Accelerator.KVM


@pytest.mark.parametrize("name", [PLAIN_VM, INTERPRETED])
def test_kvm_is_refused_where_it_does_not_work(name: str) -> None:
    probe = load_probe(name)
    with pytest.raises(AcceleratorUnavailableError) as caught:
        decide_accelerator(Accelerator.KVM, probe)
    assert probe.reason in caught.value.message
    assert probe.remedy in caught.value.remedy
    assert caught.value.code == "accelerator-unavailable"
    assert exit_code_of(caught.value) == 5
