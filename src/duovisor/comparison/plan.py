"""Which steps a comparison has, and in which order; pure.

Each round does everything once in each design. Odd rounds begin with the monolithic design, even ones with
the other (A B B A …), job by job, so that a machine that grows slower or busier is no design's disadvantage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

SECTIONS = ("start", "resources", "storage", "network", "processor", "updates", "faults")


class Scale(BaseModel):
    """How much is measured; it is kept with the samples, and a comparison goes on only with the same.

    ``budget_s``: what does not fit into so many seconds is left out; None: everything is done.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    image: str = "probe"
    rounds: int = Field(ge=1, le=1000)
    fault_rounds: int = Field(ge=1, le=1000)
    job_s: float = Field(gt=0, le=600)
    idle_s: float = Field(gt=0, le=600)
    load_s: float = Field(ge=1.5, le=600)
    budget_s: float | None = Field(default=None, gt=0)
    sections: tuple[str, ...] = SECTIONS


QUICK = Scale(name="quick", rounds=6, fault_rounds=2, job_s=0.8, idle_s=1.0, load_s=1.5, budget_s=540)
FULL = Scale(name="full", rounds=12, fault_rounds=8, job_s=4.0, idle_s=5.0, load_s=4.0)
SCALES = {scale.name: scale for scale in (QUICK, FULL)}


def find_budget(base: Scale, *, changed: bool) -> float | None:
    """A scale's time when nobody names one: who asks for other rounds or jobs gets all of them."""
    return None if changed else base.budget_s


class StorageJob(NamedTuple):
    """One access pattern, in fio's words; ``fsync``: each write is followed by one."""

    name: str
    rw: str
    block: str
    depth: int
    fsync: bool = False


STORAGE_JOBS = (
    StorageJob("read_4k_qd1", "randread", "4k", 1),
    StorageJob("read_4k_qd8", "randread", "4k", 8),
    StorageJob("read_4k_qd32", "randread", "4k", 32),
    StorageJob("write_4k_qd1", "randwrite", "4k", 1),
    StorageJob("write_4k_qd8", "randwrite", "4k", 8),
    StorageJob("write_4k_qd32", "randwrite", "4k", 32),
    StorageJob("read_1m", "read", "1m", 4),
    StorageJob("write_1m", "write", "1m", 4),
    StorageJob("fsync", "write", "4k", 1, fsync=True),
)


class NetworkJob(NamedTuple):
    """One way to load the network, as options of iperf3 on the host; the guest serves."""

    name: str
    options: tuple[str, ...]
    counts_packets: bool = False


SMALL = ("-u", "-b", "0", "-l", "18")  # a frame of 64 bytes with its checksum
NETWORK_JOBS = (
    NetworkJob("to_guest", ()),
    NetworkJob("from_guest", ("-R",)),
    NetworkJob("small_to_guest", SMALL, True),
    NetworkJob("small_from_guest", (*SMALL, "-R"), True),
)

# section → its measures in their order, and about how long each takes in seconds beyond a job's own time
_MEASURES: dict[str, tuple[tuple[str, float], ...]] = {
    "start": (("boot", 3.4),),
    "resources": (("idle", 0.7),),
    "storage": tuple((f"storage.{job.name}", 1.4) for job in STORAGE_JOBS),
    "network": (("network.prepare", 0.3), *((f"network.{job.name}", 0.3) for job in NETWORK_JOBS),
                ("network.round_trip", 0.2)),
    "processor": (("processor", 0.2),),
    "updates": (("quiet", 1.8), ("update.driver", 2.0), ("update.design", 2.1)),
    "faults": (("fault.storage_driver", 2.8), ("fault.network_driver", 1.9), ("fault.vmm", 4.0)),
}  # fmt: skip
_RARE = ("updates", "faults")
_ONCE = (("authority", 0.1), ("code", 0.1))
SERVICE_FAULT = "fault.service"
_SERVICE_S = 4.0
_SECTION_OF = {
    **{name: section for section, measures in _MEASURES.items() for name, _ in measures},
    **{name: "resources" for name, _ in _ONCE},
    SERVICE_FAULT: "faults",
}
_RARE_MEASURES = {name for name, section in _SECTION_OF.items() if section in _RARE}


class Step(NamedTuple):
    """One measurement in one design; ``usual_s`` is a first guess at how long it takes."""

    round: int
    measure: str
    design: Design
    usual_s: float

    @property
    def key(self) -> str:
        """What tells it from every other step of the comparison."""
        return f"{self.round}/{self.measure}/{self.design}"


def build_steps(scale: Scale) -> tuple[Step, ...]:
    """Every step of a comparison, in order."""
    steps = [step for number in range(1, max(scale.rounds, scale.fault_rounds) + 1)
             for step in _build_round(scale, number)]  # fmt: skip
    if "faults" in scale.sections:
        for number in range(1, scale.fault_rounds + 1):
            steps += [
                Step(number, SERVICE_FAULT, design, _SERVICE_S + scale.load_s) for design in order_of(number)
            ]
    return tuple(steps)


def is_rare(step: Step) -> bool:
    """Whether a step is one of a few tries, and not of a round's figures."""
    return step.measure in _RARE_MEASURES


def find_section(step: Step) -> str:
    """The section that a step belongs to."""
    return _SECTION_OF[step.measure]


def order_of(number: int) -> tuple[Design, ...]:
    """Which design comes first in a round."""
    return tuple(Design) if number % 2 else tuple(reversed(Design))


def _build_round(scale: Scale, number: int) -> Iterator[Step]:
    own_s = {"resources": scale.idle_s, "updates": scale.load_s, "faults": scale.load_s, "start": 0.0}
    for section in _sections_of(scale, number):
        for measure, beyond_s in _MEASURES[section]:
            for design in order_of(number):
                yield Step(number, measure, design, own_s.get(section, scale.job_s) + beyond_s)
        if section == "resources" and number == 1:
            for measure, usual_s in _ONCE:
                for design in order_of(number):
                    yield Step(number, measure, design, usual_s)


def _sections_of(scale: Scale, number: int) -> Iterator[str]:
    for section in SECTIONS:
        last = scale.fault_rounds if section in _RARE else scale.rounds
        if section in scale.sections and number <= last:
            yield section


class Estimate:
    """How long what is left may take, from how long the same took so far."""

    def __init__(self) -> None:
        self._took: dict[str, list[float]] = {}

    def add(self, measure: str, seconds: float) -> None:
        """A step of this measure has taken so long."""
        self._took.setdefault(measure, []).append(seconds)

    def left_s(self, steps: Collection[Step], pace: float | None = None) -> float:
        """Seconds for these steps; what was never done yet takes as long as usual, times ``pace``."""
        pace = self.find_pace(steps) if pace is None else pace
        return sum(self._mean(step.measure) or step.usual_s * pace for step in steps)

    def find_pace(self, steps: Collection[Step]) -> float:
        """How much slower than usual this machine was at what is known of both."""
        usual = {step.measure: step.usual_s for step in steps}
        known = [(self._mean(name) or 0.0, usual[name]) for name in self._took if name in usual]
        return sum(mean for mean, _ in known) / sum(each for _, each in known) if known else 1.0

    def _mean(self, measure: str) -> float | None:
        took = self._took.get(measure)
        return sum(took) / len(took) if took else None
