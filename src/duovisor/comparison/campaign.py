"""Does the steps of a plan that are not done yet, one after the other, and keeps what each came to."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from duovisor.comparison.budget import REASON, Budget
from duovisor.comparison.errors import SkippedError
from duovisor.comparison.plan import Estimate, build_steps
from duovisor.comparison.samples import Outcome, Record
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from duovisor.comparison.measures.context import Figures
    from duovisor.comparison.plan import Step
    from duovisor.comparison.samples import SampleStore

    RunStep = Callable[[Step], Awaitable[Figures]]
    Recover = Callable[[Step, DuovisorError], Awaitable[str]]
    Tell = Callable[["Progress"], None]


class Progress(NamedTuple):
    """``step`` is about to begin, as number ``number`` of ``total``; ``failed``: how many have failed."""

    step: Step
    number: int
    total: int
    left_s: float
    failed: int


async def run_campaign(
    store: SampleStore,
    run_step: RunStep,
    recover: Recover,
    tell: Tell,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Do what is left of a comparison, and fits into its time.

    A step that fails with a ``DuovisorError`` is kept as such: ``recover`` makes the rig ready for the next
    one and says what was wrong. Anything else ends the campaign; what is done by then is kept.
    """
    steps = build_steps(store.header.scale)
    estimate = Estimate()
    for record in store.records:
        if record.outcome is Outcome.DONE:
            estimate.add(record.measure, record.seconds)
    budget = Budget(store.header.scale.budget_s, sum(record.seconds for record in store.records), clock)
    failed = sum(record.outcome is Outcome.FAILED for record in store.records)
    for index, step in enumerate(steps):
        if store.has(step):
            continue
        left = [each for each in steps[index:] if not store.has(each)]
        if not budget.allows(step, left, estimate):
            store.add(build_record(step, Outcome.CUT, reason=REASON))
            continue
        left_s, end_s = estimate.left_s(left), budget.left_s()
        left_s = left_s if end_s is None else min(left_s, end_s)
        tell(Progress(step, index + 1, len(steps), left_s, failed))
        record = await _do(step, run_step, recover, end_s, clock)
        store.add(record)
        failed += record.outcome is Outcome.FAILED
        estimate.add(step.measure, record.seconds)


async def _do(
    step: Step, run_step: RunStep, recover: Recover, end_s: float | None, clock: Callable[[], float]
) -> Record:
    """One step; what is not over after ``end_s`` is broken off."""
    began = clock()

    def build(outcome: Outcome, reason: str = "", figures: Figures | None = None) -> Record:
        seconds = round(clock() - began, 3)
        return build_record(step, outcome, seconds=seconds, reason=reason, figures=figures)

    try:
        async with asyncio.timeout(end_s) as scope:
            figures = await run_step(step)
        return build(Outcome.DONE, figures=figures)
    except TimeoutError:
        if not scope.expired():
            raise
        return build(Outcome.CUT, REASON)
    except SkippedError as error:
        return build(Outcome.SKIPPED, str(error))
    except DuovisorError as error:
        return build(Outcome.FAILED, await recover(step, error))


def build_record(
    step: Step, outcome: Outcome, *, seconds: float = 0.0, reason: str = "", figures: Figures | None = None
) -> Record:
    """The record of a step that has just ended, with the machine's load now."""
    return Record(
        round=step.round, measure=step.measure, design=step.design, outcome=outcome, seconds=seconds,
        load=round(os.getloadavg()[0], 2), values=figures.values if figures else {},
        facts=(figures.facts or {}) if figures else {}, reason=reason,
    )  # fmt: skip
