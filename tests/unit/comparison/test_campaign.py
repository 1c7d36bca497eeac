"""Steps one after the other: a failure does not spoil the rest, what is done is not done again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.unit.comparison.synthetic import MICRO, MONO, build_host

from duovisor.comparison.campaign import Progress, run_campaign
from duovisor.comparison.errors import SkippedError
from duovisor.comparison.measures.context import Figures
from duovisor.comparison.plan import QUICK, build_steps
from duovisor.comparison.report.result import build_result
from duovisor.comparison.report.sentences import state
from duovisor.comparison.samples import Header, Outcome, open_store
from duovisor.controlling.images.errors import GuestGoneError

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.comparison.plan import Step
    from duovisor.comparison.samples import SampleStore
    from duovisor.errors import DuovisorError
    from duovisor.spec.vm import Design

SCALE = QUICK.model_copy(update={"sections": ("processor", "storage"), "rounds": 6})
STEPS = build_steps(SCALE)


class FakeRig:
    """Guests that die when they are told to, and are booted when they are missing."""

    def __init__(self, dies_at: tuple[str, ...] = ()) -> None:
        self.dies_at = dies_at
        self.guests: set[Design] = set()
        self.boots: list[Design] = []
        self.done: list[str] = []

    async def run(self, step: Step) -> Figures:
        if step.design not in self.guests:
            self.guests.add(step.design)
            self.boots.append(step.design)
        self.done.append(step.key)
        if step.key in self.dies_at:
            raise GuestGoneError("the guest's line was closed")
        if step.measure == "processor":
            return Figures({"steps_per_s": 1000.0 + step.round})
        return Figures({"iops": (2000.0 if step.design is MICRO else 1000.0) + step.round})

    async def recover(self, step: Step, error: DuovisorError) -> str:
        self.guests.discard(step.design)
        return f"the guest died: {error.message}"


def begin(folder: Path) -> SampleStore:
    return open_store(folder / "out", Header(scale=SCALE, host=build_host(), started_at=1.0))


def ignore(progress: Progress) -> None:
    pass


async def test_every_step_is_done_once_and_kept(tmp_path: Path) -> None:
    rig, store = FakeRig(), begin(tmp_path)
    await run_campaign(store, rig.run, rig.recover, ignore)
    assert rig.done == [step.key for step in STEPS]
    assert [record.key for record in begin(tmp_path).records] == rig.done
    await run_campaign(begin(tmp_path), rig.run, rig.recover, ignore)
    assert rig.done == [step.key for step in STEPS]


async def test_a_guest_that_dies_is_reported_and_does_not_spoil_the_rest(tmp_path: Path) -> None:
    dead = f"2/storage.read_4k_qd8/{MICRO}"
    rig, store = FakeRig((dead,)), begin(tmp_path)
    await run_campaign(store, rig.run, rig.recover, ignore)
    failed = [record for record in store.records if record.outcome is Outcome.FAILED]
    assert [record.key for record in failed] == [dead]
    assert failed[0].reason == "the guest died: the guest's line was closed"
    assert rig.boots == [MONO, MICRO, MICRO]  # a fresh one after it
    assert len(store.records) == len(STEPS)
    result = build_result(store)
    hurt, sound = (result.find_row(f"storage.read_4k_qd{depth}.iops") for depth in (8, 1))
    assert hurt is not None
    assert sound is not None
    assert (hurt.comparison.first.n, hurt.comparison.second.n) == (6, 5)
    assert hurt.winner is sound.winner is MICRO
    assert "microkernelized is better: 100 % more" in state(sound)
    assert [record.key for record in result.failures] == [dead]


async def test_an_interruption_keeps_what_is_done_and_it_goes_on(tmp_path: Path) -> None:
    rig, store = FakeRig(), begin(tmp_path)

    async def run(step: Step) -> Figures:
        if step == STEPS[7]:
            raise asyncio.CancelledError
        return await rig.run(step)

    with pytest.raises(asyncio.CancelledError):
        await run_campaign(store, run, rig.recover, ignore)
    assert len(begin(tmp_path).records) == 7
    seen: list[Progress] = []
    await run_campaign(begin(tmp_path), rig.run, rig.recover, seen.append)
    assert rig.done == [step.key for step in STEPS]
    assert seen[0].number == 8
    assert seen[0].total == len(STEPS)


async def test_a_programming_error_is_not_taken_for_a_measurement(tmp_path: Path) -> None:
    rig, store = FakeRig(), begin(tmp_path)

    async def run(step: Step) -> Figures:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_campaign(store, run, rig.recover, ignore)
    assert store.records == []


async def test_what_this_host_cannot_is_skipped_with_its_reason(tmp_path: Path) -> None:
    rig, store = FakeRig(), begin(tmp_path)

    async def run(step: Step) -> Figures:
        if step.measure == "storage.fsync":
            raise SkippedError("no disk", remedy="buy one")
        return await rig.run(step)

    await run_campaign(store, run, rig.recover, ignore)
    result = build_result(store)
    assert result.skipped == (("storage.fsync", "no disk (buy one)"),)
    assert result.is_complete
    assert result.failures == ()


async def test_progress_counts_failures_and_the_time_left_falls(tmp_path: Path) -> None:
    rig, store = FakeRig((STEPS[0].key, STEPS[1].key)), begin(tmp_path)
    seen: list[Progress] = []
    await run_campaign(store, rig.run, rig.recover, seen.append)
    assert [progress.number for progress in seen] == list(range(1, len(STEPS) + 1))
    assert seen[2].failed == 2
    assert seen[-1].left_s < seen[0].left_s
