"""What is left out when the time is short, and that the end comes when it was promised."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.unit.comparison.synthetic import build_host

from duovisor.comparison.budget import REASON, Block, find_block
from duovisor.comparison.campaign import run_campaign
from duovisor.comparison.measures.context import Figures
from duovisor.comparison.plan import QUICK, build_steps
from duovisor.comparison.report.limits import list_limits
from duovisor.comparison.report.result import build_result
from duovisor.comparison.samples import Header, Outcome, SampleStore

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.comparison.campaign import Progress
    from duovisor.comparison.plan import Step
    from duovisor.errors import DuovisorError

STEPS = build_steps(QUICK)
USUAL_S = sum(step.usual_s for step in STEPS)
BUDGET_S = QUICK.budget_s or 0.0


class SlowMachine:
    """Steps take so many times as long as usual, by a clock that only they move."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.now = 1000.0

    async def run(self, step: Step) -> Figures:
        self.now += self.factor * step.usual_s
        return Figures({"longest_wait_ms": 7.0} if step.measure == "quiet" else {})

    async def recover(self, step: Step, error: DuovisorError) -> str:
        raise AssertionError(step, error)

    def read_clock(self) -> float:
        return self.now


async def compare(machine: SlowMachine, folder: Path) -> SampleStore:
    folder.mkdir(exist_ok=True)
    store = SampleStore(folder, Header(scale=QUICK, host=build_host(), started_at=1.0), [])
    await run_campaign(store, machine.run, machine.recover, ignore, machine.read_clock)
    assert {record.key for record in store.records} == {step.key for step in STEPS}
    return store


def ignore(progress: Progress) -> None:
    pass


def list_done(store: SampleStore) -> set[Block]:
    made = {record.key for record in store.records if record.outcome is not Outcome.CUT}
    return {find_block(step) for step in STEPS if step.key in made}


def test_what_is_usual_fits() -> None:
    assert USUAL_S < BUDGET_S


async def test_a_usual_machine_does_it_all(tmp_path: Path) -> None:
    result = build_result(await compare(SlowMachine(1.0), tmp_path))
    assert not result.is_cut
    assert (result.rounds_done, result.tries_done) == (QUICK.rounds, QUICK.fault_rounds)
    assert not any("which was not enough" in line for line in list_limits(result))


@pytest.mark.parametrize(("factor", "rounds", "tries"), [(1.3, 4, 2), (1.8, 3, 1), (3.0, 1, 1), (0.5, 6, 2)])
async def test_a_slower_one_does_less_of_everything_and_keeps_to_its_time(
    tmp_path: Path, factor: float, rounds: int, tries: int
) -> None:
    machine = SlowMachine(factor)
    store = await compare(machine, tmp_path)
    assert machine.now - 1000.0 <= BUDGET_S
    result = build_result(store)
    assert (result.rounds_done, result.tries_done) == (rounds, tries)
    assert result.is_complete
    cut = [record for record in store.records if record.outcome is Outcome.CUT]
    assert {record.reason for record in cut} <= {REASON}
    done = list_done(store)
    assert all(find_block(step) in done or step.key in {record.key for record in cut} for step in STEPS)
    said = [line for line in list_limits(result) if "which was not enough" in line]
    if rounds < QUICK.rounds:
        assert f"{rounds} of 6 rounds of figures and {tries} of 2 tries" in said[0]


async def test_a_block_is_done_whole_or_not_at_all(tmp_path: Path) -> None:
    store = await compare(SlowMachine(1.8), tmp_path)
    made = {record.key for record in store.records if record.outcome is not Outcome.CUT}
    for block in list_done(store):
        assert all(step.key in made for step in STEPS if find_block(step) == block), block


async def test_a_machine_that_stands_still_ends_in_time_all_the_same(tmp_path: Path) -> None:
    """The step under way is broken off: its time is over by the real clock."""
    scale = QUICK.model_copy(update={"sections": ("processor",), "budget_s": 0.05})
    store = SampleStore(tmp_path, Header(scale=scale, host=build_host(), started_at=1.0), [])

    async def hang(step: Step) -> Figures:
        await asyncio.Event().wait()
        raise AssertionError

    await run_campaign(store, hang, SlowMachine(1).recover, ignore)
    assert {record.outcome for record in store.records} == {Outcome.CUT}
    assert len(store.records) == len(build_steps(scale))
    assert build_result(store).rounds_done == 0


async def test_the_time_that_was_spent_before_an_interruption_counts(tmp_path: Path) -> None:
    machine = SlowMachine(1.0)
    store = SampleStore(tmp_path, Header(scale=QUICK, host=build_host(), started_at=1.0), [])

    async def run(step: Step) -> Figures:
        if len(store.records) == 40:
            raise asyncio.CancelledError
        return await machine.run(step)

    with pytest.raises(asyncio.CancelledError):
        await run_campaign(store, run, machine.recover, ignore, machine.read_clock)
    slow = [record.model_copy(update={"seconds": BUDGET_S / 40}) for record in store.records]
    again = SampleStore(tmp_path, store.header, slow)
    await run_campaign(again, machine.run, machine.recover, ignore, machine.read_clock)
    assert {record.outcome for record in again.records[40:]} == {Outcome.CUT}


async def test_without_an_end_nothing_is_left_out(tmp_path: Path) -> None:
    scale = QUICK.model_copy(update={"budget_s": None})
    store = SampleStore(tmp_path, Header(scale=scale, host=build_host(), started_at=1.0), [])
    machine = SlowMachine(50.0)
    await run_campaign(store, machine.run, machine.recover, ignore, machine.read_clock)
    assert {record.outcome for record in store.records} == {Outcome.DONE}
