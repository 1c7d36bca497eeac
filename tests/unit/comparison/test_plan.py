"""Which steps there are, in which order, and how long they may take."""

from __future__ import annotations

from itertools import pairwise

from duovisor.comparison.measures.table import MEASURES
from duovisor.comparison.plan import FULL, QUICK, SERVICE_FAULT, Estimate, build_steps
from duovisor.comparison.report.repeat import build_command
from duovisor.spec.vm import Design


def test_every_step_has_a_key_of_its_own_and_a_measure() -> None:
    steps = build_steps(FULL)
    assert len({step.key for step in steps}) == len(steps)
    assert {step.measure for step in steps} == set(MEASURES)


def test_designs_take_turns_and_the_order_changes_with_each_round() -> None:
    steps = [step for step in build_steps(QUICK) if step.measure == "storage.read_4k_qd1"]
    assert len(steps) == 2 * QUICK.rounds
    firsts = [step.design for step in steps[::2]]
    assert all(before != after for before, after in pairwise(firsts))
    assert all(first.design != second.design for first, second in zip(steps[::2], steps[1::2], strict=True))


def test_a_job_is_done_in_both_designs_before_the_next_begins() -> None:
    steps = build_steps(QUICK.model_copy(update={"sections": ("storage",), "rounds": 1}))
    assert [step.measure for step in steps[::2]] == [step.measure for step in steps[1::2]]


def test_failures_are_tried_in_both_designs_as_often_as_asked() -> None:
    steps = [step for step in build_steps(QUICK) if step.measure == SERVICE_FAULT]
    assert len(steps) == 2 * QUICK.fault_rounds
    assert {step.design for step in steps} == set(Design)


def test_sections_can_be_left_out() -> None:
    steps = build_steps(QUICK.model_copy(update={"sections": ("processor",)}))
    assert {step.measure for step in steps} == {"processor"}


def test_what_was_measured_once_is_expected_to_take_as_long_again() -> None:
    steps = build_steps(QUICK.model_copy(update={"sections": ("processor", "storage"), "rounds": 1}))
    guess = Estimate().left_s(steps)
    estimate = Estimate()
    for step in steps:
        estimate.add(step.measure, 7.0)
    assert estimate.left_s(steps) == 7.0 * len(steps)
    assert guess == sum(step.usual_s for step in steps)


def test_a_machine_that_is_slower_than_usual_is_expected_to_stay_so() -> None:
    steps = build_steps(QUICK.model_copy(update={"sections": ("processor", "storage"), "rounds": 1}))
    estimate = Estimate()
    estimate.add(steps[0].measure, 3 * steps[0].usual_s)
    known = 3 * sum(step.usual_s for step in steps if step.measure == steps[0].measure)
    rest = 3 * sum(step.usual_s for step in steps if step.measure != steps[0].measure)
    assert round(estimate.left_s(steps), 6) == round(known + rest, 6)


def test_the_command_that_repeats_it() -> None:
    assert build_command(QUICK) == "duovisor compare --quick"
    assert build_command(FULL.model_copy(update={"budget_s": 1800})) == "duovisor compare --full --minutes 30"
    assert (
        build_command(QUICK.model_copy(update={"budget_s": 90})) == "duovisor compare --quick --minutes 1.5"
    )
    many = QUICK.model_copy(update={"rounds": 9})  # whoever names the rounds must name this, too
    assert build_command(many) == "duovisor compare --quick --rounds 9 --minutes 9"
    changed = FULL.model_copy(update={"rounds": 3, "job_s": 2.5, "sections": ("storage", "network")})
    assert build_command(changed) == (
        "duovisor compare --full --rounds 3 --seconds 2.5 --only storage --only network"
    )
