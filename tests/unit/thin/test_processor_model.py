"""CPUID of a guest's processors: what a model has, hides and numbers."""

from __future__ import annotations

import pytest

from duovisor.hypervisor.thin import cpu_model
from duovisor.hypervisor.thin.cpu_model import build_cpuid
from duovisor.hypervisor.thin.errors import ThinConfigError
from duovisor.hypervisor.thin.kvm_abi import CpuidEntry

ALL = 0xFFFF_FFFF


def build_offer(**features: int) -> list[CpuidEntry]:
    """What a KVM offers on a processor that has everything, but for what is given."""
    words = {"ecx1": ALL, "edx1": ALL, "ebx7": ALL, "ecx81": ALL, "edx81": ALL, **features}
    return [
        CpuidEntry(0, 0, 0, 0x16),
        CpuidEntry(1, 0, 0, 0x60FB1, 0xFFFF_0800, words["ecx1"], words["edx1"]),
        CpuidEntry(4, 0, 1, 0xFFFF_C121),
        CpuidEntry(7, 0, 1, 0, words["ebx7"], ALL, ALL),
        CpuidEntry(0xA, 0, 0, ALL, ALL, ALL, ALL),
        CpuidEntry(0xB, 0, 1, ALL, ALL, ALL, ALL),
        CpuidEntry(0xD, 0, 1, 0x207, 0xA88, 0xA88),
        CpuidEntry(0xD, 1, 1, 0xF, 0x240, 0x1800),
        CpuidEntry(0xD, 2, 1, 0x100, 0x240),
        CpuidEntry(0xD, 9, 1, 8, 0xA80),
        CpuidEntry(0x4000_0001, 0, 0, 0x0100_7EFB),
        CpuidEntry(0x8000_0001, 0, 0, 0, 0, words["ecx81"], words["edx81"]),
        CpuidEntry(0x8000_0008, 0, 0, 0x3028, 0, 0xFFFF),
        CpuidEntry(0x8000_000A, 0, 0, ALL, ALL, ALL, ALL),
    ]


def find(entries: list[CpuidEntry], function: int, index: int = 0) -> CpuidEntry:
    return next(entry for entry in entries if (entry.function, entry.index) == (function, index))


@pytest.mark.parametrize("model", cpu_model.MODELS)
def test_nobody_gets_nested_guests_or_counters(model: str) -> None:
    leaves = build_cpuid(build_offer(), model, 2, 0)
    assert not find(leaves, 1).ecx >> 5 & 1  # VMX
    assert not find(leaves, 0x8000_0001).ecx >> 2 & 1  # SVM
    assert {0xA, 0x8000_000A}.isdisjoint(entry.function for entry in leaves)
    assert find(leaves, 1).ecx >> 31  # a hypervisor, whose features KVM says
    assert find(leaves, 0x4000_0001).eax == 0x0100_7EFB


@pytest.mark.parametrize(("cpus", "index", "shift"), [(1, 0, 0), (2, 1, 1), (5, 4, 3), (16, 15, 4)])
def test_each_processor_knows_its_place(cpus: int, index: int, shift: int) -> None:
    leaves = build_cpuid(build_offer(), "host", cpus, index)
    assert find(leaves, 1).ebx == index << 24 | cpus << 16 | 0x800
    assert find(leaves, 1).edx >> 28 & 1 == (cpus > 1)
    assert [find(leaves, 0xB, level).eax for level in range(3)] == [0, shift, 0]
    assert [find(leaves, 0xB, level).ebx for level in range(3)] == [1, cpus, 0]
    assert [find(leaves, 0xB, level).ecx for level in range(3)] == [0x100, 0x201, 2]
    assert {find(leaves, 0xB, level).edx for level in range(3)} == {index}
    assert find(leaves, 4).eax == ((1 << shift) - 1) << 26 | 0x121
    assert find(leaves, 0x8000_0008).ecx == cpus - 1 | shift << 12


def test_host_keeps_what_the_host_has() -> None:
    offer = build_offer(ebx7=0x1234)
    assert find(build_cpuid(offer, "host", 1, 0), 7).ebx == 0x1234
    assert find(offer, 1).ecx == ALL  # what was offered stays as it was


def test_a_named_model_is_the_same_on_richer_hosts() -> None:
    def features(model: str, **offered: int) -> tuple[int, int]:
        leaves = build_cpuid(build_offer(**offered), model, 1, 0)
        return find(leaves, 1).ecx, find(leaves, 7).ebx

    v3 = features("x86-64-v3")
    assert v3 == features("x86-64-v3", ebx7=ALL & ~(1 << 16 | 1 << 30))  # AVX-512
    assert v3[0] >> 28 & 1  # AVX
    assert v3[1] >> 5 & 1  # AVX2
    assert not v3[1] >> 16 & 1
    assert not features("x86-64-v2")[0] >> 28 & 1


@pytest.mark.parametrize(
    ("model", "offered", "complaint"),
    [
        ("x86-64-v3", {"ebx7": ALL & ~(1 << 5)}, "CPUID 0x7 lacks 0x20 in ebx"),
        ("x86-64-v2", {"ecx1": 0}, "this host's processor is no x86-64-v2: CPUID 0x1 lacks"),
        ("i486", {}, "i486 is no processor model; there are host, x86-64-v2, x86-64-v3"),
    ],
)
def test_a_model_that_this_host_is_not(model: str, offered: dict[str, int], complaint: str) -> None:
    with pytest.raises(ThinConfigError, match=complaint):
        build_cpuid(build_offer(**offered), model, 1, 0)


@pytest.mark.parametrize("model", ["x86-64-v2", "x86-64-v3"])
def test_a_model_does_without_what_no_program_needs(model: str) -> None:
    lacks = (
        1 << 1 | 1 << 18 | 1 << 21
    )  # virtual 8086 mode's extension, serial number, debug store: as under TCG
    leaves = build_cpuid(build_offer(edx1=ALL & ~lacks), model, 1, 0)
    assert not find(leaves, 1).edx & lacks
    with pytest.raises(ThinConfigError, match="lacks 0x4000000 in edx"):
        build_cpuid(build_offer(edx1=ALL & ~(1 << 26)), model, 1, 0)


def test_saved_state_is_that_of_the_model() -> None:
    def read(model: str) -> list[tuple[int, int, int, int]]:
        leaves = build_cpuid(build_offer(), model, 1, 0)
        return [(each.index, each.eax, each.ebx, each.ecx) for each in leaves if each.function == 0xD]

    assert read("x86-64-v2") == []
    assert read("x86-64-v3") == [(0, 7, 832, 832), (1, 7, 0, 0), (2, 0x100, 0x240, 0)]
    assert [each[0] for each in read("host")] == [0, 1, 2, 9]
