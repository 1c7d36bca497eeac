"""Does the steps of a plan that are not done yet, one after the other, and keeps what each came to."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

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


async def run_campaign(store: SampleStore, run_step: RunStep, recover: Recover, tell: Tell) -> None:
    """Do what is left of a comparison.

    A step that fails with a ``DuovisorError`` is kept as such: ``recover`` makes the rig ready for the next
    one and says what was wrong. Anything else ends the campaign; what is done by then is kept.
    """
    steps = build_steps(store.header.scale)
    estimate = Estimate()
    for record in store.records:
        if record.outcome is Outcome.DONE:
            estimate.add(record.measure, record.seconds)
    failed = sum(record.outcome is Outcome.FAILED for record in store.records)
    for index, step in enumerate(steps):
        if store.has(step):
            continue
        left = [each for each in steps[index:] if not store.has(each)]
        tell(Progress(step, index + 1, len(steps), estimate.left_s(left), failed))
        record = await _do(step, run_step, recover)
        store.add(record)
        failed += record.outcome is Outcome.FAILED
        estimate.add(step.measure, record.seconds)


async def _do(step: Step, run_step: RunStep, recover: Recover) -> Record:
    began = time.monotonic()

    def build(
        outcome: Outcome, reason: str = "", values: dict[str, float] | None = None, facts: object = None
    ) -> Record:
        return Record.model_validate({
            "round": step.round, "measure": step.measure, "design": step.design, "outcome": outcome,
            "seconds": round(time.monotonic() - began, 3), "load": round(os.getloadavg()[0], 2),
            "values": values or {}, "facts": facts or {}, "reason": reason,
        })  # fmt: skip

    try:
        figures = await run_step(step)
        return build(Outcome.DONE, values=figures.values, facts=figures.facts)
    except SkippedError as error:
        return build(Outcome.SKIPPED, str(error))
    except DuovisorError as error:
        return build(Outcome.FAILED, await recover(step, error))
