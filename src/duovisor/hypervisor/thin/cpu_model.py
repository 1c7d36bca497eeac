"""What the guest's processor is: CPUID leaves and MSRs of a named model, from what KVM offers.

``host`` is all that this host's processor and KVM have; ``x86-64-v2`` and ``x86-64-v3`` are the levels of the
x86-64 psABI, the same on every host that has them. Nobody gets nested virtualization or performance counters.
Sources: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from typing import NamedTuple

from duovisor.hypervisor.thin import kvm_abi as abi
from duovisor.hypervisor.thin.errors import ThinConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_CPUS = 16

EAX, EBX, ECX, EDX = "eax", "ebx", "ecx", "edx"
BASIC, STRUCTURED, EXTENDED = (1, 0), (7, 0), (0x8000_0001, 0)

X2APIC, DEADLINE, HYPERVISOR, HTT = 1 << 21, 1 << 24, 1 << 31, 1 << 28
VMX, SVM, TOPOEXT, CMP_LEGACY, PERFCTR = 1 << 5, 1 << 2, 1 << 22, 1 << 1, 3 << 23
PCM_DEBUG_STORE = 1 << 15 | 1 << 2 | 1 << 4  # PDCM, DTES64, DS-CPL

_BASELINE_EDX = 0x1F83_FBFF | HTT  # FPU to FXSR, SSE, SSE2, SS: what every x86-64 has
# of these, what the psABI's baseline and a 64-bit kernel need; emulated processors lack some of the others
# FPU PSE TSC MSR PAE CX8 APIC PGE CMOV MMX FXSR SSE SSE2
_NEEDED_EDX = 1 << 0 | 1 << 3 | 7 << 4 | 3 << 8 | 1 << 13 | 1 << 15 | 15 << 23
_V2_ECX = 1 << 0 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23  # SSE3 SSSE3 CX16 SSE4.1 SSE4.2 POPCNT
_V3_ECX = 1 << 12 | 1 << 22 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29  # FMA MOVBE XSAVE OSXSAVE AVX F16C
_V3_7_EBX = 1 << 3 | 1 << 5 | 1 << 8  # BMI1 AVX2 BMI2
_LONG_MODE_EDX = 1 << 11 | 1 << 20 | 1 << 29  # SYSCALL NX LM
_LAHF, _LZCNT = 1 << 0, 1 << 5
# of use to every guest, harmless to have or not: PCLMULQDQ X2APIC DEADLINE AES RDRAND HYPERVISOR; PDPE1GB
# RDTSCP; FSGSBASE SMEP ERMS INVPCID RDSEED ADX SMAP CLFLUSHOPT SHA; and what tells of repaired processors
_OPTIONAL_ECX = 1 << 1 | 1 << 17 | X2APIC | DEADLINE | 1 << 25 | 1 << 30 | HYPERVISOR
_OPTIONAL_7_EBX = 1 << 0 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 29
_OPTIONAL_7_EDX = 1 << 10 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31
_OPTIONAL_XSAVE = 7  # XSAVEOPT XSAVEC XGETBV1
_AVX_STATE, _AVX_AREA_BYTES = 7, 576 + 256  # x87 SSE AVX; the legacy area, its header, AVX's upper halves
_OPTIONAL_EXTENDED_EDX = 1 << 26 | 1 << 27
_OPTIONAL_EXTENDED_ECX = 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8  # CR8 SSE4A misaligned SSE, 3DNow! prefetch


class Model(NamedTuple):
    """Feature words by (leaf, register): those that must be there, and those that may.

    ``saved`` are the bits of XCR0, the register state that XSAVE has; none: there is no XSAVE.
    """

    needed: dict[tuple[tuple[int, int], str], int]
    allowed: dict[tuple[tuple[int, int], str], int]
    saved: int = 0


def _build_model(ecx: int, structured_ebx: int, extended_ecx: int, saved: int = 0) -> Model:
    needed = {
        (BASIC, ECX): ecx,
        (BASIC, EDX): _NEEDED_EDX,
        (STRUCTURED, EBX): structured_ebx,
        (EXTENDED, ECX): extended_ecx,
        (EXTENDED, EDX): _LONG_MODE_EDX,
    }
    optional = {
        (BASIC, ECX): _OPTIONAL_ECX,
        (BASIC, EDX): _BASELINE_EDX,
        (STRUCTURED, EBX): _OPTIONAL_7_EBX,
        (STRUCTURED, ECX): 0,
        (STRUCTURED, EDX): _OPTIONAL_7_EDX,
        (EXTENDED, ECX): _OPTIONAL_EXTENDED_ECX,
        (EXTENDED, EDX): _OPTIONAL_EXTENDED_EDX | _BASELINE_EDX,
    }
    return Model(needed, {key: word | needed.get(key, 0) for key, word in optional.items()}, saved)


# OSXSAVE is the guest's own doing: it must never be demanded of KVM
MODELS = {
    "host": Model({}, {}),
    "x86-64-v2": _build_model(_V2_ECX, 0, _LAHF),
    "x86-64-v3": _build_model(_V2_ECX | _V3_ECX & ~(1 << 27), _V3_7_EBX, _LAHF | _LZCNT, _AVX_STATE),
}

_HIDDEN = {
    (BASIC, ECX): VMX | PCM_DEBUG_STORE,
    (EXTENDED, ECX): SVM | TOPOEXT | PERFCTR | 1 << 28,
}
# performance counters, SVM's own leaf, encrypted memory, AMD's extended topology
_EMPTY_LEAVES = frozenset({0xA, 0x1F, 0x8000_000A, 0x8000_001D, 0x8000_001E, 0x8000_001F, 0x8000_0022})

# Intel SDM volume 4 and AMD APM volume 2, appendix A; refused to every guest besides what CPUID hides
DENIED_MSRS = (
    range(0xC1, 0xC9),  # IA32_PMC0-7
    range(0x186, 0x18E),  # IA32_PERFEVTSEL0-7
    range(0x309, 0x30D),  # IA32_FIXED_CTR0-3
    range(0x38D, 0x391),  # IA32_FIXED_CTR_CTRL to IA32_PERF_GLOBAL_OVF_CTRL
    range(0x480, 0x493),  # IA32_VMX_*
    range(0x4C1, 0x4C9),  # IA32_A_PMC0-7
    range(0xC001_0200, 0xC001_020C),  # AMD's PERF_CTL and PERF_CTR 0-5
    range(0xC001_0114, 0xC001_0118),  # VM_CR, IGNNE, SMM_CTL, VM_HSAVE_PA
)


def build_cpuid(offered: Iterable[abi.CpuidEntry], model: str, cpus: int, index: int) -> list[abi.CpuidEntry]:
    """The leaves of processor ``index`` of ``cpus``; pure.

    Raises ``ThinConfigError`` for an unknown model, or one that has more than this host.
    """
    if model not in MODELS:
        raise ThinConfigError(f"{model} is no processor model; there are {', '.join(MODELS)}")
    leaves = {
        (entry.function, entry.index): abi.CpuidEntry.from_buffer_copy(entry)
        for entry in offered
        if entry.function not in _EMPTY_LEAVES
    }
    _apply_model(leaves, model)
    for (key, register), bits in _HIDDEN.items():
        _change(leaves, key, register, clear=bits)
    _set_topology(leaves, cpus, index)
    return list(leaves.values())


def _apply_model(leaves: dict[tuple[int, int], abi.CpuidEntry], model: str) -> None:
    needed, allowed, saved = MODELS[model]
    for (key, register), bits in needed.items():
        have = getattr(leaves[key], register) if key in leaves else 0
        if missing := bits & ~have:
            raise ThinConfigError(
                f"this host's processor is no {model}: CPUID {key[0]:#x} lacks {missing:#x} in {register}",
                remedy="use another processor model, such as host",
            )
    for (key, register), bits in allowed.items():
        _change(leaves, key, register, clear=~bits & 0xFFFF_FFFF)
    if allowed:
        _set_saved_state(leaves, saved)


def _set_saved_state(leaves: dict[tuple[int, int], abi.CpuidEntry], saved: int) -> None:
    """Leaf 0xD: the parts of XSAVE's area that the model has, and no supervisor state (SDM 1, 13.2)."""
    for key in [key for key in leaves if key[0] == 0xD and not saved >> key[1]]:
        del leaves[key]
    every = 0xFFFF_FFFF
    _change(leaves, (0xD, 0), EAX, clear=every, set_=saved)
    for register in (EBX, ECX):  # KVM keeps EBX up to what the guest has enabled
        _change(leaves, (0xD, 0), register, clear=every, set_=_AVX_AREA_BYTES)
    _change(leaves, (0xD, 0), EDX, clear=every)
    _change(leaves, (0xD, 1), EAX, clear=every & ~_OPTIONAL_XSAVE)
    for register in (EBX, ECX, EDX):
        _change(leaves, (0xD, 1), register, clear=every)


def _set_topology(leaves: dict[tuple[int, int], abi.CpuidEntry], cpus: int, index: int) -> None:
    """One socket, ``cpus`` cores of one thread each; the local APIC's id is the processor's index."""
    shift = (cpus - 1).bit_length()
    _change(leaves, BASIC, EBX, clear=0xFFFF_0000, set_=cpus << 16 | index << 24)
    _change(leaves, BASIC, ECX, set_=X2APIC | DEADLINE | HYPERVISOR)
    _change(leaves, BASIC, EDX, clear=0 if cpus > 1 else HTT, set_=HTT if cpus > 1 else 0)
    for key in [key for key in leaves if key[0] == 4]:  # Intel's caches: shared by one thread, cores in all
        _change(leaves, key, EAX, clear=0xFFFF_C000, set_=(1 << shift) - 1 << 26)
    if cpus > 1 and (0x8000_0008, 0) in leaves:  # AMD: cores, and the bits of an id that number them
        _change(leaves, EXTENDED, ECX, set_=CMP_LEGACY)
    _change(leaves, (0x8000_0008, 0), ECX, clear=0xFFFF, set_=cpus - 1 | shift << 12)
    if (0xB, 0) in leaves:
        _set_extended_topology(leaves, cpus, index, shift)


def _set_extended_topology(
    leaves: dict[tuple[int, int], abi.CpuidEntry], cpus: int, index: int, shift: int
) -> None:
    """Leaf 0xB: a level of threads (one each), a level of cores, the end."""
    for key in [key for key in leaves if key[0] == 0xB]:
        del leaves[key]
    for level, (bits, count, kind) in enumerate(((0, 1, 1), (shift, cpus, 2), (0, 0, 0))):
        leaves[0xB, level] = abi.CpuidEntry(
            0xB, level, abi.CPUID_INDEX_SIGNIFICANT, bits, count, kind << 8 | level, index
        )


def _change(
    leaves: dict[tuple[int, int], abi.CpuidEntry],
    key: tuple[int, int],
    register: str,
    *,
    clear: int = 0,
    set_: int = 0,
) -> None:
    if key in leaves:
        setattr(leaves[key], register, getattr(leaves[key], register) & ~clear | set_)
